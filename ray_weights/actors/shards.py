"""The shards of one transfer actor, and how one of them ends."""

from __future__ import annotations

import asyncio
import logging

import ray
from ray.exceptions import ActorUnavailableError, RayError

from ray_weights import errors
from ray_weights.actors.lease_book import Granted
from ray_weights.actors.local_shard import LocalShard
from ray_weights.actors.names import NAMESPACE
from ray_weights.actors.shard_arena import ShardArena
from ray_weights.actors.surroundings import HANDSHAKE_SECONDS, Surroundings
from ray_weights.core.layout import Layout
from ray_weights.schemas import messages as m
from ray_weights.schemas.keys import ShardKey
from ray_weights.schemas.leases import Opened

log = logging.getLogger(__name__)
_ASK_READERS_SECONDS = 1.0
_DOUBT_LEASES_SECONDS = 5.0
_NAMED_SECONDS = 0.05
"""Between two looks whether the coordinator has named the newest version."""
_NEARNESS = ("ready", "receiving", "filling", "waiting", "asked")


class Shards:
    """Found by key and version."""

    def __init__(self, here: Surroundings) -> None:
        self._here = here
        self.all: list[LocalShard] = []

    def find(self, shard: ShardKey, version: int | None) -> LocalShard | None:
        """The shard with this version, the one nearest to complete; with None, one that was asked for as the newest
        and is on its way."""
        if version is None:
            return next((s for s in self.all if s.shard == shard and s.question and s.state != "ready"), None)
        return min(self.versions(shard, version), key=lambda s: (_NEARNESS.index(s.state), s.published), default=None)

    def meant(self, command: m.Command) -> LocalShard | None:
        """Whom the coordinator means. It knows nothing yet of what a caller is about to publish."""
        here = [s for s in self.all if s.shard == command.shard and not (s.published and s.state == "filling")]
        exact = [s for s in here if s.version == command.version]
        if exact:
            return max(exact, key=lambda s: s.state != "ready")
        return next((s for s in here if s.version is None and s.question <= command.question), None)

    def others_want(self, shard: ShardKey, version: int | None) -> bool:
        """Whether others on this device have asked the coordinator for this version (for any, with None), so that it
        must not be told that nobody does. Should they have asked for the newest, and that is another, it is told then.
        """
        wanted = any(
            s.shard == shard
            and s.state != "ready"
            and not s.published
            and (version is None or s.version in (None, version))
            for s in self.all
        )
        if wanted and version is not None:
            self._here.spawn(self.nobody_wants(shard, version))
        return wanted

    async def nobody_wants(self, shard: ShardKey, version: int) -> None:
        """Say so, or others would wait for what never comes from here."""
        while any(s.shard == shard and s.version is None for s in self.all):
            await asyncio.sleep(_NAMED_SECONDS)  # it may be what the coordinator will call the newest
        if not self.versions(shard, version):
            await self._here.post(m.Dropped, shard=shard, version=version)

    def versions(self, shard: ShardKey, version: int) -> list[LocalShard]:
        return [s for s in self.all if s.shard == shard and s.version == version]

    def coming(self, shard: ShardKey, version: int) -> list[LocalShard]:
        """Those with this version, or none yet, that are to become complete here."""
        here = [s for s in self.all if s.shard == shard and s.version in (None, version)]
        return [s for s in here if s.state in ("asked", "waiting", "receiving")]

    def held(self, shard: ShardKey, version: int | None = None) -> bool:
        """Whether this version is complete here (any, with None), and the coordinator knows."""
        return any(s.complete and s.shard == shard and version in (None, s.version) for s in self.all)

    async def make_room(self, nbytes: int) -> None:
        """Free complete shards that nobody reads, least recently used first, until an arena fits.

        Raises ArenaTooLarge or LimitReached when that is not enough.
        """
        while True:
            try:
                self._here.arenas.check_room(nbytes)
                return
            except (errors.ArenaTooLarge, errors.LimitReached):
                idle = [s for s in self.all if s.complete and s.waiters == 0 and not self._read(s)]
                if not idle or not self._here.arenas.would_fit(nbytes, [s.arena for s in idle if s.arena]):
                    raise
                oldest = min(idle, key=lambda s: s.used_at)
                log.info("%s v%s is freed to make room for %d bytes", oldest.shard, oldest.version, nbytes)
                await self.drop(oldest)

    async def arena_for(self, local: LocalShard, version: int, layout: Layout, chunk_nbytes: int) -> ShardArena:
        """Memory for a shard: what was made ahead of time if that fits, else a new arena.

        Raises ArenaTooLarge or LimitReached.
        """
        arenas = self._here.arenas
        if local.preparing is not None:
            await local.preparing  # or there would be two, where there may be room for one
        spare, local.spare = local.spare, None
        if spare is not None and (spare.nbytes, spare.chunk_nbytes) == (layout.nbytes, chunk_nbytes):
            spare.version = version
            return spare
        if spare is not None:
            await self._here.on_plane(lambda: arenas.free(spare))
        await self.make_room(layout.nbytes)
        return await self._here.on_plane(lambda: arenas.create(local.shard, version, layout, chunk_nbytes))

    async def drop(self, local: LocalShard) -> None:
        """Stop serving a shard: the coordinator first, so that nobody new is sent here."""
        await self._here.post(m.Dropped, shard=local.shard, version=local.version)
        self._forget(local)
        assert local.version is not None
        for other in self.versions(local.shard, local.version):
            if other.state == "ready":  # sealed meanwhile by another process, and what was said above hit it, too
                self._here.spawn(self.offer(other))
        if local.arena is not None:
            arena, local.arena = local.arena, None
            await self._free_when_unread(arena)

    async def offer(self, local: LocalShard) -> None:
        """Tell the coordinator of a sealed shard. Said again, it is confirmed again. Raises CoordinatorUnavailable."""
        assert local.manifest is not None
        request = local.seal_request
        await self._here.post(
            m.Sealed,
            shard=local.shard,
            version=local.version,
            seal=local.manifest.seal(),
            seconds=request.seconds if request else 0.0,
            from_storage=request is not None and request.from_storage,
            chunking=local.chunking,
        )

    async def give_up(self, local: LocalShard, reason: str, error: errors.RayWeightsError) -> None:
        """End a shard that did not arrive: everybody who waits gets the error, the coordinator the reason."""
        answer(local, error)
        await self.discard(local)
        self._here.metrics.gave_up()
        if self.others_want(local.shard, local.version):
            return
        try:
            await self._here.post(m.GaveUp, shard=local.shard, version=local.version, reason=reason[:2000])
        except errors.CoordinatorUnavailable as e:
            log.warning("gave up on %s, and the coordinator does not know: %s", local.shard, e)

    async def discard(self, local: LocalShard) -> None:
        """Forget a shard and free its memory as soon as nobody reads it."""
        self._forget(local)
        await self.stop_receiving(local)
        for arena in (local.arena, local.spare):
            if arena is not None:
                self._here.spawn(self._free_when_unread(arena))
        local.arena = local.spare = None

    async def stop_receiving(self, local: LocalShard) -> None:
        """End the transfer of a shard. An arena that a read may still write into is never used again."""
        receive, local.receive = local.receive, None
        if receive is None:
            return
        # At once: whoever ends this shard a second time meanwhile must not find an arena to free.
        local.arena, local.manifest, local.upstreams = None, None, ()

        def end() -> ShardArena | None:
            if receive.cancel():
                return receive.arena
            self._here.arenas.abandon(receive.arena)
            return None

        arena = await self._here.on_plane(end)
        if arena is not None:
            self._here.spawn(self._free_when_unread(arena))

    async def free_left(self, arena: ShardArena) -> None:
        """Free an arena that was left to late reads, now that they have ended: its readers have moved, or will."""
        await self._wait_until_unread(arena)
        await self._here.on_plane(lambda: self._here.arenas.free_left(arena))

    def _forget(self, local: LocalShard) -> None:
        if local in self.all:
            self.all.remove(local)
        local.stop_watching()
        local.known.set()
        local.served.set()
        local.moved.set()

    def _read(self, local: LocalShard) -> bool:
        arena = local.serving
        return arena is not None and bool(self._here.leases.of_arena(arena.arena.arena_id))

    async def _free_when_unread(self, arena: ShardArena) -> None:
        """Free an arena once every reader has given its lease back or has died: never before."""
        arena.shut()
        await self._wait_until_unread(arena)
        await self._here.on_plane(lambda: self._here.arenas.free(arena))

    async def _wait_until_unread(self, arena: ShardArena) -> None:
        leases = self._here.leases
        while granted := leases.of_arena(arena.arena.arena_id):
            for lease in granted:
                await self._end_if_over(lease)
            if leases.of_arena(arena.arena.arena_id):
                await asyncio.sleep(_ASK_READERS_SECONDS)

    async def keep_leases_true(self) -> None:
        """Ask readers now and then whether they still read: one that died says nothing when it ends."""
        while True:
            await asyncio.sleep(_DOUBT_LEASES_SECONDS)
            for lease in self._here.leases.older_than(_DOUBT_LEASES_SECONDS):
                await self._end_if_over(lease)

    async def _end_if_over(self, lease: Granted) -> None:
        """End a lease that its reader does not hold any more, because it gave it back or because it is dead."""
        leases = self._here.leases
        try:
            reader = ray.get_actor(lease.reader_actor, namespace=NAMESPACE)
            if not await asyncio.wait_for(reader.holds_lease.remote(lease.lease), HANDSHAKE_SECONDS):
                leases.end(lease.lease)
        except (TimeoutError, ActorUnavailableError) as e:
            # Frozen, restarting or cut off: it may read on. Should it have been restarted, it says so next time.
            log.warning("%s does not say whether it still reads: %s", lease.reader, e)
        except (RayError, ValueError):
            leases.end(lease.lease)  # dead for good


def arrive(local: LocalShard, opened: Opened) -> None:
    """Answer everybody who waits for a shard with the complete one."""
    for future in (local.opened, local.filled):
        if not future.done():
            future.set_result(opened)


def answer(local: LocalShard, error: errors.RayWeightsError) -> None:
    """Answer everybody who waits for a shard with an error."""
    for future in (local.opened, local.filled):
        if not future.done():
            future.set_exception(error)
            future.exception()  # seen, also when nobody waits any more
