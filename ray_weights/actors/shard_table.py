"""Every shard of one transfer actor: asked for by engines, answered by the coordinator.

Lives on the actor's event loop. Filling, pulling and serving have rooms of their own.
"""

from __future__ import annotations

import asyncio
import logging
import time

import ray
from ray.exceptions import RayError, RayTaskError

from ray_weights import errors
from ray_weights.actors.filling import Filling
from ray_weights.actors.local_shard import LocalShard
from ray_weights.actors.names import NAMESPACE
from ray_weights.actors.pulling import Pulling
from ray_weights.actors.remote_errors import what_happened
from ray_weights.actors.serving import Serving
from ray_weights.actors.shard_arena import ShardArena
from ray_weights.actors.shards import Shards, answer
from ray_weights.actors.surroundings import ANSWER_SECONDS, HANDSHAKE_SECONDS, Surroundings
from ray_weights.core.layout import Layout, first_difference
from ray_weights.core.manifest import Manifest
from ray_weights.schemas import messages as m
from ray_weights.schemas.keys import ShardKey
from ray_weights.schemas.leases import Opened, OpenRequest
from ray_weights.schemas.members import Holding, Loading, Receiving
from ray_weights.schemas.status import TransferProgress

log = logging.getLogger(__name__)
_UNDER_WAY = ("asked", "waiting", "receiving")


class ShardTable:
    """One instance per transfer actor."""

    def __init__(self, here: Surroundings) -> None:
        self._here = here
        self.shards = Shards(here)
        self.filling = Filling(here, self.shards)
        self.pulling = Pulling(here, self.shards)
        self.serving = Serving(here, self.shards)

    # Engines and Python callers

    async def open(self, request: OpenRequest) -> Opened:
        """Get a shard: a complete arena, or one to fill.

        Raises:
            DeadlineExceeded, LayoutMismatch, UnknownKey, SourceLost, ArenaTooLarge, LimitReached,
            CoordinatorUnavailable.
        """
        layout = Layout.model_validate_json(request.layout) if request.layout else None
        deadline = time.monotonic() + request.timeout
        while True:
            local = self.shards.find(request.shard, request.version)
            if local is not None and request.version is None and local.state == "ready":
                local = None  # the coordinator must say whether there is a newer one
            if local is None:
                if layout is not None and not self.shards.held(request.shard):
                    await self.shards.make_room(layout.nbytes)
                local = LocalShard(request.shard, request.version, layout, request.may_load)
                self.shards.all.append(local)
                self._here.spawn(self._ask(local, request.timeout))
            try:
                return await self._wait_for(local, request, layout, deadline)
            except errors.OriginFailed as e:
                if local.filler == request.pid:
                    raise
                # Another engine of this device was to fill it and could not: ask again, now as the next in line.
                log.info("%s: %s", request.shard, e)

    async def _wait_for(
        self, local: LocalShard, request: OpenRequest, layout: Layout | None, deadline: float
    ) -> Opened:
        local.waiters += 1
        local.used_at = time.monotonic()
        try:
            opened = await asyncio.wait_for(self._usable(local, request.pid), deadline - time.monotonic())
            if opened.manifest and layout is not None:
                difference = first_difference(layout, Manifest.from_bytes(opened.manifest).layout)
                if difference:
                    raise errors.LayoutMismatch(f"{local.shard}: {difference}")
            return opened
        except TimeoutError as e:
            late = errors.DeadlineExceeded(
                f"{request.shard} did not arrive within {request.timeout:.0f} s: {local.story()}"
            )
            if local.waiters == 1 and local.state in _UNDER_WAY:
                # By itself: the coordinator may be what does not answer, and the deadline has passed already.
                self._here.spawn(self.shards.give_up(local, str(late), late))
            raise late from e
        finally:
            local.waiters -= 1

    async def _usable(self, local: LocalShard, pid: int) -> Opened:
        """The arena: complete, or to be filled by the first that asks; the others on this device wait for it."""
        opened = await asyncio.shield(local.opened)
        if opened.outcome == "arrived":
            return opened
        if local.filler is None:
            self.filling.filled_by(local, pid)
            return opened
        return await asyncio.shield(local.filled)

    async def fall_back(self, shard: ShardKey, version: int | None, reason: str) -> None:
        """An engine of this device reads storage by itself."""
        local = self.shards.find(shard, version)
        if local is not None and local.state in _UNDER_WAY and local.waiters == 0:
            await self.shards.discard(local)
        self._here.metrics.read_storage(shard.model.model)
        await self._here.post(m.GaveUp, shard=shard, version=version, reason=reason, read_storage=True)

    async def drop(self, shard: ShardKey, version: int) -> None:
        """Stop serving a shard and free it once the last lease on it has ended."""
        local = self.shards.find(shard, version)
        if local is not None and local.state == "ready":
            await self.shards.drop(local)

    # The coordinator

    def deliver(self, command: m.Command) -> None:
        """Carry out a command. Work that takes time goes on in a task of its own."""
        if isinstance(command, m.Accepted):
            self._accepted(command)
            return
        local = self.shards.find(command.shard, command.version) or self.shards.unnamed(command.shard)
        if local is None:
            log.info("a %s for %s came too late", command.type, command.shard)
            if not isinstance(command, m.Refuse):  # else others would wait for what never comes from here
                self._here.spawn(self._here.post(m.Dropped, shard=command.shard, version=command.version))
            return
        match command:
            case m.BecomeOrigin():
                self._here.spawn(self.filling.become_origin(local, command))
            case m.Wait() if local.state in ("asked", "waiting"):
                local.state, local.version, local.reason = "waiting", command.version, command.reason
                self._here.spawn(self.pulling.prepare(local, command.version, command.expected_rate))
            case m.Receive():
                self.pulling.assigned(local, command)
            case m.Refuse():
                self._here.spawn(self._refused(local, command))
            case m.Reverify():
                self._here.spawn(self.serving.reverify(local, command))

    def ask_again(self) -> None:
        """A new epoch has begun: repeat every question that is still open."""
        for local in self.shards.all:
            told = (
                local.state == "receiving" and local.manifest is not None
            )  # joining has told of it, and of what is loading
            # What a caller publishes was never asked for: the coordinator hears of it when it is sealed.
            if local.asked and local.state in _UNDER_WAY and not told:
                self._here.spawn(self._ask(local, ANSWER_SECONDS))
            elif local.accepted is not None and not local.accepted.done():
                self._here.spawn(self.filling.offer(local))  # the answer may have been lost with the old epoch

    async def _ask(self, local: LocalShard, timeout: float) -> None:
        try:
            await self._here.post(
                m.Open,
                timeout,
                shard=local.shard,
                version=local.version,
                layout_digest=local.layout.digest() if local.layout is not None else "",
                may_load=local.may_load,
                held=self.shards.held(local.shard),
            )
            local.asked = True
        except (errors.RayWeightsError, RayTaskError) as e:
            answer(local, e if isinstance(e, errors.RayWeightsError) else errors.RayWeightsError(what_happened(e)))
            await self.shards.discard(local)

    def _accepted(self, command: m.Accepted) -> None:
        """A seal is registered, or the newest version is one that is here already."""
        here = [s for s in self.shards.all if s.shard == command.shard]
        for local in here:
            if local.version == command.version and local.accepted is not None and not local.accepted.done():
                local.accepted.set_result(None)
        held = next((s for s in here if s.version == command.version and s.state == "ready"), None)
        for asking in [s for s in here if s.state == "asked" and s.version in (None, command.version)]:
            if held is not None:
                held.used_at = time.monotonic()
                if not asking.opened.done():
                    asking.opened.set_result(held.arrived())
                self.shards.all.remove(asking)

    async def _refused(self, local: LocalShard, command: m.Refuse) -> None:
        kind = getattr(errors, command.error, errors.RayWeightsError)
        message = command.message
        if kind is errors.LayoutMismatch and command.source is not None and local.layout is not None:
            message += await self._difference(local.layout, command)
        error = kind(message)
        if local.accepted is not None and not local.accepted.done():
            local.accepted.set_exception(error)
            return
        answer(local, error)
        await self.shards.discard(local)

    async def _difference(self, layout: Layout, command: m.Refuse) -> str:
        """Ask the source for its manifest, to name the first tensor and field that differ."""
        assert command.source is not None
        try:
            actor = ray.get_actor(command.source[1], namespace=NAMESPACE)
            call = actor.manifest_of.remote(command.shard.model_dump_json().encode(), command.version)
            manifest = Manifest.from_bytes(await asyncio.wait_for(call, HANDSHAKE_SECONDS))
        except (errors.SourceLost, RayError, TimeoutError, ValueError) as e:
            return f" (the source could not be asked which tensor differs: {what_happened(e)})"
        return ": " + first_difference(layout, manifest.layout)

    # What it says of itself

    def holdings(self) -> tuple[Holding, ...]:
        return tuple(h for h in (s.holding() for s in self.shards.all) if h is not None)

    def receiving(self) -> tuple[Receiving, ...]:
        return tuple(r for r in (s.receiving() for s in self.shards.all) if r is not None)

    def loading(self) -> tuple[Loading, ...]:
        return tuple(x for x in (s.loading() for s in self.shards.all) if x is not None)

    def progress(self) -> list[TransferProgress]:
        leases = self._here.leases
        return [
            s.progress(tuple(g.reader for g in leases.of_arena(s.serving.arena.arena_id)) if s.serving else ())
            for s in self.shards.all
        ]

    def adopt(self, arena: ShardArena, version: int, manifest: Manifest) -> None:
        """Take up a shard that an earlier incarnation of this actor held."""
        local = LocalShard(arena.shard, version, manifest.layout, True)
        local.arena, local.manifest, local.state = arena, manifest, "ready"
        local.known.set()
        local.served.set()
        local.reason = "found in the hands of an engine after a restart"
        local.opened.set_result(local.arrived())
        self.shards.all.append(local)
