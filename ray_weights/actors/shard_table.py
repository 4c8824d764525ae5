"""Every shard of one transfer actor and what happens to it: asked for, filled or received, served, freed.

Lives on the actor's event loop; the transport's thread is reached through the data plane.
"""

from __future__ import annotations

import asyncio
import functools
import logging
import os
import secrets
import time
from collections.abc import Callable
from typing import TypeVar

import ray
from ray.actor import ActorHandle
from ray.exceptions import RayActorError, RayTaskError

from ray_weights import errors
from ray_weights.actors.arenas import Arenas
from ray_weights.actors.coordinator_link import CoordinatorLink
from ray_weights.actors.lease_book import LeaseBook
from ray_weights.actors.local_shard import LocalShard
from ray_weights.actors.names import NAMESPACE
from ray_weights.actors.plane import DataPlane
from ray_weights.actors.receive import Receive, Wishes
from ray_weights.actors.shard_arena import ShardArena
from ray_weights.config import ServiceSettings
from ray_weights.core import receiver as machine
from ray_weights.core.layout import Layout, first_difference
from ray_weights.core.manifest import Manifest, bad_chunks, choose_chunk_nbytes
from ray_weights.core.receiver import ReceiverOptions
from ray_weights.schemas import messages as m
from ray_weights.schemas.keys import ShardKey
from ray_weights.schemas.leases import Lease, LeaseRequest, Opened, OpenRequest, SealRequest
from ray_weights.schemas.members import Holding, ReceiveStats, Receiving
from ray_weights.schemas.status import TransferProgress

log = logging.getLogger(__name__)
T = TypeVar("T")
_ANSWER_SECONDS = 30.0
_HANDSHAKE_SECONDS = 10.0


class ShardTable:
    """The shards of one device. One instance per transfer actor."""

    def __init__(
        self, member: str, actor_name: str, plane: DataPlane, arenas: Arenas, settings: ServiceSettings
    ) -> None:
        self._member = member
        self._actor_name = actor_name
        self._plane = plane
        self._arenas = arenas
        self._settings = settings
        self._loop = asyncio.get_running_loop()
        self._tasks: set[asyncio.Task[None]] = set()
        self._addresses: dict[str, str] = {}
        """Actor name by member, as the coordinator told."""
        self.leases = LeaseBook()
        self.shards: list[LocalShard] = []
        self.link: CoordinatorLink  # set by the actor once this table can describe itself

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
            local = self._find(request.shard, request.version)
            if local is not None and request.version is None and local.state == "ready":
                local = None  # the coordinator must say whether there is a newer one
            if local is None:
                if layout is not None and not self._held(request.shard):
                    self._arenas.check_room(layout.nbytes)
                local = LocalShard(request.shard, request.version, layout, request.may_load)
                self.shards.append(local)
                self._spawn(self._ask(local, request.timeout))
            elif layout is not None:
                self._check_layout(local, layout)
            try:
                return await self._wait_for(local, request, layout, deadline)
            except errors.OriginFailed as e:
                # Another engine of this device was to fill it and could not: ask again, now as the next in line.
                log.info("%s: %s", request.shard, e)

    async def _wait_for(
        self, local: LocalShard, request: OpenRequest, layout: Layout | None, deadline: float
    ) -> Opened:
        local.waiters += 1
        local.used_at = time.monotonic()
        try:
            opened = await asyncio.wait_for(self._usable(local, request.pid), deadline - time.monotonic())
            if local.manifest is not None and layout is not None:
                self._check_layout(local, layout)
            return opened
        except TimeoutError as e:
            story = self._tell(local)
            if local.waiters == 1:
                await self._give_up(local, f"deadline of {request.timeout:.0f} s passed: {story}", False)
            raise errors.DeadlineExceeded(
                f"{request.shard} did not arrive within {request.timeout:.0f} s: {story}"
            ) from e
        finally:
            local.waiters -= 1

    async def _usable(self, local: LocalShard, pid: int) -> Opened:
        """The arena: complete, or to be filled by the first that asks; the others on this device wait for it."""
        opened = await asyncio.shield(local.opened)
        if opened.outcome == "arrived":
            return opened
        if local.filler is None:
            self._filled_by(local, pid)
            return opened
        return await asyncio.shield(local.filled)

    def _filled_by(self, local: LocalShard, pid: int) -> None:
        """Remember who fills an arena; should that process end before it has sealed it, the next in line loads."""
        local.filler = pid
        try:
            descriptor = os.pidfd_open(pid)
        except OSError:
            self._spawn(self.fail(local.shard, local.version or 0, f"process {pid} is gone"))
            return

        def ended() -> None:
            self._loop.remove_reader(descriptor)
            os.close(descriptor)
            if local.state == "filling" and local in self.shards:
                self._spawn(self.fail(local.shard, local.version or 0, f"process {pid} died while it was loading"))

        self._loop.add_reader(descriptor, ended)

    async def create(self, request: OpenRequest) -> Opened:
        """An arena for a version that the caller publishes."""
        assert request.version is not None
        known = self._find(request.shard, request.version)
        if known is not None and known.state != "filling":
            # Let it be filled beside the one that is there: only the digests tell whether it is the same.
            log.info("%s v%d is published again", request.shard, request.version)
        elif known is not None:
            await self._discard(known)
        local = LocalShard(request.shard, request.version, Layout.model_validate_json(request.layout), True)
        await self._make_fillable(local, request.version, "published by a caller")
        self.shards.insert(0, local)  # found before one that is there already
        self._filled_by(local, request.pid)
        return local.opened.result()

    async def seal(self, request: SealRequest) -> bytes:
        """Compute the digests of a filled arena and offer it; returns the manifest. Raises VersionConflict."""
        local = next(
            (
                s
                for s in self.shards
                if s.shard == request.shard and s.version == request.version and s.state == "filling"
            ),
            None,
        )
        if local is None or local.arena is None or local.layout is None:
            raise errors.SourceLost(f"{request.shard} v{request.version} is not being filled here")
        arena, layout = local.arena, local.layout
        digests = await self._loop.run_in_executor(self._plane.verifiers, arena.digests)
        manifest = Manifest(
            layout=layout,
            chunk_nbytes=arena.chunk_nbytes,
            digest_algorithm=self._arenas.digest_algorithm,
            digests=digests,
            attributes=request.attributes,
        )
        arena.describe(manifest)
        arena.advertise_all()
        arena.arena.seal()
        local.manifest = manifest
        local.state, local.reason = "ready", "filled here"  # children may come before the coordinator's word is here
        local.known.set()
        local.served.set()
        local.accepted = self._loop.create_future()
        sealed = functools.partial(
            m.Sealed,
            member=self._member,
            shard=local.shard,
            version=request.version,
            seal=manifest.seal(),
            seconds=request.seconds,
            from_storage=request.from_storage,
        )
        try:
            await self.link.post(lambda epoch: sealed(epoch=epoch), _ANSWER_SECONDS)
            await asyncio.wait_for(local.accepted, _ANSWER_SECONDS)
        except TimeoutError as e:
            raise errors.CoordinatorUnavailable("the coordinator did not confirm the sealed shard") from e
        except errors.RayWeightsError:
            await self._discard(local)
            raise
        local.filled.set_result(self._arrived(local))
        local.opened = local.filled
        for older in [
            s for s in self.shards if s is not local and s.shard == local.shard and s.version == local.version
        ]:
            await self._discard(older)
        return manifest.to_bytes()

    async def fail(self, shard: ShardKey, version: int, error: str) -> None:
        """The engine could not fill the arena."""
        local = self._find(shard, version)
        if local is None or local.state != "filling":
            return
        await self._discard(local)
        if not local.filled.done():
            local.filled.set_exception(errors.OriginFailed(f"{shard}: {error}"))
            local.filled.exception()  # seen, also when nobody else waits here
        event = functools.partial(m.OriginError, member=self._member, shard=shard, version=version, error=error[:2000])
        await self.link.post(lambda epoch: event(epoch=epoch), _ANSWER_SECONDS)

    async def fall_back(self, shard: ShardKey, version: int | None, reason: str) -> None:
        """An engine of this device reads storage by itself."""
        local = self._find(shard, version)
        if local is not None and local.state != "ready" and local.waiters == 0:
            await self._discard(local)
        event = functools.partial(
            m.GaveUp, member=self._member, shard=shard, version=version, reason=reason, read_storage=True
        )
        await self.link.post(lambda epoch: event(epoch=epoch), _ANSWER_SECONDS)

    async def drop(self, shard: ShardKey, version: int) -> None:
        """Stop serving a shard and free it once the last lease on it has ended."""
        local = self._find(shard, version)
        if local is None:
            return
        event = functools.partial(m.Dropped, member=self._member, shard=shard, version=version)
        await self.link.post(lambda epoch: event(epoch=epoch), _ANSWER_SECONDS)
        await self._discard(local)

    # Other transfer actors

    async def grant(self, request: LeaseRequest) -> Lease:
        """Give a reader the right to read an arena; waits for one that is being made.

        Raises SourceLost when it is not here (any more).
        """
        for local in [s for s in self.shards if s.shard == request.shard and s.version == request.version]:
            if local.state not in ("ready", "receiving"):
                continue
            await asyncio.wait_for(local.served.wait(), _HANDSHAKE_SECONDS)
            if local.arena is None or local.manifest is None or local.manifest.digest() != request.manifest_digest:
                continue
            arena = local.receive.arena if local.receive is not None else local.arena
            self.leases.grant(request.lease, request.reader, request.reader_actor, arena.arena.arena_id)
            local.used_at = time.monotonic()
            card = await self._on_plane(self._plane.transport.card)
            return Lease(
                arena_id=arena.arena.arena_id,
                card=card,
                data_address=arena.data.address,
                page_address=arena.page_address,
                device_index=arena.data.device_index,
                memory_kind=arena.data.kind,
                manifest=local.manifest.to_bytes() if request.want_manifest else b"",
            )
        raise errors.SourceLost(f"{request.shard} v{request.version} is not here (any more)")

    async def manifest_of(self, shard: ShardKey, version: int) -> bytes:
        """The manifest of a shard; waits for one that is on its way. Raises SourceLost when it is not here."""
        for local in [s for s in self.shards if s.shard == shard and s.version == version]:
            if local.state in ("ready", "receiving"):
                await asyncio.wait_for(local.known.wait(), _HANDSHAKE_SECONDS)
            if local.manifest is not None:
                return local.manifest.to_bytes()
        raise errors.SourceLost(f"{shard} v{version} is not here")

    # The coordinator

    def deliver(self, command: m.Command) -> None:
        """Carry out a command. Work that takes time goes on in a task of its own."""
        if isinstance(command, m.Accepted):
            self._accepted(command)
            return
        version = command.version
        local = self._find(command.shard, version) or self._find(command.shard, None)
        if local is None:
            log.info("a %s for %s came too late", command.type, command.shard)
            return
        match command:
            case m.BecomeOrigin():
                self._spawn(self._become_origin(local, command))
            case m.Wait():
                local.state, local.version, local.reason = "waiting", command.version, command.reason
                self._spawn(self._prepare(local, command.version))
            case m.Receive():
                self._spawn(self._receive(local, command))
            case m.Refuse():
                self._spawn(self._refused(local, command))
            case m.Reverify():
                self._spawn(self._reverify(local, command))

    def _accepted(self, command: m.Accepted) -> None:
        """A seal is registered, or the newest version is one that is here already."""
        here = [s for s in self.shards if s.shard == command.shard]
        for local in here:
            if local.version == command.version and local.accepted is not None and not local.accepted.done():
                local.accepted.set_result(None)
        held = next((s for s in here if s.version == command.version and s.state == "ready"), None)
        for asking in [s for s in here if s.state == "asked" and s.version in (None, command.version)]:
            if held is not None:
                held.used_at = time.monotonic()
                asking.opened.set_result(self._arrived(held))
                self.shards.remove(asking)

    def _held(self, shard: ShardKey) -> tuple[int, ...]:
        return tuple(
            s.version for s in self.shards if s.shard == shard and s.state == "ready" and s.version is not None
        )

    # Asking and filling

    async def _ask(self, local: LocalShard, timeout: float) -> None:
        digest = local.layout.digest() if local.layout is not None else ""
        event = functools.partial(
            m.Open,
            member=self._member,
            shard=local.shard,
            version=local.version,
            layout_digest=digest,
            may_load=local.may_load,
            held=self._held(local.shard),
        )
        try:
            await self.link.post(lambda epoch: event(epoch=epoch), timeout)
            local.asked = True
        except (errors.RayWeightsError, RayTaskError) as e:
            self._end(local, e if isinstance(e, errors.RayWeightsError) else errors.RayWeightsError(str(e)))

    def ask_again(self) -> None:
        """A new epoch has begun: repeat every question that is still open."""
        for local in self.shards:
            if local.state == "waiting" or (local.state == "asked" and local.asked):
                self._spawn(self._ask(local, _ANSWER_SECONDS))

    async def _become_origin(self, local: LocalShard, command: m.BecomeOrigin) -> None:
        if local.state == "filling":
            return
        if local.layout is None:
            self._end(local, errors.SourceLost(f"every source of {local.shard} is gone"))
            return
        await self._stop_receiving(local)
        try:
            await self._make_fillable(local, command.version, command.reason)
        except errors.RayWeightsError as e:
            error = str(e)
            event = functools.partial(
                m.OriginError, member=self._member, shard=local.shard, version=command.version, error=error
            )
            self._end(local, e)
            await self.link.post(lambda epoch: event(epoch=epoch), _ANSWER_SECONDS)

    async def _make_fillable(self, local: LocalShard, version: int, reason: str) -> None:
        layout = local.layout
        assert layout is not None
        chunk_nbytes, _ = choose_chunk_nbytes(layout.nbytes, wanted=self._settings.chunk_nbytes)
        arena, local.spare = local.spare, None
        if arena is None:
            arena = await self._on_plane(lambda: self._arenas.create(local.shard, version, layout, chunk_nbytes))
        arena.version = version
        local.arena, local.version, local.state, local.reason = arena, version, "filling", reason
        opened = Opened(
            outcome="load", version=version, handle=arena.handle().model_dump_json().encode(), reason=reason
        )
        if not local.opened.done():
            local.opened.set_result(opened)

    # Receiving

    async def _receive(self, local: LocalShard, command: m.Receive) -> None:
        self._addresses.update(dict(command.addresses))
        local.reason = command.reason
        if local.receive is not None and local.state == "receiving":
            receive, local.upstreams = local.receive, command.upstreams
            self._plane.post(lambda: receive.handle(machine.Assigned(command.upstreams)))
            return
        if local.state not in ("asked", "waiting"):
            return
        local.version, local.state, local.upstreams = command.version, "receiving", command.upstreams
        local.since = time.monotonic()
        try:
            try:
                manifest = await self._fetch_manifest(local, command)
            except errors.SourceLost as e:
                raise ValueError(str(e)) from e  # this upstream has lost it; others may have it
            if local.layout is not None:
                self._compare(local, manifest)
            local.manifest = manifest
            local.known.set()
            arena = await self._arena_for(local, command.version, manifest)
        except errors.RayWeightsError as e:
            await self._give_up(local, str(e), False, e)
            return
        except (RayActorError, RayTaskError, TimeoutError, ValueError) as e:
            # The upstream went before it said anything: the coordinator names another.
            local.state = "waiting"
            log.info("no manifest from %s: %s", command.upstreams[0], e)
            await self._report(local, machine.Report(command.upstreams[0], "unreachable", str(e)[:500]), 0)
            return
        local.arena = arena
        arena.describe(manifest)
        arena.arena.seal()
        local.served.set()
        receive = Receive(
            self._plane,
            local.shard,
            command.version,
            manifest,
            arena,
            self._arenas.move,
            self._wishes(local),
            ReceiverOptions(window=self._settings.window, stall_seconds=self._settings.stall_seconds),
        )
        local.receive = receive
        self._plane.post(lambda: receive.start(local.upstreams))

    async def _prepare(self, local: LocalShard, version: int) -> None:
        """Make the arena while the origin still loads, so that its pages are there when the bytes come."""
        if local.layout is None or local.spare is not None or not local.layout.nbytes:
            return
        layout = local.layout
        chunk_nbytes, _ = choose_chunk_nbytes(layout.nbytes, wanted=self._settings.chunk_nbytes)
        try:
            spare = await self._on_plane(lambda: self._arenas.create(local.shard, version, layout, chunk_nbytes))
        except errors.RayWeightsError as e:
            log.info("no arena is made ahead of time: %s", e)  # asked for again, with its error, when it is needed
            return
        if local in self.shards and local.state == "waiting" and local.spare is None:
            local.spare = spare
        else:
            await self._on_plane(lambda: self._arenas.free(spare))

    async def _arena_for(self, local: LocalShard, version: int, manifest: Manifest) -> ShardArena:
        spare, local.spare = local.spare, None
        if spare is not None and (spare.nbytes, spare.chunk_nbytes) == (manifest.nbytes, manifest.chunk_nbytes):
            spare.version = version
            return spare
        if spare is not None:
            await self._on_plane(lambda: self._arenas.free(spare))
        return await self._on_plane(
            lambda: self._arenas.create(local.shard, version, manifest.layout, manifest.chunk_nbytes)
        )

    async def _fetch_manifest(self, local: LocalShard, command: m.Receive) -> Manifest:
        upstream = command.upstreams[0]
        call = self._actor(upstream).manifest_of.remote(local.shard.model_dump_json().encode(), command.version)
        manifest = Manifest.from_bytes(await asyncio.wait_for(call, _HANDSHAKE_SECONDS))
        if manifest.digest() != command.seal.manifest_digest:
            raise ValueError(f"the manifest of {upstream} is not the one that the coordinator knows")
        return manifest

    def _wishes(self, local: LocalShard) -> Wishes:
        def soon(work: Callable[[], None]) -> None:
            self._loop.call_soon_threadsafe(work)

        return Wishes(
            connect=lambda upstream: soon(lambda: self._spawn(self._connect(local, upstream))),
            disconnect=lambda upstream: soon(lambda: self._give_back(local, upstream)),
            report=lambda report, have: soon(lambda: self._spawn(self._report(local, report, have))),
            finished=lambda stats: soon(lambda: self._spawn(self._finished(local, stats))),
            failed=lambda error: soon(lambda: self._spawn(self._broke(local, error))),
        )

    async def _connect(self, local: LocalShard, upstream: str) -> None:
        receive = local.receive
        if receive is None or local.version is None or local.manifest is None:
            return
        request = LeaseRequest(
            reader=self._member,
            reader_actor=self._actor_name,
            lease=secrets.token_hex(8),
            shard=local.shard,
            version=local.version,
            manifest_digest=local.manifest.digest(),
            want_manifest=False,
        )
        self.leases.hold(request.lease)
        local.leases[upstream] = request.lease
        try:
            call = self._actor(upstream).grant.remote(request.model_dump_json().encode())
            lease = Lease.model_validate_json(await asyncio.wait_for(call, _HANDSHAKE_SECONDS))
        except errors.SourceLost as e:
            why = str(e)
            self._plane.post(lambda: receive.link_failed(upstream, "stale", why))
            return
        except (RayActorError, RayTaskError, TimeoutError, ValueError) as e:
            why = f"no lease: {e}"[:500]
            self._plane.post(lambda: receive.link_failed(upstream, "unreachable", why))
            return
        self._plane.post(lambda: receive.connected(upstream, lease))

    def _give_back(self, local: LocalShard, upstream: str) -> None:
        lease = local.leases.pop(upstream, None)
        if lease is None:
            return
        self.leases.give_back(lease)
        try:
            self._actor(upstream).release.remote(lease)
        except ValueError:
            pass  # it is gone, and its leases with it

    async def _report(self, local: LocalShard, report: machine.Report, have: int) -> None:
        event = functools.partial(
            m.UpstreamLost,
            member=self._member,
            shard=local.shard,
            version=local.version or 0,
            upstream=report.upstream,
            kind=report.kind,
            detail=report.detail[:500],
            chunks_verified=have,
        )
        try:
            await self.link.post(lambda epoch: event(epoch=epoch), _ANSWER_SECONDS)
        except errors.CoordinatorUnavailable as e:
            log.warning("cannot report %s: %s", report.kind, e)  # the receiver repeats it until its deadline

    async def _finished(self, local: LocalShard, stats: ReceiveStats) -> None:
        assert local.receive is not None
        local.arena, local.receive = local.receive.arena, None
        local.state, local.stats = "ready", stats
        if not local.opened.done():
            local.opened.set_result(self._arrived(local))
        event = functools.partial(
            m.Completed, member=self._member, shard=local.shard, version=local.version or 0, stats=stats
        )
        try:
            await self.link.post(lambda epoch: event(epoch=epoch), _ANSWER_SECONDS)
        except errors.CoordinatorUnavailable as e:
            log.warning("complete, but the coordinator does not know: %s", e)  # it learns when this member joins

    async def _broke(self, local: LocalShard, error: Exception) -> None:
        wrapped = error if isinstance(error, errors.RayWeightsError) else errors.TransportError(repr(error))
        await self._give_up(local, str(wrapped), False, wrapped)

    # Checking

    async def _refused(self, local: LocalShard, command: m.Refuse) -> None:
        kind = getattr(errors, command.error, errors.RayWeightsError)
        message = command.message
        if kind is errors.LayoutMismatch and command.source is not None and local.layout is not None:
            message += await self._difference(local, command)
        error = kind(message)
        if local.accepted is not None and not local.accepted.done():
            local.accepted.set_exception(error)
        else:
            self._end(local, error)

    async def _difference(self, local: LocalShard, command: m.Refuse) -> str:
        assert command.source is not None and local.layout is not None
        try:
            actor = ray.get_actor(command.source[1], namespace=NAMESPACE)
            call = actor.manifest_of.remote(local.shard.model_dump_json().encode(), command.version)
            manifest = Manifest.from_bytes(await asyncio.wait_for(call, _HANDSHAKE_SECONDS))
        except (RayActorError, RayTaskError, TimeoutError, ValueError) as e:
            return f" (the source could not be asked which tensor differs: {e})"
        return ": " + first_difference(local.layout, manifest.layout)

    def _compare(self, local: LocalShard, manifest: Manifest) -> None:
        assert local.layout is not None
        difference = first_difference(local.layout, manifest.layout)
        if difference:
            raise errors.LayoutMismatch(f"{local.shard}: {difference}")

    def _check_layout(self, local: LocalShard, layout: Layout) -> None:
        present = local.manifest.layout if local.manifest is not None else local.layout
        if present is None:
            return
        difference = first_difference(layout, present)
        if difference:
            raise errors.LayoutMismatch(f"{local.shard}: {difference}")

    async def _reverify(self, local: LocalShard, command: m.Reverify) -> None:
        if local.arena is None or local.manifest is None:
            return
        digests = await self._loop.run_in_executor(self._plane.verifiers, local.arena.digests)
        bad = bad_chunks(local.manifest, digests)
        event = functools.partial(
            m.Reverified, member=self._member, shard=local.shard, version=command.version, bad_chunks=len(bad)
        )
        if bad:
            log.error("%s v%s has %d bad chunks in memory: freed", local.shard, local.version, len(bad))
            await self._discard(local)
        await self.link.post(lambda epoch: event(epoch=epoch), _ANSWER_SECONDS)

    # Ending

    async def _give_up(
        self, local: LocalShard, reason: str, read_storage: bool, error: errors.RayWeightsError | None = None
    ) -> None:
        event = functools.partial(
            m.GaveUp,
            member=self._member,
            shard=local.shard,
            version=local.version,
            reason=reason[:2000],
            read_storage=read_storage,
        )
        self._end(local, error or errors.DeadlineExceeded(reason))
        await self._discard(local)
        try:
            await self.link.post(lambda epoch: event(epoch=epoch), _ANSWER_SECONDS)
        except errors.CoordinatorUnavailable as e:
            log.warning("gave up on %s, and the coordinator does not know: %s", local.shard, e)

    def _end(self, local: LocalShard, error: errors.RayWeightsError) -> None:
        """Answer everybody who waits with an error, and forget the shard."""
        if not local.opened.done():
            local.opened.set_exception(error)
            local.opened.exception()  # seen, also when nobody waits any more
        if local in self.shards and local.arena is None:
            self.shards.remove(local)

    async def _stop_receiving(self, local: LocalShard) -> None:
        receive, local.receive = local.receive, None
        if receive is None:
            return
        clean = await self._on_plane(receive.cancel)
        arena, local.arena, local.manifest, local.upstreams = receive.arena, None, None, ()
        if clean:
            self._spawn(self._free_when_unread(arena))
        else:
            await self._on_plane(lambda: self._arenas.abandon(arena))

    async def _discard(self, local: LocalShard) -> None:
        if local in self.shards:
            self.shards.remove(local)
        local.known.set()
        local.served.set()
        await self._stop_receiving(local)
        for arena in (local.arena, local.spare):
            if arena is not None:
                self._spawn(self._free_when_unread(arena))
        local.arena = local.spare = None

    async def _free_when_unread(self, arena: ShardArena) -> None:
        """Free an arena once every reader has given its lease back or has died: never before."""
        arena.shut()
        while leases := self.leases.of_arena(arena.arena.arena_id):
            for granted in leases:
                try:
                    reader = ray.get_actor(granted.reader_actor, namespace=NAMESPACE)
                    if not await asyncio.wait_for(reader.holds_lease.remote(granted.lease), _HANDSHAKE_SECONDS):
                        self.leases.end(granted.lease)
                except (RayActorError, ValueError):
                    self.leases.end(granted.lease)  # the reader is dead
                except TimeoutError:
                    log.warning("%s does not say whether it still reads %s", granted.reader, arena.shard)
            await asyncio.sleep(1.0)
        await self._on_plane(lambda: self._arenas.free(arena))

    # What it says of itself

    def holdings(self) -> tuple[Holding, ...]:
        return tuple(h for h in (s.holding() for s in self.shards) if h is not None)

    def receiving(self) -> tuple[Receiving, ...]:
        return tuple(r for r in (s.receiving() for s in self.shards) if r is not None)

    def progress(self) -> list[TransferProgress]:
        return [
            s.progress(tuple(g.reader for g in self.leases.of_arena(s.arena.arena.arena_id)) if s.arena else ())
            for s in self.shards
        ]

    # Parts

    def adopt(self, arena: ShardArena, version: int, manifest: Manifest) -> None:
        """Take up a shard that an earlier incarnation of this actor held."""
        local = LocalShard(arena.shard, version, manifest.layout, True)
        local.arena, local.manifest, local.state = arena, manifest, "ready"
        local.known.set()
        local.served.set()
        local.reason = "found in the hands of an engine after a restart"
        local.opened.set_result(self._arrived(local))
        self.shards.append(local)

    def _find(self, shard: ShardKey, version: int | None) -> LocalShard | None:
        """The shard here with this version; with None, one that is on its way, else the newest that is complete."""
        found = [s for s in self.shards if s.shard == shard and (version is None or s.version == version)]
        return max(found, key=lambda s: (s.state != "ready", s.version or 0), default=None)

    def _arrived(self, local: LocalShard) -> Opened:
        assert local.arena is not None and local.manifest is not None and local.version is not None
        return Opened(
            outcome="arrived",
            version=local.version,
            handle=local.arena.handle().model_dump_json().encode(),
            manifest=local.manifest.to_bytes(),
            reason=local.reason,
            stats=local.stats.model_dump_json().encode() if local.stats else b"",
        )

    def _tell(self, local: LocalShard) -> str:
        p = local.progress(())
        if p.chunks:
            return f"{p.chunks_verified} of {p.chunks} chunks are here, read from {', '.join(p.upstreams)}"
        return f"{p.state}: {p.detail}" if p.detail else f"{p.state}: the coordinator has not answered"

    def _actor(self, member: str) -> ActorHandle:
        name = self._addresses.get(member)
        if name is None:
            raise ValueError(f"the address of {member} is not known")
        return ray.get_actor(name, namespace=NAMESPACE)

    async def _on_plane(self, work: Callable[[], T]) -> T:
        return await self._loop.run_in_executor(None, self._plane.call, work)

    def _spawn(self, coroutine) -> None:  # type: ignore[no-untyped-def]
        task = self._loop.create_task(coroutine)
        self._tasks.add(task)

        def ended(task: asyncio.Task[None]) -> None:
            self._tasks.discard(task)
            if not task.cancelled() and task.exception() is not None:
                log.error("a task of the shard table failed", exc_info=task.exception())

        task.add_done_callback(ended)
