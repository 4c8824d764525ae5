"""What every room of a transfer actor shares: who it is, its data plane, its line to the coordinator."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field
from typing import Any, TypeVar

import ray
from ray.actor import ActorHandle

from ray_weights.actors.arenas import Arenas
from ray_weights.actors.coordinator_link import CoordinatorLink
from ray_weights.actors.lease_book import LeaseBook
from ray_weights.actors.names import NAMESPACE
from ray_weights.actors.plane import DataPlane
from ray_weights.config import ServiceSettings
from ray_weights.metrics import TransferMetrics
from ray_weights.schemas.messages import Event

log = logging.getLogger(__name__)
T = TypeVar("T")

ANSWER_SECONDS = 30.0
"""How long to wait for the coordinator."""
HANDSHAKE_SECONDS = 10.0
"""How long to wait for another transfer actor."""


@dataclass(slots=True)
class Surroundings:
    """One per transfer actor; lives on its event loop."""

    member: str
    actor_name: str
    plane: DataPlane
    arenas: Arenas
    settings: ServiceSettings
    link: CoordinatorLink
    metrics: TransferMetrics
    leases: LeaseBook = field(default_factory=LeaseBook)
    addresses: dict[str, str] = field(default_factory=dict)
    """Actor name by member, as the coordinator told."""
    tasks: set[asyncio.Task[None]] = field(default_factory=set)

    def actor(self, member: str) -> ActorHandle:
        """Another transfer actor. ValueError when it is not known or gone."""
        name = self.addresses.get(member)
        if name is None:
            raise ValueError(f"the address of {member} is not known")
        return ray.get_actor(name, namespace=NAMESPACE)

    async def on_plane(self, work: Callable[[], T]) -> T:
        """Run work on the data plane's thread. It takes as long as it takes: making an arena pins all its memory."""
        return await asyncio.shield(asyncio.wrap_future(self.plane.submit(work)))

    async def digests(self, work: Callable[[], T]) -> T:
        """Run work on a thread that computes digests."""
        return await asyncio.get_running_loop().run_in_executor(self.plane.verifiers, work)

    async def post(self, event: type[Event], timeout: float = ANSWER_SECONDS, **fields: Any) -> None:
        """Deliver an event of this member. Raises CoordinatorUnavailable."""
        await self.link.post(lambda epoch: event(epoch=epoch, member=self.member, **fields), timeout)

    def spawn(self, work: Coroutine[Any, Any, None]) -> None:
        """Let work go on by itself; what goes wrong in it is logged."""
        task = asyncio.get_running_loop().create_task(work)
        self.tasks.add(task)
        task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self.tasks.discard(task)
        if not task.cancelled() and task.exception() is not None:
            log.error("a task of this transfer actor failed", exc_info=task.exception())
