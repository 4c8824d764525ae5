"""Every shard of one transfer actor: asked for by engines, answered by the coordinator.

Lives on the actor's event loop. Filling, pulling and serving have rooms of their own.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
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


class _Named(Exception):
    """The newest version, which was asked for, is this one: it is here, or on its way."""

    def __init__(self, version: int) -> None:
        super().__init__(version)
        self.version = version


class ShardTable:
    """One instance per transfer actor."""

    def __init__(self, here: Surroundings) -> None:
        self._here = here
        self.shards = Shards(here)
        self.filling = Filling(here, self.shards)
        self.pulling = Pulling(here, self.shards)
        self.serving = Serving(here, self.shards)
        self._questions = itertools.count(1)

    # Engines and Python callers

    async def open(self, request: OpenRequest) -> Opened:
        """Get a shard: a complete arena, or one to fill.

        Raises:
            DeadlineExceeded, LayoutMismatch, UnknownKey, SourceLost, ArenaTooLarge, LimitReached,
            CoordinatorUnavailable.
        """
        layout = Layout.model_validate_json(request.layout) if request.layout else None
        deadline, version = time.monotonic() + request.timeout, request.version
        while True:
            local = self.shards.find(request.shard, version)
            if local is None and layout is not None and not self.shards.held(request.shard):
                await self.shards.make_room(layout.nbytes)
                local = self.shards.find(request.shard, version)
            if local is None:
                question = next(self._questions) if version is None else 0
                local = LocalShard(request.shard, version, layout, request.may_load, question=question)
                self.shards.all.append(local)
                self._here.spawn(self._ask(local, request.timeout))
            local.join(layout, request.may_load)
            try:
                return await self._wait_for(local, request, layout, deadline)
            except _Named as e:
                version = e.version
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
            opened = await asyncio.wait_for(self._usable(local, request), deadline - time.monotonic())
            if opened.manifest and layout is not None:
                difference = first_difference(layout, Manifest.from_bytes(opened.manifest).layout)
                if difference:
                    raise errors.LayoutMismatch(f"{local.shard}: {difference}")
            return opened
        except TimeoutError as e:
            late = errors.DeadlineExceeded(
                f"{request.shard} did not arrive within {request.timeout:.0f} s: {local.story()}"
            )
            if local.waiters == 1 and local.under_way:
                # By itself: the coordinator may be what does not answer, and the deadline has passed already.
                self._here.spawn(self.shards.give_up(local, str(late), late))
            raise late from e
        finally:
            local.waiters -= 1

    async def _usable(self, local: LocalShard, request: OpenRequest) -> Opened:
        """The arena: complete, or to be filled by the first that can; the others on this device wait for it."""
        opened = await asyncio.shield(local.opened)
        if opened.outcome == "arrived":
            return opened
        if local.filler is None and request.may_load:
            self.filling.filled_by(local, request.pid)
            return opened
        return await asyncio.shield(local.filled)

    async def fall_back(self, shard: ShardKey, version: int | None, reason: str) -> None:
        """An engine of this device reads storage by itself."""
        local = self.shards.find(shard, version)
        if local is not None and local.under_way and local.waiters == 0:
            await self.shards.discard(local)
        self._here.metrics.read_storage(shard.model.model)
        leaves = not self.shards.others_want(shard, version)
        await self._here.post(m.GaveUp, shard=shard, version=version, reason=reason, read_storage=True, leaves=leaves)

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
        if isinstance(command, m.Refuse) and self._not_accepted(command):
            return
        local = self.shards.meant(command)
        if local is None:
            log.info("a %s for %s came too late", command.type, command.shard)
            if not isinstance(command, m.Refuse):
                self._here.spawn(self.shards.nobody_wants(command.shard, command.version))
            return
        if local.version is not None:
            self._name_askers(command, local)
        match command:
            case m.BecomeOrigin():
                self._here.spawn(self.filling.become_origin(local, command))
            case m.Wait() if local.state in ("asked", "waiting"):
                local.state, local.version, local.reason = "waiting", command.version, command.reason
                self._here.spawn(self.pulling.prepare(local, command.version, command.expected_rate))
            case m.Receive() if local.state == "ready" and local.stats is None:
                self._here.spawn(self.shards.offer(local))  # the word of it was lost
            case m.Receive():
                self.pulling.assigned(local, command)
            case m.Refuse():
                self._here.spawn(self._refused(local, command))
            case m.Reverify():
                self._here.spawn(self.serving.reverify(local, command))

    def ask_again(self) -> None:
        """A new epoch has begun: repeat every question that is still open."""
        for local in self.shards.all:
            if local.unconfirmed:
                self._here.spawn(self.shards.offer(local))  # the answer may have been lost with the old epoch
            # What a caller publishes was never asked for: the coordinator hears of it when it is sealed.
            elif local.asked and not local.told and local.state != "ready":
                self._here.spawn(self._ask(local, ANSWER_SECONDS))

    async def _ask(self, local: LocalShard, timeout: float) -> None:
        try:
            await self._here.post(
                m.Open,
                timeout,
                shard=local.shard,
                version=local.version,
                layout_digest=local.layout.digest() if local.layout is not None else "",
                may_load=local.may_load,
                question=local.question,
            )
            local.asked = True
        except (errors.RayWeightsError, RayTaskError) as e:
            if local.state not in ("asked", "waiting"):
                return  # answered meanwhile
            answer(local, e if isinstance(e, errors.RayWeightsError) else errors.RayWeightsError(what_happened(e)))
            await self.shards.discard(local)

    def _accepted(self, command: m.Accepted) -> None:
        """A seal is registered, or a version that was asked for is one that is here already."""
        if command.sealed:
            for local in self.shards.versions(command.shard, command.version):
                local.confirm()
        held = [s for s in self.shards.versions(command.shard, command.version) if s.state in ("ready", "filling")]
        for asking in [s for s in self.shards.all if s.shard == command.shard and s.state == "asked"]:
            if asking.version != command.version and not _answers(command, asking):
                continue
            if held:
                self._name(asking, command.version)
            elif not command.sealed:
                self._here.spawn(self._say_what_is_not_here(asking, command.version))

    async def _say_what_is_not_here(self, asking: LocalShard, version: int) -> None:
        """The coordinator believes that a version is here which is asked for here."""
        with contextlib.suppress(errors.CoordinatorUnavailable):  # the question has its own deadline
            await self._here.post(m.Dropped, shard=asking.shard, version=version)
            await self._ask(asking, ANSWER_SECONDS)

    def _name_askers(self, command: m.Command, local: LocalShard) -> None:
        """Those who asked for the newest version, where that is one which others here have asked for by its number."""
        for asking in [s for s in self.shards.all if s.shard == local.shard and s is not local]:
            if _answers(command, asking):
                assert local.version is not None
                local.join(asking.layout, asking.may_load)
                self._name(asking, local.version)

    def _name(self, asking: LocalShard, version: int) -> None:
        self.shards.all.remove(asking)
        asking.opened.set_exception(_Named(version))
        asking.opened.exception()  # seen, also when nobody waits any more

    def _not_accepted(self, command: m.Refuse) -> bool:
        """Whether a seal was refused."""
        if command.error != "VersionConflict" or command.version is None:
            return False
        return any(s.confirm(_error_of(command)) for s in self.shards.versions(command.shard, command.version))

    async def _refused(self, local: LocalShard, command: m.Refuse) -> None:
        if local.state == "ready" and command.error != "VersionConflict":
            await self.shards.offer(local)  # it was complete before the last source was lost, and the word crossed this
            return
        more = ""
        if command.error == "LayoutMismatch" and command.source is not None and local.layout is not None:
            more = await self._difference(local.layout, command)
        answer(local, _error_of(command, more))
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

    def describe(self) -> tuple[tuple[Holding, ...], tuple[Receiving, ...], tuple[Loading, ...]]:
        """What is held, received and loaded here, for the coordinator; ask_again() asks for the rest."""
        said = [(s, s.holding(), s.receiving(), s.loading()) for s in self.shards.all]
        for local, *parts in said:
            local.told = any(part is not None for part in parts)
        return (
            tuple(h for _, h, _, _ in said if h is not None),
            tuple(r for _, _, r, _ in said if r is not None),
            tuple(x for _, _, _, x in said if x is not None),
        )

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


def _answers(command: m.Command, asking: LocalShard) -> bool:
    """Whether the version of a command is the newest that was asked for here, and has not been named yet."""
    return asking.version is None and asking.state == "asked" and 0 < asking.question <= command.question


def _error_of(command: m.Refuse, more: str = "") -> errors.RayWeightsError:
    kind = getattr(errors, command.error, errors.RayWeightsError)
    error: errors.RayWeightsError = kind(command.message + more)
    return error
