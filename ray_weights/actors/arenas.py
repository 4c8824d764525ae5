"""Makes, finds again and frees the arenas of one transfer actor."""

from __future__ import annotations

import logging
import os
import secrets
from collections.abc import Iterable

from ray_weights.actors.shard_arena import Record, ShardArena, read_record, tail_nbytes
from ray_weights.core.layout import Layout
from ray_weights.core.manifest import Manifest, chunk_count, chunk_span
from ray_weights.errors import ArenaError, LimitReached
from ray_weights.memory.arena import Arena
from ray_weights.memory.host import HostArena, find_orphans
from ray_weights.memory.limits import check_fits, memory_headroom
from ray_weights.schemas.keys import ShardKey
from ray_weights.transports.transport import Transport

log = logging.getLogger(__name__)


class Arenas:
    """All memory of one device. On the data plane's thread, except where a method says otherwise."""

    def __init__(
        self,
        transport: Transport,
        place: str,
        device: str,
        limit: int,
        reserve_nbytes: int,
        host_digest: str = HostArena.digest_algorithm,
    ) -> None:
        """`place` begins the id of every arena: node and device, so that a restarted actor finds its own."""
        self._host_digest = host_digest
        self._transport = transport
        self._place = place
        self._device = device
        self._limit = limit
        self._reserve = reserve_nbytes
        self._open: set[ShardArena] = set()
        self._never_again: set[ShardArena] = set()
        """Arenas into which a read that was given up on may still write: kept, registered, until it has ended."""

    @property
    def digest_algorithm(self) -> str:
        """For what is sealed here."""
        return self._host_digest if self._device == "cpu" else "sum64x2"

    def check_room(self, nbytes: int) -> None:
        """Raises ArenaTooLarge or LimitReached. Any thread."""
        if len(self._open) + len(self._never_again) >= self._limit:
            raise LimitReached(f"{self._limit} arenas exist on this transfer actor (setting max_arenas)")
        if self._device == "cpu":
            check_fits(nbytes + self._spoken_for())

    def would_fit(self, nbytes: int, without: Iterable[ShardArena]) -> bool:
        """Whether there was room for a new arena if these were freed. Any thread."""
        gone = set(without)
        if len(self._open - gone) + len(self._never_again) >= self._limit:
            return False
        freed = sum(a.nbytes for a in gone)
        return self._device != "cpu" or nbytes + self._spoken_for() <= memory_headroom().available_bytes + freed

    def _spoken_for(self) -> int:
        """Memory that looks free and is not: the reserve, and what arenas of here have not been written to yet."""
        return self._reserve + sum(_not_taken(a.arena) for a in list(self._open))

    def create(self, shard: ShardKey, version: int, layout: Layout, chunk_nbytes: int) -> ShardArena:
        """New memory for a shard, registered with the transport."""
        self.check_room(layout.nbytes)
        chunks = chunk_count(layout.nbytes, chunk_nbytes)
        tail = tail_nbytes(len(layout.model_dump_json()), chunks)
        arena_id = f"{self._place}.{secrets.token_hex(8)}"
        arena = ShardArena(self._allocate(arena_id, layout.nbytes, tail), shard, version, layout.nbytes, chunk_nbytes)
        try:
            self._register(arena)
        except BaseException:
            arena.close()
            raise
        if isinstance(arena.arena, HostArena):
            # The kernel zeroes new pages at a third of the rate at which they can be filled: start before they come.
            arena.arena.start_prefault()
        return arena

    def move(self, old: ShardArena, verified: tuple[int, ...]) -> ShardArena:
        """Copy verified chunks into a new arena; the old one is left to the reads that may still write into it."""
        assert old.manifest is not None
        new = self.create(old.shard, old.version, old.manifest.layout, old.chunk_nbytes)
        new.describe(old.manifest)
        for chunk in verified:
            _copy(old.arena, new.arena, *chunk_span(chunk, old.nbytes, old.chunk_nbytes))
        _wait_for_copies(new.arena)
        for chunk in verified:
            new.advertise(chunk)
        new.arena.seal()
        old.leave()
        self._open.discard(old)
        self._never_again.add(old)
        log.warning("%s v%d moved to another arena with %d chunks", old.shard, old.version, len(verified))
        return new

    def abandon(self, arena: ShardArena) -> None:
        """Stop serving from an arena that may still be written to, and keep it."""
        arena.shut()
        self._open.discard(arena)
        self._never_again.add(arena)

    def free(self, arena: ShardArena) -> None:
        """Give memory back. Only when no lease on it is out; never where a read that was given up on may write."""
        if arena not in self._open:
            log.error("arena %s is not freed: it is not in use", arena.arena.arena_id)
            return
        self._open.discard(arena)
        self._release(arena)

    def free_left(self, arena: ShardArena) -> None:
        """Give the memory of an arena back that was moved out of, or abandoned, now that its late reads have ended."""
        if arena in self._never_again:
            self._never_again.discard(arena)
            self._release(arena)

    def _release(self, arena: ShardArena) -> None:
        arena.shut()
        if arena.nbytes:
            self._transport.deregister(arena.data)
        self._transport.deregister(arena.arena.tail_region)
        arena.close()

    def adopt(self) -> list[tuple[ShardArena, Record, Manifest]]:
        """Arenas of an earlier incarnation that an engine still holds, whole ones only: every digest is checked."""
        if self._device != "cpu":
            return []  # device memory ends with the process that allocated it
        adopted = []
        for orphan in find_orphans(self._place + "."):
            try:
                memory = HostArena.adopt(orphan.pid, orphan.fd)
            except ArenaError as e:
                log.info("arena %s cannot be taken over: %s", orphan.arena_id, e)
                continue
            try:
                record = read_record(memory.tail)
                manifest = Manifest.from_bytes(record.manifest)
                arena = ShardArena(memory, record.shard, record.version, manifest.nbytes, manifest.chunk_nbytes)
                if arena.digests(manifest.digest_algorithm) != manifest.digests:
                    raise ValueError("its bytes are not those of its manifest")
            except ValueError as e:
                log.info("arena %s is not used: %s", orphan.arena_id, e)
                memory.close()
                continue
            arena.describe(manifest)
            arena.advertise_all()
            self._register(arena)
            adopted.append((arena, record, manifest))
        return adopted

    def _register(self, arena: ShardArena) -> None:
        if arena.nbytes:
            self._transport.register(arena.data)
        try:
            self._transport.register(arena.arena.tail_region)
        except BaseException:
            if arena.nbytes:
                self._transport.deregister(arena.data)
            raise
        self._open.add(arena)

    def _allocate(self, arena_id: str, nbytes: int, tail: int) -> Arena:
        if self._device == "cpu":
            return HostArena.create(arena_id, nbytes, tail)
        from ray_weights.memory.device import DeviceArena

        return DeviceArena.create(arena_id, nbytes, tail, self._device.removeprefix("cuda:"))


def _copy(source: Arena, target: Arena, offset: int, nbytes: int) -> None:
    if isinstance(source, HostArena):  # without torch, whose first import takes seconds
        target.view(offset, nbytes)[:] = source.view(offset, nbytes)
    else:
        target.tensor()[offset : offset + nbytes] = source.tensor()[offset : offset + nbytes]


def _wait_for_copies(arena: Arena) -> None:
    """Copies in device memory are only queued so far, and others read it as soon as it is advertised."""
    if not isinstance(arena, HostArena):
        import torch

        torch.cuda.synchronize(arena.data.device_index)


def _not_taken(arena: Arena) -> int:
    """Bytes of host memory that an arena has yet to take from the kernel."""
    if not isinstance(arena, HostArena):
        return 0
    try:
        taken = os.fstat(arena.handle().fd).st_blocks * 512
    except OSError:
        return 0  # closed meanwhile
    return max(0, arena.data.nbytes - taken)
