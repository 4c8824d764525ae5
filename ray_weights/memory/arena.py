"""The interface of memory that weights live in.

An arena is one linear range of bytes (`data`) plus a few kilobytes of host memory beside it (`tail`) for
the manifest and the progress page. Its owner registers both with a transport; engines map the data from its
handle.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, Protocol

if TYPE_CHECKING:
    import torch

    from ray_weights.memory.handles import ArenaHandle

MemoryKind = Literal["DRAM", "VRAM"]

DIGEST_NBYTES = 16


@dataclass(frozen=True, slots=True)
class Region:
    """A range of one process's memory."""

    address: int
    nbytes: int
    device_index: int = 0
    kind: MemoryKind = "DRAM"

    def part(self, offset: int, nbytes: int) -> Region:
        """The sub-range of `nbytes` at `offset`; ValueError unless it lies inside."""
        check_range(offset, nbytes, self.nbytes)
        return Region(self.address + offset, nbytes, self.device_index, self.kind)


def check_range(offset: int, nbytes: int, limit: int) -> None:
    """Raise ValueError unless [offset, offset + nbytes) lies in [0, limit)."""
    if offset < 0 or nbytes < 0 or offset + nbytes > limit:
        raise ValueError(f"bytes {offset}..{offset + nbytes} do not lie inside 0..{limit}")


class Arena(Protocol):
    """Memory owned by this process. Not thread-safe for seal() and close(); the rest is."""

    @property
    def arena_id(self) -> str: ...

    @property
    def data(self) -> Region:
        """The weights' bytes."""
        ...

    @property
    def tail(self) -> memoryview:
        """Writable host memory of `tail_nbytes`, whatever kind `data` is."""
        ...

    @property
    def tail_region(self) -> Region: ...

    @property
    def digest_algorithm(self) -> str:
        """Names the function that digest() uses by default: only digests of one algorithm can be compared."""
        ...

    def digest(self, offset: int, nbytes: int, algorithm: str = ...) -> bytes:
        """16 bytes that identify this slice of `data`. Raises ArenaError for an algorithm that is not known here."""
        ...

    def view(self, offset: int, nbytes: int) -> memoryview:
        """A slice of `data`; ArenaError for device memory."""
        ...

    def tensor(self) -> torch.Tensor:
        """`data` as a 1-D uint8 tensor of this process."""
        ...

    def handle(self) -> ArenaHandle: ...

    def seal(self) -> None:
        """From now on nobody can make a new writable shared mapping; existing ones stay as they are."""
        ...

    def close(self) -> None:
        """Give the memory back. Idempotent. Only after transports have deregistered it and leases have
        ended.
        """
        ...


class MappedArena(Protocol):
    """An arena's data as an engine sees it. Outlives the owner; the memory stays until the last tensor is
    gone.
    """

    @property
    def arena_id(self) -> str: ...

    @property
    def nbytes(self) -> int: ...

    def tensor(self) -> torch.Tensor:
        """The data as a 1-D uint8 tensor that shares the mapping."""
        ...

    def close(self) -> None:
        """Let go. Idempotent. Tensors made before stay valid and hold the mapping themselves."""
        ...
