"""A few kilobytes of anonymous host memory that a transport may write into: the copy of a parent's progress page."""

from __future__ import annotations

import ctypes
import mmap

from ray_weights.memory.arena import Region


class Scratch:
    """Page-aligned memory of this process, zeroed."""

    def __init__(self, nbytes: int) -> None:
        self._map = mmap.mmap(-1, max(1, nbytes))
        self._nbytes = nbytes
        self._anchor = ctypes.c_char.from_buffer(self._map)
        self.region = Region(ctypes.addressof(self._anchor), nbytes)

    def view(self) -> memoryview:
        return memoryview(self._map)[: self._nbytes]

    def close(self) -> None:
        """Give the memory back. Only when no read can still write into it."""
        del self._anchor
        self._map.close()
