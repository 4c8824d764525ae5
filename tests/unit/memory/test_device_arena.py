"""Needs a GPU: `pytest -m gpu`."""

from __future__ import annotations

import subprocess
import sys
import uuid

import pytest
import torch

from ray_weights.errors import ArenaError, ArenaTooLarge
from ray_weights.memory.device import DeviceArena
from ray_weights.memory.digest import sum64x2

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")]

NBYTES = (1 << 20) + 3

ENGINE = """
import sys
from ray_weights.memory.digest import sum64x2
from ray_weights.memory.handles import DeviceArenaHandle
from ray_weights.memory.mapping import map_arena

mapped = map_arena(DeviceArenaHandle.model_validate_json(sys.argv[1]), writable=True)
tensor = mapped.tensor()
print(sum64x2(tensor).hex())
tensor[0] = 255
del tensor
mapped.close()
"""


def gpu_uuid() -> str:
    return str(torch.cuda.get_device_properties(0).uuid)


def new_arena(nbytes: int = NBYTES) -> DeviceArena:
    return DeviceArena.create(f"test-{uuid.uuid4().hex}", nbytes, 5000, gpu_uuid())


def test_a_new_arena_is_zeroed_and_has_a_writable_tail_in_host_memory() -> None:
    arena = new_arena()
    assert (arena.data.kind, arena.data.device_index, arena.tail_region.kind) == ("VRAM", 0, "DRAM")
    assert arena.data.address == arena.tensor().data_ptr()
    assert not arena.tensor().any()
    arena.tail[:3] = b"abc"


def test_digests_are_those_of_the_slice_alone() -> None:
    arena = new_arena()
    arena.tensor().random_(0, 256)
    assert arena.digest(5, 1000) == sum64x2(arena.tensor()[5:1005].cpu())


def test_another_process_sees_the_same_bytes_and_its_writes_are_seen_here() -> None:
    arena = new_arena()
    arena.tensor().random_(0, 255)
    torch.cuda.synchronize()
    command = [sys.executable, "-c", ENGINE, arena.handle().model_dump_json()]
    engine = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert engine.returncode == 0, engine.stderr
    digest = bytes.fromhex(engine.stdout.strip())
    assert arena.tensor()[0] == 255
    assert digest != arena.digest(0, NBYTES)


def test_closing_gives_the_memory_back_once_no_tensor_is_left() -> None:
    before = torch.cuda.mem_get_info()[0]
    arena = new_arena(1 << 30)
    tensor = arena.tensor()
    arena.close()
    arena.close()
    assert torch.cuda.mem_get_info()[0] <= before - (1 << 30)
    del tensor
    assert torch.cuda.mem_get_info()[0] > before - (1 << 30)
    with pytest.raises(ArenaError, match="closed"):
        arena.tensor()


def test_an_arena_may_hold_no_weights_at_all() -> None:
    arena = new_arena(0)
    assert (arena.tensor().shape, len(arena.digest(0, 0))) == ((0,), 16)


def test_more_than_the_device_has_is_refused_and_torch_goes_on() -> None:
    with pytest.raises(ArenaTooLarge, match="free"):
        new_arena(1 << 50)
    assert torch.ones(1, device="cuda").item() == 1


def test_a_device_that_is_not_visible_is_named() -> None:
    with pytest.raises(ArenaError, match="CUDA_VISIBLE_DEVICES"):
        DeviceArena.create("x", 1, 1, str(uuid.uuid4()))


def test_bytes_of_device_memory_have_no_view() -> None:
    with pytest.raises(ArenaError, match="GPU memory"):
        new_arena().view(0, 1)
