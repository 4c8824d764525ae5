"""The engine's side: map an arena that a transfer actor owns."""

from __future__ import annotations

import mmap
import os
from typing import TYPE_CHECKING, Final

from ray_weights.errors import ArenaError, ArenaGone
from ray_weights.memory import memfd
from ray_weights.memory.arena import MappedArena
from ray_weights.memory.handles import ArenaHandle, HostArenaHandle

if TYPE_CHECKING:
    import torch


def map_arena(handle: ArenaHandle, *, writable: bool) -> MappedArena:
    """Map an arena of another process of this node; see map_host and device.map_device."""
    if isinstance(handle, HostArenaHandle):
        return map_host(handle, writable=writable)
    from ray_weights.memory.device import map_device

    return map_device(handle)


def map_host(handle: HostArenaHandle, *, writable: bool) -> MappedHostArena:
    """Map host memory of another process.

    writable: what is written goes into the arena (an origin fills it). Otherwise the mapping is copy-on-
    write: reads see the arena, writes stay private, so an engine cannot damage what others read.

    Raises ArenaGone when the owner has ended or may not be looked into, ArenaError when the handle does not
    fit or a sealed arena is asked for writing.
    """
    fd, arena_id = memfd.open_shared(handle.pid, handle.fd, writable=writable)
    try:
        if arena_id != handle.arena_id:
            raise ArenaGone(f"arena {handle.arena_id!r} was given back; its place is taken by {arena_id!r}")
        layout = memfd.read_layout(fd, arena_id)
        if layout.nbytes != handle.nbytes:
            raise ArenaError(f"arena {arena_id!r} has {layout.nbytes} bytes, its handle says {handle.nbytes}")
        return MappedHostArena(arena_id, fd, layout.nbytes, writable)
    except BaseException:
        os.close(fd)
        raise


class MappedHostArena:
    """See MappedArena. Keeps the file open (`fd`), so that a restarted owner can find and adopt it."""

    def __init__(self, arena_id: str, fd: int, nbytes: int, writable: bool) -> None:
        """Takes over `fd`. Use map_host()."""
        self.arena_id: Final = arena_id
        self.nbytes: Final = nbytes
        self.fd: Final = fd
        self._closed = False
        self._mapping: mmap.mmap | None = None
        if nbytes == 0:
            return
        try:
            self._mapping = memfd.map_file(fd, nbytes, shared=writable)
        except PermissionError as error:
            raise ArenaError(f"arena {arena_id!r} is sealed: it cannot be mapped for writing") from error

    def tensor(self) -> torch.Tensor:
        import torch

        if self._closed:
            raise ArenaError(f"arena {self.arena_id!r} is no longer mapped here")
        if self._mapping is None:
            return torch.empty(0, dtype=torch.uint8)
        return torch.frombuffer(self._mapping, dtype=torch.uint8)

    def close(self) -> None:
        if self._closed:
            return
        self._closed = True
        self._mapping = None
        os.close(self.fd)
