"""A transfer actor's line to the coordinator: joins each epoch, delivers events, notices restarts at once."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
import time
from collections.abc import Callable

import ray
from ray.actor import ActorHandle
from ray.exceptions import GetTimeoutError, RayActorError, RayError

from ray_weights.actors.names import COORDINATOR, NAMESPACE
from ray_weights.errors import CoordinatorUnavailable, Fenced
from ray_weights.schemas.messages import Command, Event, Join

log = logging.getLogger(__name__)
_RETRY_SECONDS = 0.5
_LONGEST_RETRY_SECONDS = 2.0
"""Well within the time for which a new coordinator waits for the members that it knows of."""
_MOST_HELD = 4096


class CoordinatorLink:
    """Lives on the actor's event loop."""

    def __init__(self, member: str) -> None:
        self._member = member
        self._describe: Callable[[], Join]
        self._when_joined: Callable[[], None]
        self._handle: ActorHandle | None = None
        self._epoch: int | None = None
        self._joined = asyncio.Event()
        self._rejoin = asyncio.Event()
        self._carry_out: Callable[[Command], None]
        self._held: list[Command] = []
        """Came while this member was joining: the coordinator's first commands overtake its answer."""

    def start(
        self, describe: Callable[[], Join], joined: Callable[[], None], carry_out: Callable[[Command], None]
    ) -> None:
        """Join, and keep joined for as long as the process lives.

        `describe` says what this member is and holds now; its epoch is filled in by the coordinator. `joined` is
        called after each joining, `carry_out` for each command of the present epoch.
        """
        self._describe, self._when_joined, self._carry_out = describe, joined, carry_out
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
                    f"the coordinator did not answer within {timeout:.0f} s; `ray-weights status` looks for it, "
                    "`ray-weights up` starts it"
                ) from e

    def deliver(self, command: Command) -> None:
        """A command of a coordinator: refused unless it is of the epoch that this member has joined."""
        if not self._joined.is_set():
            self._held = [*self._held[1 - _MOST_HELD :], command]
        elif command.epoch == self._epoch:
            self._carry_out(command)
        else:
            log.warning("a %s of epoch %d is refused: this is %d", command.type, command.epoch, self._epoch)

    def new_epoch(self) -> None:
        """The coordinator says that it was restarted."""
        self._lost()

    def _lost(self) -> None:
        self._joined.clear()
        self._rejoin.set()

    async def _keep_joined(self) -> None:
        pause = _RETRY_SECONDS
        while True:
            try:
                self._handle = ray.get_actor(COORDINATOR, namespace=NAMESPACE)
                self._rejoin.clear()
                self._epoch = await self._handle.join.remote(self._describe().model_dump_json().encode())
                self._joined.set()
                pause = _RETRY_SECONDS
                log.info("joined epoch %d", self._epoch)
                held, self._held = self._held, []
                for command in held:
                    self.deliver(command)
                self._when_joined()
                await self._until_lost(self._handle)
            except (RayError, ValueError) as e:  # it is not there, or it refuses
                log.info("no coordinator: %s", e)
            self._joined.clear()
            self._rejoin.clear()
            with contextlib.suppress(TimeoutError):  # the word of a new coordinator ends the pause
                await asyncio.wait_for(self._rejoin.wait(), pause * (0.5 + random.random()))
            pause = min(2 * pause, _LONGEST_RETRY_SECONDS)

    async def _until_lost(self, handle: ActorHandle) -> None:
        """Return when the coordinator ends, or when an answer of it shows that this member must join again."""

        async def watch() -> None:
            try:
                await handle.watch.remote(self._member)
            except RayError:
                return

        tasks = {asyncio.ensure_future(watch()), asyncio.ensure_future(self._rejoin.wait())}
        _, pending = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        for task in pending:
            task.cancel()
