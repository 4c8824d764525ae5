"""Arenas in GPU memory: plain cudaMalloc, shared with engines on the same device by CUDA IPC."""

from __future__ import annotations

import contextlib
import mmap
from typing import TYPE_CHECKING, Final

import numpy as np

from ray_weights.errors import ArenaError, ArenaGone
from ray_weights.memory import cudart
from ray_weights.memory.arena import Region, check_range
from ray_weights.memory.digest import DIGEST_ALGORITHM, sum64x2
from ray_weights.memory.handles import DeviceArenaHandle

if TYPE_CHECKING:
    import torch

_GRANULE = 2 << 20
"""cudaMalloc carves small allocations out of blocks of 2 MiB, and IPC shares whole blocks: take whole ones."""


class DeviceArena:
    """See Arena. Its memory ends with this process, whoever maps it: it cannot be adopted.

    CUDA has no copy-on-write: engines share one copy that each could write to, and seal() cannot forbid it.
    """

    digest_algorithm: Final = DIGEST_ALGORITHM

    def __init__(self, arena_id: str, nbytes: int, tail_nbytes: int, device_uuid: str) -> None:
        """Use create()."""
        self.arena_id: Final = arena_id
        self._device_uuid = device_uuid
        index = cudart.device_index(device_uuid)
        self._memory: _Allocated | None = _Allocated(index, _round_up(nbytes))
        self._ipc_handle = cudart.export(index, self._memory.address)
        self.data: Final = Region(self._memory.address, nbytes, index, "VRAM")
        self._tail = memoryview(mmap.mmap(-1, max(tail_nbytes, 1)))[:tail_nbytes]
        tail_address = np.frombuffer(self._tail, dtype=np.uint8).ctypes.data if tail_nbytes else 0
        self.tail_region: Final = Region(int(tail_address), tail_nbytes)

    @classmethod
    def create(cls, arena_id: str, nbytes: int, tail_nbytes: int, device_uuid: str) -> DeviceArena:
        """New memory, zeroed. ArenaTooLarge when the device has too little, ArenaError when it is not visible."""
        return cls(arena_id, nbytes, tail_nbytes, device_uuid)

    @property
    def tail(self) -> memoryview:
        return self._tail

    def digest(self, offset: int, nbytes: int, algorithm: str = digest_algorithm) -> bytes:
        if algorithm != self.digest_algorithm:
            raise ArenaError(f"no digest {algorithm!r} of GPU memory is known, only {self.digest_algorithm}")
        check_range(offset, nbytes, self.data.nbytes)
        return sum64x2(self.tensor()[offset : offset + nbytes])

    def view(self, offset: int, nbytes: int) -> memoryview:
        raise ArenaError(f"arena {self.arena_id!r} is in GPU memory: use its tensor()")

    def tensor(self) -> torch.Tensor:
        if self._memory is None:
            raise ArenaError(f"arena {self.arena_id!r} is closed")
        return self._memory.tensor(self.data.nbytes)

    def handle(self) -> DeviceArenaHandle:
        return DeviceArenaHandle(
            arena_id=self.arena_id,
            device_uuid=self._device_uuid,
            ipc_handle=self._ipc_handle,
            nbytes=self.data.nbytes,
        )

    def seal(self) -> None:
        """Nothing: see the class."""

    def close(self) -> None:
        """Freed once the last tensor is gone. Only after every engine has closed its mapping."""
        self._memory = None


def map_device(handle: DeviceArenaHandle) -> MappedDeviceArena:
    """Map device memory of another process; never of this one, which CUDA refuses.

    Raises ArenaGone when the owner has ended, ArenaError when the device is not visible here. What becomes of the
    mapping when the owner frees the memory or ends is not defined by CUDA: the engine has to end with its owner.
    """
    index = cudart.device_index(handle.device_uuid)
    try:
        memory = _Imported(index, handle.ipc_handle)
    except ArenaError as error:
        raise ArenaGone(f"arena {handle.arena_id!r} cannot be mapped, its owner may have ended: {error}") from error
    return MappedDeviceArena(handle.arena_id, handle.nbytes, memory)


class MappedDeviceArena:
    """See MappedArena. Use map_device()."""

    def __init__(self, arena_id: str, nbytes: int, memory: _Imported) -> None:
        self.arena_id: Final = arena_id
        self.nbytes: Final = nbytes
        self._memory: _Imported | None = memory

    def tensor(self) -> torch.Tensor:
        if self._memory is None:
            raise ArenaError(f"arena {self.arena_id!r} is no longer mapped here")
        return self._memory.tensor(self.nbytes)

    def close(self) -> None:
        self._memory = None


class _DeviceMemory:
    """Device memory that tensors hold on to: it is let go of with the last of them."""

    def __init__(self, index: int, address: int) -> None:
        self.index: Final = index
        self.address: Final = address

    def tensor(self, nbytes: int) -> torch.Tensor:
        import torch

        device = torch.device("cuda", self.index)
        if nbytes == 0:
            return torch.empty(0, dtype=torch.uint8, device=device)
        return torch.as_tensor(_Bytes(self, nbytes), device=device)


class _Bytes:
    """What torch reads to make a tensor over the memory; the tensor keeps it, and it keeps the memory."""

    def __init__(self, memory: _DeviceMemory, nbytes: int) -> None:
        self._memory = memory
        self.__cuda_array_interface__ = {
            "shape": (nbytes,),
            "typestr": "|u1",
            "data": (memory.address, False),
            "version": 3,
        }


class _Allocated(_DeviceMemory):
    def __init__(self, index: int, nbytes: int) -> None:
        super().__init__(index, cudart.allocate(index, nbytes))

    def __del__(self) -> None:
        if hasattr(self, "address"):
            with contextlib.suppress(ArenaError):  # the context is gone at the end of the process
                cudart.free(self.index, self.address)


class _Imported(_DeviceMemory):
    def __init__(self, index: int, ipc_handle: bytes) -> None:
        super().__init__(index, cudart.open_exported(index, ipc_handle))

    def __del__(self) -> None:
        if hasattr(self, "address"):
            with contextlib.suppress(ArenaError):
                cudart.close_exported(self.index, self.address)


def _round_up(nbytes: int) -> int:
    return max(-(-nbytes // _GRANULE), 1) * _GRANULE
