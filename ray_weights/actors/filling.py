"""Arenas that an engine of this device fills from storage, or a caller with what it publishes."""

from __future__ import annotations

import asyncio
import logging
import os
from weakref import WeakValueDictionary

from ray_weights import errors
from ray_weights.actors.local_shard import LocalShard
from ray_weights.actors.shards import Shards, answer, arrive
from ray_weights.actors.surroundings import ANSWER_SECONDS, Surroundings
from ray_weights.core.layout import Layout
from ray_weights.core.manifest import Manifest, choose_chunk_nbytes
from ray_weights.schemas import messages as m
from ray_weights.schemas.keys import ShardKey
from ray_weights.schemas.leases import Opened, OpenRequest, SealRequest

log = logging.getLogger(__name__)


class Filling:
    """From the coordinator's word (or a caller's) to the sealed source."""

    def __init__(self, here: Surroundings, shards: Shards) -> None:
        self._here = here
        self._shards = shards
        self._locks: WeakValueDictionary[tuple[ShardKey, int], asyncio.Lock] = WeakValueDictionary()
        """Of versions that are being sealed."""

    async def become_origin(self, local: LocalShard, command: m.BecomeOrigin) -> None:
        """Load from storage: the engine that asked gets an arena to fill."""
        if local.state == "ready":  # the word of it was lost
            await self._shards.offer(local)
            return
        if local.state == "filling":
            return
        # At once: the same command may come again, and a new epoch is told of it.
        local.state, local.version = "filling", command.version
        try:
            if local.layout is None or not local.may_load:
                raise errors.SourceLost(f"every source of {local.shard} is gone")
            await self._shards.stop_receiving(local)
            await self.make_fillable(
                local, command.version, command.reason, command.chunk_nbytes, command.expected_rate
            )
            if local not in self._shards.all:
                await self._shards.discard(local)  # given up meanwhile
        except Exception as e:  # also what the system says: too many open files, no memory
            log.warning("%s is not loaded here", local.shard, exc_info=True)
            answer(local, e if isinstance(e, errors.RayWeightsError) else errors.ArenaError(f"{local.shard}: {e!r}"))
            await self._shards.discard(local)
            await self._here.post(m.OriginError, shard=local.shard, version=command.version, error=str(e)[:2000])

    async def create(self, request: OpenRequest) -> Opened:
        """An arena for a version that the caller publishes, beside those that may be there: digests will compare."""
        assert request.version is not None
        layout = Layout.model_validate_json(request.layout)
        local = LocalShard(request.shard, request.version, layout, may_load=True, published=True)
        await self.make_fillable(local, request.version, "published by a caller")
        self._shards.all.append(local)
        self.filled_by(local, request.pid)
        return local.opened.result()

    async def make_fillable(
        self, local: LocalShard, version: int, reason: str, chunk_nbytes: int | None = None, rate: float = 0.0
    ) -> None:
        """Make an arena for the engine to fill.

        Args:
            chunk_nbytes: size of a chunk where it is not free to choose.
            rate: bytes per second that a flow is expected to have; 0 when unknown.
        """
        layout = local.layout
        assert layout is not None
        if chunk_nbytes is None:
            wanted = self._here.settings.chunk_nbytes
            chunk_nbytes, local.chunking = choose_chunk_nbytes(layout.nbytes, rate=rate, wanted=wanted)
        else:
            local.chunking = "as this version was cut before"
        arena = await self._shards.arena_for(local, version, layout, chunk_nbytes)
        local.arena, local.version, local.state, local.reason = arena, version, "filling", reason
        handle = arena.handle().model_dump_json().encode()
        if not local.opened.done():
            local.opened.set_result(Opened(outcome="load", version=version, handle=handle, reason=reason))

    def filled_by(self, local: LocalShard, pid: int) -> None:
        """Remember who fills an arena; should that process end before it has sealed it, the next in line loads."""
        local.filler = pid
        loop = asyncio.get_running_loop()
        try:
            descriptor = os.pidfd_open(pid)
        except OSError as e:
            self._here.spawn(self._fail(local, f"process {pid}, which was to load it, cannot be watched: {e}"))
            return

        def unwatch() -> None:
            loop.remove_reader(descriptor)
            os.close(descriptor)

        def ended() -> None:
            local.stop_watching()
            self._here.spawn(self._fail(local, f"process {pid} died while it was loading"))

        local.unwatch = unwatch
        loop.add_reader(descriptor, ended)

    async def seal(self, request: SealRequest) -> bytes:
        """Compute the digests of a filled arena and offer it; returns the manifest.

        Raises SourceLost, VersionConflict, CoordinatorUnavailable; the arena is forgotten then.
        """
        local = self._filled(request.shard, request.arena_id)
        if local is None:
            raise errors.SourceLost(f"{request.shard} v{request.version} is not being filled here (any more)")
        assert local.arena is not None and local.layout is not None
        local.seal_request = request
        arena, algorithm = local.arena, self._here.arenas.digest_algorithm
        try:
            digests = await self._here.digests(lambda: arena.digests(algorithm))
        except Exception as e:
            local.seal_request = None
            await self._fail(local, f"its digests cannot be computed: {e!r}")
            raise
        manifest = Manifest(
            layout=local.layout,
            chunk_nbytes=arena.chunk_nbytes,
            digest_algorithm=algorithm,
            digests=digests,
            attributes=request.attributes,
        )
        # One after another, or the coordinator's word on one would be taken for its word on another.
        async with self._locks.setdefault((request.shard, request.version), asyncio.Lock()):
            if local not in self._shards.all or local.state != "filling":
                raise errors.SourceLost(f"{request.shard} v{request.version} was given up while it was sealed")
            local.stop_watching()
            arena.describe(manifest)
            arena.advertise_all()
            arena.arena.seal()
            # A source before the coordinator's word is here: receivers may come sooner than that.
            how = "loaded from storage" if request.from_storage else "published"
            local.manifest, local.state, local.reason = manifest, "ready", f"{how} on this node"
            local.known.set()
            local.served.set()
            complete = local.arrived()  # it may be dropped as soon as it is confirmed
            await self._confirmed(local)
        local.opened = local.filled
        arrive(local, complete)
        for other in [s for s in self._shards.versions(local.shard, request.version) if s is not local]:
            if other.state != "filling":  # one copy is enough, and who waits for another has this one
                arrive(other, complete)
                await self._shards.discard(other)
        if request.from_storage:
            self._here.metrics.read_storage(local.shard.model.model)
        return manifest.to_bytes()

    async def _confirmed(self, local: LocalShard) -> None:
        """Offer a sealed shard and wait for the coordinator's word; without it, the shard is forgotten."""
        local.accepted = asyncio.get_running_loop().create_future()
        try:
            await self._shards.offer(local)
            await asyncio.wait_for(local.accepted, ANSWER_SECONDS)
        except TimeoutError as e:
            await self._withdraw(local, error := errors.CoordinatorUnavailable("it did not confirm the sealed shard"))
            raise error from e
        except errors.RayWeightsError as e:
            await self._withdraw(local, e)
            raise

    async def _withdraw(self, local: LocalShard, error: errors.RayWeightsError) -> None:
        answer(local, error)
        await self._shards.discard(local)
        if isinstance(error, errors.CoordinatorUnavailable) and not self._shards.held(local.shard, local.version):
            # It may have heard of it after all.
            self._here.spawn(self._here.post(m.Dropped, shard=local.shard, version=local.version))

    async def fail(self, shard: ShardKey, arena_id: str, error: str, hopeless: bool = False) -> None:
        """The engine could not fill the arena; `hopeless`: no other engine would do better."""
        local = self._filled(shard, arena_id)
        if local is not None:
            await self._fail(local, error, hopeless)

    async def _fail(self, local: LocalShard, error: str, hopeless: bool = False) -> None:
        if local not in self._shards.all or local.state != "filling" or local.seal_request is not None:
            return  # what is being sealed is whole, whatever becomes of the process that filled it
        kind = errors.CaptureUnsupported if hopeless else errors.OriginFailed
        answer(local, kind(f"{local.shard}: {error}"))
        await self._shards.discard(local)
        if not local.published:
            await self._here.post(
                m.OriginError, shard=local.shard, version=local.version, error=error[:2000], hopeless=hopeless
            )

    def _filled(self, shard: ShardKey, arena_id: str) -> LocalShard | None:
        """The shard whose arena this is, while it is being filled."""
        filling = [s for s in self._shards.all if s.shard == shard and s.state == "filling" and s.seal_request is None]
        return next((s for s in filling if s.arena is not None and s.arena.arena.arena_id == arena_id), None)
