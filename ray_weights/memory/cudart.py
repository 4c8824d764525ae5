"""The few calls of the CUDA runtime that arenas need, on the library that torch has loaded.

Not torch's allocator: what it hands out may be a part of a larger block, cannot always be shared, and with
expandable segments a NIC reads it hundreds of times slower.
"""

from __future__ import annotations

import ctypes
from functools import cache
from typing import Any, Final

from ray_weights.errors import ArenaError, ArenaTooLarge
from ray_weights.memory.handles import IPC_HANDLE_NBYTES

_OUT_OF_MEMORY: Final = 2
"""cudaErrorMemoryAllocation."""
_LAZY_PEER_ACCESS: Final = 1
"""cudaIpcMemLazyEnablePeerAccess, the only flag there is."""


class _IpcHandle(ctypes.Structure):
    """cudaIpcMemHandle_t: passed by value."""

    _fields_ = (("reserved", ctypes.c_byte * IPC_HANDLE_NBYTES),)


def device_index(uuid: str) -> int:
    """Which of this process's visible devices has this UUID, with or without "GPU-". ArenaError when none has."""
    import torch

    wanted = uuid.removeprefix("GPU-")
    for index in range(torch.cuda.device_count()):
        if str(torch.cuda.get_device_properties(index).uuid).removeprefix("GPU-") == wanted:
            return index
    raise ArenaError(f"GPU {uuid} is not visible to this process: is it left out of CUDA_VISIBLE_DEVICES?")


def allocate(index: int, nbytes: int) -> int:
    """The address of `nbytes` zeroed bytes on a device, by plain cudaMalloc. ArenaTooLarge when it has too few."""
    import torch

    address = ctypes.c_void_p()
    with torch.cuda.device(index):
        code = _runtime().cudaMalloc(ctypes.byref(address), ctypes.c_size_t(nbytes))
        if code == _OUT_OF_MEMORY:
            _runtime().cudaGetLastError()  # or torch reports it at its next call
            free, total = torch.cuda.mem_get_info(index)
            raise ArenaTooLarge(
                f"an arena needs {nbytes:,} bytes but GPU {index} has {free:,} of {total:,} free: lower vLLM's "
                "gpu_memory_utilization by that much"
            )
        _check(code, "cudaMalloc")
        # Padding between tensors is part of the digests.
        _check(_runtime().cudaMemset(address, 0, ctypes.c_size_t(nbytes)), "cudaMemset")
        torch.cuda.synchronize(index)
    assert address.value is not None
    return address.value


def free(index: int, address: int) -> None:
    import torch

    with torch.cuda.device(index):
        _check(_runtime().cudaFree(ctypes.c_void_p(address)), "cudaFree")


def export(index: int, address: int) -> bytes:
    """The handle by which another process maps memory from allocate()."""
    import torch

    handle = _IpcHandle()
    with torch.cuda.device(index):
        _check(_runtime().cudaIpcGetMemHandle(ctypes.byref(handle), ctypes.c_void_p(address)), "cudaIpcGetMemHandle")
    return bytes(handle)


def open_exported(index: int, handle: bytes) -> int:
    """Map another process's memory. The process that made the handle cannot open it itself."""
    import torch

    address = ctypes.c_void_p()
    with torch.cuda.device(index):
        code = _runtime().cudaIpcOpenMemHandle(
            ctypes.byref(address), _IpcHandle.from_buffer_copy(handle), ctypes.c_uint(_LAZY_PEER_ACCESS)
        )
        _check(code, "cudaIpcOpenMemHandle")
    assert address.value is not None
    return address.value


def close_exported(index: int, address: int) -> None:
    import torch

    with torch.cuda.device(index):
        _check(_runtime().cudaIpcCloseMemHandle(ctypes.c_void_p(address)), "cudaIpcCloseMemHandle")


@cache
def _runtime() -> Any:
    import torch

    if torch.version.cuda is None:
        raise ArenaError("device memory needs a build of torch for CUDA")
    torch.cuda.current_device()  # makes torch load it
    # By its bare name the loader finds the one that torch has loaded, and both use one context.
    runtime = ctypes.CDLL(f"libcudart.so.{torch.version.cuda.split('.')[0]}")
    runtime.cudaGetErrorString.restype = ctypes.c_char_p
    return runtime


def _check(code: int, call: str) -> None:
    if code != 0:
        _runtime().cudaGetLastError()
        raise ArenaError(f"{call} failed: {_runtime().cudaGetErrorString(code).decode()} ({code})")
