"""The coordinator actor: a shell around core's Registry. It sees no weight byte and no chunk traffic."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time

import ray
from ray.actor import ActorHandle
from ray.exceptions import ActorUnavailableError, RayError
from ray.util import list_named_actors

from ray_weights.actors.names import NAMESPACE, TRANSFER_PREFIX
from ray_weights.actors.pauses import collect_seldom
from ray_weights.config import ServiceSettings
from ray_weights.core.outbox import Outgoing
from ray_weights.core.placing import PlacingOptions
from ray_weights.core.planner import PlannerOptions
from ray_weights.core.registry import Registry, RegistryOptions
from ray_weights.schemas.keys import ShardKey
from ray_weights.schemas.messages import EVENT, Join
from ray_weights.schemas.status import CoordinatorStatus, StoryLine

log = logging.getLogger(__name__)
_DOUBT_SECONDS = 0.5
"""Within which a transfer actor whose connection was lost has to answer on a new one, or it is taken for dead."""


class Coordinator:
    """Detached, one per cluster. A restart begins a new epoch and asks every transfer actor what it holds."""

    def __init__(self, settings: bytes) -> None:
        self.settings = ServiceSettings.model_validate_json(settings)
        collect_seldom()
        # One monotonic clock, anchored to the wall once, so that stories carry dates and waits do not jump.
        self._wall_offset = time.time() - time.monotonic()
        self._started_at = self._now()
        self._calls = 0
        self._handles: dict[str, ActorHandle] = {}
        self._watched: dict[str, asyncio.Event] = {}
        """Members that wait for the end of this process."""
        self._watches: set[asyncio.Task[None]] = set()
        self._alarm: asyncio.TimerHandle | None = None
        expected = frozenset(
            str(a["name"])
            for a in list_named_actors(all_namespaces=True)
            if a["namespace"] == NAMESPACE and str(a["name"]).startswith(TRANSFER_PREFIX)
        )
        self._registry = Registry(
            epoch=time.time_ns() // 1000,
            now=self._now(),
            options=RegistryOptions(
                placing=PlacingOptions(
                    planner=PlannerOptions(egress_rate=self.settings.egress_rate),
                    gather_seconds=self.settings.gather_seconds,
                ),
                recovery_seconds=self.settings.recovery_seconds,
            ),
            expected=expected,
        )
        for name in expected:
            self._watch(self._call_in(name))
        log.info("epoch %d begins; %d transfer actors are expected to join", self._registry.epoch, len(expected))

    # Transfer actors

    async def join(self, event: bytes) -> int:
        """A transfer actor joins; returns the epoch that it belongs to from now on."""
        join = Join.model_validate_json(event).model_copy(update={"epoch": self._registry.epoch})
        handle = ray.get_actor(join.info.actor_name, namespace=NAMESPACE)
        messages = self._registry.handle(join, self._now())
        self._handles[join.member] = handle
        self._send(messages)
        self._watch(self._until_dead(join.member, handle))
        return self._registry.epoch

    async def post(self, event: bytes) -> None:
        """Apply an event of a transfer actor. Raises Fenced when it has to join first."""
        self._calls += 1
        self._send(self._registry.handle(EVENT.validate_json(event), self._now()))

    async def watch(self, member: str) -> None:
        """Whoever waits for it learns of this actor's end the moment it happens.

        Returns when the member is taken for dead, or asks again: each call that waits takes one of the actor's slots.
        """
        self._end_watch(member)
        ended = self._watched[member] = asyncio.Event()
        await ended.wait()

    # People

    async def status(self) -> bytes:
        return (
            CoordinatorStatus(
                epoch=self._registry.epoch,
                started_at=self._started_at,
                calls=self._calls,
                members=self._registry.members(),
                shards=self._registry.status(),
            )
            .model_dump_json()
            .encode()
        )

    async def told_shards(self) -> list[bytes]:
        return [s.model_dump_json().encode() for s in self._registry.told_shards()]

    async def story(self, shard: bytes) -> list[bytes]:
        lines: tuple[StoryLine, ...] = self._registry.story(ShardKey.model_validate_json(shard))
        return [line.model_dump_json().encode() for line in lines]

    async def service_settings(self) -> bytes:
        return self.settings.model_dump_json().encode()

    # Parts

    def _now(self) -> float:
        return time.monotonic() + self._wall_offset

    def _send(self, messages: list[Outgoing]) -> None:
        for m in messages:
            handle = self._handles.get(m.member)
            if handle is not None:
                handle.deliver.remote(m.command.model_dump_json().encode())
        self._set_alarm()

    def _set_alarm(self) -> None:
        if self._alarm is not None:
            self._alarm.cancel()
            self._alarm = None
        at = self._registry.next_wakeup()
        if at is not None:
            self._alarm = asyncio.get_running_loop().call_later(max(0.0, at - self._now()), self._ring)

    def _ring(self) -> None:
        self._alarm = None
        self._send(self._registry.tick(self._now()))

    def _watch(self, coroutine) -> None:  # type: ignore[no-untyped-def]
        task = asyncio.get_event_loop().create_task(coroutine)
        self._watches.add(task)
        task.add_done_callback(self._watches.discard)

    async def _until_dead(self, member: str, handle: ActorHandle) -> None:
        while True:
            try:
                await handle.watch.remote()
                return  # it has joined again, and is watched anew
            except RayError as e:
                lost = e
            if not isinstance(lost, ActorUnavailableError) or not await self._lives(member, handle):
                break
        self._end_watch(member)
        if self._handles.pop(member, None) is not None:
            log.warning("transfer actor %s died: %s", member, lost)
            self._send(self._registry.member_died(member, self._now()))
        if isinstance(lost, ActorUnavailableError):
            # Restarted, then it joins by itself; but should only the connection have been lost, it does not know.
            with contextlib.suppress(RayError):
                await handle.new_epoch.remote()

    async def _lives(self, member: str, handle: ActorHandle) -> bool:
        """Whether it was only the connection that was lost, and not the process."""
        try:
            return await asyncio.wait_for(handle.member_name.remote(), _DOUBT_SECONDS) == member
        except (RayError, TimeoutError):
            return False

    def _end_watch(self, member: str) -> None:
        if member in self._watched:
            self._watched.pop(member).set()

    async def _call_in(self, actor_name: str) -> None:
        """Tell a transfer actor of an earlier epoch that a new one has begun."""
        try:
            handle = ray.get_actor(actor_name, namespace=NAMESPACE)
            await handle.new_epoch.remote()
        except (RayError, ValueError):
            self._send(self._registry.expected_died(actor_name, self._now()))
