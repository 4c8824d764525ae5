"""Arenas that an engine of this device fills from storage, or a caller with what it publishes."""

from __future__ import annotations

import asyncio
import os

from ray_weights import errors
from ray_weights.actors.local_shard import LocalShard
from ray_weights.actors.shards import Shards, answer
from ray_weights.actors.surroundings import ANSWER_SECONDS, Surroundings
from ray_weights.core.layout import Layout
from ray_weights.core.manifest import Manifest, choose_chunk_nbytes
from ray_weights.schemas import messages as m
from ray_weights.schemas.keys import ShardKey
from ray_weights.schemas.leases import Opened, OpenRequest, SealRequest


class Filling:
    """From the coordinator's word (or a caller's) to the sealed source."""

    def __init__(self, here: Surroundings, shards: Shards) -> None:
        self._here = here
        self._shards = shards

    async def become_origin(self, local: LocalShard, command: m.BecomeOrigin) -> None:
        """Load from storage: the engine that asked gets an arena to fill."""
        if local.state == "ready" and local.manifest is not None:  # the word of it was lost
            seal = local.manifest.seal()
            await self._here.post(m.Sealed, shard=local.shard, version=command.version, seal=seal)
            return
        if local.state in ("filling", "ready"):
            return
        if local.layout is None:
            answer(local, errors.SourceLost(f"every source of {local.shard} is gone"))
            await self._shards.discard(local)
            return
        local.state = "filling"  # at once: the same command may come again
        await self._shards.stop_receiving(local)
        try:
            await self.make_fillable(
                local, command.version, command.reason, command.chunk_nbytes, command.expected_rate
            )
            if local not in self._shards.all:
                await self._shards.discard(local)  # given up meanwhile
        except errors.RayWeightsError as e:
            answer(local, e)
            await self._shards.discard(local)
            await self._here.post(m.OriginError, shard=local.shard, version=command.version, error=str(e))

    async def create(self, request: OpenRequest) -> Opened:
        """An arena for a version that the caller publishes, beside one that may be there: digests will compare."""
        assert request.version is not None
        known = self._shards.find(request.shard, request.version)
        if known is not None and known.state == "filling":
            await self._shards.discard(known)
        local = LocalShard(request.shard, request.version, Layout.model_validate_json(request.layout), True)
        await self.make_fillable(local, request.version, "published by a caller")
        self._shards.all.insert(0, local)
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
        version = local.version or 0
        try:
            descriptor = os.pidfd_open(pid)
        except OSError:
            self._here.spawn(self.fail(local.shard, version, f"process {pid} is gone"))
            return

        def ended() -> None:
            loop.remove_reader(descriptor)
            os.close(descriptor)
            if local.state == "filling" and local in self._shards.all:
                self._here.spawn(self.fail(local.shard, version, f"process {pid} died while it was loading"))

        loop.add_reader(descriptor, ended)

    async def seal(self, request: SealRequest) -> bytes:
        """Compute the digests of a filled arena and offer it; returns the manifest.

        Raises VersionConflict, CoordinatorUnavailable; the arena is forgotten then.
        """
        here = self._shards.versions(request.shard, request.version)
        local = next((s for s in here if s.state == "filling"), None)
        if local is None or local.arena is None or local.layout is None:
            raise errors.SourceLost(f"{request.shard} v{request.version} is not being filled here")
        arena, algorithm = local.arena, self._here.arenas.digest_algorithm
        manifest = Manifest(
            layout=local.layout,
            chunk_nbytes=arena.chunk_nbytes,
            digest_algorithm=algorithm,
            digests=await self._here.digests(lambda: arena.digests(algorithm)),
            attributes=request.attributes,
        )
        arena.describe(manifest)
        arena.advertise_all()
        arena.arena.seal()
        # A source before the coordinator's word is here: receivers may come sooner than that.
        how = "loaded from storage" if request.from_storage else "published"
        local.manifest, local.state, local.reason = manifest, "ready", f"{how} on this node"
        local.known.set()
        local.served.set()
        local.accepted = asyncio.get_running_loop().create_future()
        try:
            local.seal_request = request
            await self.offer(local)
            await asyncio.wait_for(local.accepted, ANSWER_SECONDS)
        except TimeoutError as e:
            await self._shards.discard(local)
            raise errors.CoordinatorUnavailable("the coordinator did not confirm the sealed shard") from e
        except errors.RayWeightsError as e:
            answer(local, e)
            await self._shards.discard(local)
            raise
        local.filled.set_result(local.arrived())
        local.opened = local.filled
        for older in [s for s in self._shards.versions(local.shard, request.version) if s is not local]:
            await self._shards.discard(older)
        if request.from_storage:
            self._here.metrics.read_storage(local.shard.model.model)
        return manifest.to_bytes()

    async def offer(self, local: LocalShard) -> None:
        """Tell the coordinator of a sealed shard. Said again, it is confirmed again. Raises CoordinatorUnavailable."""
        request = local.seal_request
        assert request is not None and local.manifest is not None
        await self._here.post(
            m.Sealed,
            shard=local.shard,
            version=request.version,
            seal=local.manifest.seal(),
            seconds=request.seconds,
            from_storage=request.from_storage,
            chunking=local.chunking,
        )

    async def fail(self, shard: ShardKey, version: int, error: str, hopeless: bool = False) -> None:
        """The engine could not fill the arena; `hopeless`: no other engine would do better."""
        local = next((s for s in self._shards.versions(shard, version) if s.state == "filling"), None)
        if local is None:
            return
        answer(local, (errors.CaptureUnsupported if hopeless else errors.OriginFailed)(f"{shard}: {error}"))
        await self._shards.discard(local)
        await self._here.post(m.OriginError, shard=shard, version=version, error=error[:2000], hopeless=hopeless)
