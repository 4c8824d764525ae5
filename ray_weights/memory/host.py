"""Arenas in host memory: an anonymous file (memfd), mapped shared by its owner."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import mmap
import os
import threading
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Final

import numpy as np
import xxhash
from blake3 import blake3

from ray_weights.errors import ArenaError
from ray_weights.memory import memfd
from ray_weights.memory.arena import DIGEST_NBYTES, Region, check_range
from ray_weights.memory.handles import HostArenaHandle
from ray_weights.memory.limits import check_fits
from ray_weights.memory.memfd import FileLayout, Orphan, find_orphans
from ray_weights.threads import name_this_thread

if TYPE_CHECKING:
    import torch

__all__ = ["DIGESTS", "HostArena", "Orphan", "digest_bytes", "find_orphans"]

DIGESTS: Final[Mapping[str, Callable[[memoryview | bytes], bytes]]] = {
    "xxh3-128": xxhash.xxh3_128_digest,
    "blake3-128": lambda data: blake3(data).digest(length=DIGEST_NBYTES),
}
"""Digests of host memory by name, the default first. All release the GIL, so threads digest side by side."""

_PREFAULT_STEP = 32 << 20
_MADV_POPULATE_WRITE = 23
"""Linux 5.14."""


def digest_bytes(data: memoryview | bytes, algorithm: str = next(iter(DIGESTS))) -> bytes:
    """The digest of host memory. Raises ArenaError for an algorithm that is not in DIGESTS."""
    digest = DIGESTS.get(algorithm)
    if digest is None:
        raise ArenaError(f"no digest {algorithm!r} of host memory is known, only {', '.join(DIGESTS)}")
    return digest(data)


class HostArena:
    """See Arena. Made by create() or adopt()."""

    digest_algorithm: Final = next(iter(DIGESTS))

    def __init__(self, arena_id: str, fd: int, layout: FileLayout) -> None:
        """Takes over `fd`, which this process must own (see memfd). Use create() or adopt()."""
        self.arena_id: Final = arena_id
        self._fd = fd
        self._closed = False
        self.writable: Final = not memfd.is_sealed(fd)
        """False for a sealed arena that was adopted: it can be served and digested, not written."""
        mapping = memfd.map_file(fd, layout.file_nbytes, shared=True, writable=self.writable)
        self._mapping: mmap.mmap | None = mapping
        tail = memoryview(mapping)[layout.tail_offset : layout.tail_offset + layout.tail_nbytes]
        if not self.writable:
            # The page must go on saying what is ready, so the tail gets memory of its own.
            copy = mmap.mmap(-1, max(layout.tail_nbytes, 1))
            copy[: layout.tail_nbytes] = tail
            tail = memoryview(copy)[: layout.tail_nbytes]
        self._tail = tail
        self._view = memoryview(mapping)[: layout.nbytes]
        self.data: Final = Region(_address(mapping), layout.nbytes)
        self.tail_region: Final = Region(_address(tail) if tail.nbytes else self.data.address, tail.nbytes)

    @classmethod
    def create(cls, arena_id: str, nbytes: int, tail_nbytes: int, prefault: bool = False) -> HostArena:
        """New memory, zeroed. ArenaTooLarge when it would not fit; nothing is touched then.

        prefault: return only when all pages are taken (see prefault(); start_prefault() does it on the side).
        """
        layout = FileLayout(nbytes, tail_nbytes)
        check_fits(layout.file_nbytes)
        arena = cls._owning(arena_id, memfd.create(arena_id, layout), layout)
        if prefault:
            arena.prefault()
        return arena

    @classmethod
    def adopt(cls, pid: int, fd: int) -> HostArena:
        """Take over an arena whose owner has died from process `pid`, which still holds it as `fd`.

        Raises ArenaGone when it cannot be reached, ArenaError when it has a living owner or is no arena.
        """
        opened, arena_id = memfd.open_shared(pid, fd, writable=True)
        try:
            memfd.take_ownership(opened, arena_id)
            layout = memfd.read_layout(opened, arena_id)
        except BaseException:
            os.close(opened)
            raise
        return cls._owning(arena_id, opened, layout)

    @classmethod
    def _owning(cls, arena_id: str, fd: int, layout: FileLayout) -> HostArena:
        try:
            return cls(arena_id, fd, layout)
        except BaseException:
            os.close(fd)
            raise

    @property
    def tail(self) -> memoryview:
        return self._tail

    def prefault(self, offset: int = 0, nbytes: int | None = None) -> None:
        """Take the pages of a slice now, by default of all. Releases the GIL.

        A page that a read has to take on the way costs several times what it costs here. ArenaError when the memory
        is not there after all.
        """
        count = self.data.nbytes - offset if nbytes is None else nbytes
        check_range(offset, count, self.data.nbytes)
        if self.writable and count:
            _populate(self.data.address, offset, count)

    def start_prefault(self) -> None:
        """Take all pages from a thread of its own, first to last, ahead of what fills the arena. close() ends it."""
        if self.writable and self.data.nbytes:
            threading.Thread(target=self._prefault_ahead, args=(self._view,), daemon=True, name="prefault").start()

    def _prefault_ahead(self, kept: memoryview) -> None:
        """`kept` keeps the memory mapped while this thread is at it."""
        name_this_thread("rw-prefault")
        for offset in range(0, kept.nbytes, _PREFAULT_STEP):
            if self._closed:
                return
            with contextlib.suppress(ArenaError):  # then whoever writes there finds out
                _populate(self.data.address, offset, min(_PREFAULT_STEP, kept.nbytes - offset))

    def digest(self, offset: int, nbytes: int, algorithm: str = digest_algorithm) -> bytes:
        return digest_bytes(self.view(offset, nbytes), algorithm)

    def view(self, offset: int, nbytes: int) -> memoryview:
        check_range(offset, nbytes, self.data.nbytes)
        return self._view[offset : offset + nbytes]

    def tensor(self) -> torch.Tensor:
        """ArenaError for a sealed arena that was adopted: map its handle instead."""
        import torch

        if not self.writable:
            raise ArenaError(f"arena {self.arena_id!r} is sealed: map it privately through its handle")
        if self.data.nbytes == 0:  # torch takes no empty buffer
            return torch.empty(0, dtype=torch.uint8)
        return torch.frombuffer(self._view, dtype=torch.uint8)

    def handle(self) -> HostArenaHandle:
        return HostArenaHandle(
            arena_id=self.arena_id,
            pid=os.getpid(),
            fd=self._fd,
            nbytes=self.data.nbytes,
            tail_nbytes=self.tail_region.nbytes,
        )

    def seal(self) -> None:
        memfd.seal(self._fd)

    def close(self) -> None:
        """Let go of the memory. Views and tensors still around keep it mapped, and readable, until they are
        gone.
        """
        if self._closed:
            return
        self._closed = True
        self._tail = self._view = memoryview(b"")
        self._mapping = None
        memfd.give_up_ownership(self._fd)
        os.close(self._fd)


def _populate(address: int, offset: int, nbytes: int) -> None:
    start = offset - offset % mmap.PAGESIZE
    libc = ctypes.CDLL(None, use_errno=True)
    pages = ctypes.c_void_p(address + start), ctypes.c_size_t(offset + nbytes - start)
    if libc.madvise(*pages, _MADV_POPULATE_WRITE) != 0:
        number = ctypes.get_errno()
        if number != errno.EINVAL:  # a kernel before 5.14: pages are taken at the first write
            raise ArenaError(f"taking {nbytes:,} bytes of memory failed: {os.strerror(number)}")


def _address(buffer: mmap.mmap | memoryview) -> int:
    return int(np.frombuffer(buffer, dtype=np.uint8).ctypes.data)
