"""What a transfer actor does for others: leases on its arenas, manifests, a second look at its own memory."""

from __future__ import annotations

import asyncio
import logging
import time

from ray_weights import errors
from ray_weights.actors.local_shard import LocalShard
from ray_weights.actors.shards import Shards
from ray_weights.actors.surroundings import HANDSHAKE_SECONDS, Surroundings
from ray_weights.core.manifest import bad_chunks
from ray_weights.schemas import messages as m
from ray_weights.schemas.keys import ShardKey
from ray_weights.schemas.leases import Lease, LeaseRequest

log = logging.getLogger(__name__)


class Serving:
    """Chunks are read from memory without any code here running; this is what comes before and after."""

    def __init__(self, here: Surroundings, shards: Shards) -> None:
        self._here = here
        self._shards = shards

    async def grant(self, request: LeaseRequest) -> Lease:
        """Give a reader the right to read an arena; waits for one that is being made.

        Raises SourceLost when it is not here (any more), LimitReached when too many leases are out.
        """
        for local in await self._described(request.shard, request.version):
            if local.state not in ("ready", "receiving"):
                continue
            await asyncio.wait_for(local.served.wait(), HANDSHAKE_SECONDS)
            arena = local.serving
            if arena is None or local.manifest is None or local.manifest.digest() != request.manifest_digest:
                continue
            self._here.leases.grant(request.lease, request.reader, request.reader_actor, arena.arena.arena_id)
            local.used_at = time.monotonic()
            return Lease(
                arena_id=arena.arena.arena_id,
                # Not on the data plane, which may be busy connecting: the reader waits for this before its first byte.
                card=await asyncio.to_thread(self._here.plane.transport.card),
                data_address=arena.data.address,
                page_address=arena.page_address,
                device_index=arena.data.device_index,
                memory_kind=arena.data.kind,
            )
        raise errors.SourceLost(f"{request.shard} v{request.version} is not here (any more)")

    async def manifest_of(self, shard: ShardKey, version: int) -> bytes:
        """The manifest of a shard; waits for one that is on its way. Raises SourceLost when it is not here."""
        for local in await self._described(shard, version):
            if local.manifest is not None:
                return local.manifest.to_bytes()
        raise errors.SourceLost(f"{shard} v{version} is not here")

    async def _described(self, shard: ShardKey, version: int) -> list[LocalShard]:
        """The shards of this version, once it is known what is in them.

        A child may ask before the coordinator's word has come that this member is to receive: that is no reason to
        send it away.
        """
        if not any(local.manifest is not None for local in self._shards.versions(shard, version)):
            for local in self._shards.coming(shard, version):
                await asyncio.wait_for(local.known.wait(), HANDSHAKE_SECONDS)
        return self._shards.versions(shard, version)

    async def reverify(self, local: LocalShard, command: m.Reverify) -> None:
        """Read the own arena again and compare every digest; one with a bad chunk is freed."""
        if local.arena is None or local.manifest is None:
            await self._here.post(m.Dropped, shard=local.shard, version=command.version)
            return
        arena, manifest = local.arena, local.manifest
        bad = bad_chunks(manifest, await self._here.digests(lambda: arena.digests(manifest.digest_algorithm)))
        if bad:
            log.error("%s v%s has %d bad chunks in memory: freed", local.shard, local.version, len(bad))
            await self._shards.discard(local)
        await self._here.post(m.Reverified, shard=local.shard, version=command.version, bad_chunks=len(bad))
