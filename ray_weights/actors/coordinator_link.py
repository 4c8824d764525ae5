"""A transfer actor's line to the coordinator: joins each epoch, delivers events, notices restarts at once."""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections.abc import Callable

import ray
from ray.actor import ActorHandle
from ray.exceptions import GetTimeoutError, RayActorError

from ray_weights.actors.names import COORDINATOR, NAMESPACE
from ray_weights.errors import CoordinatorUnavailable, Fenced
from ray_weights.schemas.messages import Event, Join

log = logging.getLogger(__name__)
_RETRY_SECONDS = 0.5


class CoordinatorLink:
    """Lives on the actor's event loop."""

    def __init__(self) -> None:
        self._describe: Callable[[], Join]
        self._when_joined: Callable[[], None]
        self._handle: ActorHandle | None = None
        self._epoch: int | None = None
        self._joined = asyncio.Event()
        self._rejoin = asyncio.Event()

    def start(self, describe: Callable[[], Join], joined: Callable[[], None]) -> None:
        """Join, and keep joined for as long as the process lives.

        `describe` says what this member is and holds now; its epoch is filled in by the coordinator. `joined` is
        called after each joining.
        """
        self._describe, self._when_joined = describe, joined
        self._task = asyncio.get_running_loop().create_task(self._keep_joined())

    async def post(self, make_event: Callable[[int], Event], timeout: float) -> None:
        """Deliver an event; joins again as often as needed.

        Raises:
            CoordinatorUnavailable: not delivered within `timeout` seconds.
        """
        deadline = time.monotonic() + timeout
        while True:
            left = deadline - time.monotonic()
            try:
                await asyncio.wait_for(self._joined.wait(), left)
                assert self._handle is not None and self._epoch is not None
                event = make_event(self._epoch)
                await asyncio.wait_for(self._handle.post.remote(event.model_dump_json().encode()), left)
                return
            except Fenced:
                self._lost()
            except RayActorError:
                self._lost()
            except (TimeoutError, GetTimeoutError) as e:
                raise CoordinatorUnavailable(
                    f"the coordinator did not answer within {timeout:.0f} s; `ray-weights status` says whether it is up, "
                    "`ray-weights up` starts it"
                ) from e

    def new_epoch(self) -> None:
        """The coordinator says that it was restarted."""
        self._lost()

    def _lost(self) -> None:
        self._joined.clear()
        self._rejoin.set()

    async def _keep_joined(self) -> None:
        while True:
            try:
                self._handle = ray.get_actor(COORDINATOR, namespace=NAMESPACE)
                self._rejoin.clear()
                self._epoch = await self._handle.join.remote(self._describe().model_dump_json().encode())
                self._joined.set()
                log.info("joined epoch %d", self._epoch)
                self._when_joined()
                await self._until_lost(self._handle)
            except (RayActorError, ValueError) as e:
                log.info("no coordinator: %s", e)
            self._joined.clear()
            await asyncio.sleep(_RETRY_SECONDS * (0.5 + random.random()))

    async def _until_lost(self, handle: ActorHandle) -> None:
        """Return when the coordinator ends, or when an answer of it shows that this member must join again."""

        async def watch() -> None:
            try:
                await handle.watch.remote()
            except RayActorError:
                return

        tasks = {asyncio.ensure_future(watch()), asyncio.ensure_future(self._rejoin.wait())}
        _, pending = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        for task in pending:
            task.cancel()
