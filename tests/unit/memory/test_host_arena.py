from __future__ import annotations

import os
import subprocess
import sys
import time
import uuid

import numpy as np
import pytest
import torch
import xxhash
from blake3 import blake3
from pydantic import TypeAdapter, ValidationError

from ray_weights.errors import ArenaError, ArenaGone, ArenaTooLarge
from ray_weights.memory.arena import Region
from ray_weights.memory.handles import ArenaHandle, DeviceArenaHandle, HostArenaHandle
from ray_weights.memory.host import HostArena
from ray_weights.memory.mapping import map_host

NBYTES = 3 * 4096 + 17
TAIL = 5000


def new_id() -> str:
    return f"test-{uuid.uuid4().hex}:tp0"


def new_arena(nbytes: int = NBYTES, tail_nbytes: int = TAIL, prefault: bool = False) -> HostArena:
    return HostArena.create(new_id(), nbytes, tail_nbytes, prefault)


def at(region: Region) -> bytes:
    """What lies at an address."""
    import ctypes

    return ctypes.string_at(region.address, region.nbytes)


@pytest.mark.parametrize("prefault", [False, True])
def test_a_new_arena_is_zeroed_and_begins_on_a_page(prefault: bool) -> None:
    arena = new_arena(prefault=prefault)
    assert (arena.data.nbytes, arena.data.kind, arena.data.address % 4096) == (NBYTES, "DRAM", 0)
    assert (arena.tail_region.nbytes, arena.tail_region.address % 4096) == (TAIL, 0)
    assert not any(arena.view(0, NBYTES))
    assert not any(arena.tail)


def test_regions_say_where_the_bytes_lie() -> None:
    arena = new_arena()
    arena.view(0, NBYTES)[:] = os.urandom(NBYTES)
    arena.tail[:] = os.urandom(TAIL)
    assert at(arena.data) == arena.view(0, NBYTES)
    assert at(arena.tail_region) == arena.tail
    assert at(arena.data.part(100, 50)) == arena.view(100, 50)


def test_digests_are_those_of_the_slice_alone() -> None:
    arena = new_arena()
    arena.view(0, NBYTES)[:] = os.urandom(NBYTES)
    part = bytes(arena.view(100, 5000))
    assert arena.digest_algorithm == "xxh3-128"
    assert arena.digest(100, 5000) == xxhash.xxh3_128(part).digest()
    assert arena.digest(100, 5000, "blake3-128") == blake3(part).digest()[:16]
    with pytest.raises(ArenaError, match="no digest 'md5' of host memory is known, only xxh3-128, blake3-128"):
        arena.digest(100, 5000, "md5")


@pytest.mark.parametrize(("offset", "nbytes"), [(-1, 1), (0, NBYTES + 1), (NBYTES, 1), (0, -1)])
def test_what_lies_outside_is_refused(offset: int, nbytes: int) -> None:
    arena = new_arena()
    for look in (arena.view, arena.digest, arena.data.part):
        with pytest.raises(ValueError, match="inside"):
            look(offset, nbytes)


@pytest.mark.parametrize("tail_nbytes", [0, TAIL])
def test_an_arena_may_hold_no_weights_at_all(tail_nbytes: int) -> None:
    arena = new_arena(0, tail_nbytes)
    assert (arena.data.nbytes, arena.view(0, 0), len(arena.digest(0, 0))) == (0, b"", 16)
    assert (arena.tensor().shape, len(arena.tail)) == ((0,), tail_nbytes)
    mapped = map_host(arena.handle(), writable=True)
    assert mapped.tensor().shape == (0,)
    arena.seal()
    mapped.close()
    arena.close()


@pytest.mark.parametrize("arena_id", ["", "a\0b", "x" * 238])
def test_ids_that_cannot_be_names_are_refused(arena_id: str) -> None:
    with pytest.raises(ValueError, match="arena id"):
        HostArena.create(arena_id, 1, 1)


def test_the_longest_id_survives_the_way_through_the_kernel() -> None:
    arena = HostArena.create("é" * 118 + "x", 1, 1)
    assert map_host(arena.handle(), writable=False).arena_id == arena.arena_id


def test_more_than_the_machine_has_is_refused() -> None:
    with pytest.raises(ArenaTooLarge, match="available"):
        new_arena(1 << 60)


def test_what_an_origin_writes_is_in_the_arena() -> None:
    arena = new_arena()
    mapped = map_host(arena.handle(), writable=True)
    mapped.tensor()[5:8] = torch.tensor([1, 2, 3], dtype=torch.uint8)
    assert bytes(arena.view(4, 5)) == bytes([0, 1, 2, 3, 0])


def test_an_engine_sees_the_arena_and_cannot_damage_it() -> None:
    arena = new_arena()
    arena.view(0, 3)[:] = b"abc"
    tensor = map_host(arena.handle(), writable=False).tensor()
    tensor[1] = 0
    arena.view(2, 1)[:] = b"C"  # the page is the engine's own by now
    arena.view(4096, 1)[:] = b"d"  # this one is not
    assert (bytes(tensor[:3].tolist()), bytes(arena.view(0, 3))) == (b"a\0c", b"abC")
    assert tensor[4096] == ord("d")


def test_after_the_seal_nobody_can_map_for_writing_but_the_owner_goes_on() -> None:
    arena = new_arena()
    early = map_host(arena.handle(), writable=True).tensor()
    arena.seal()
    with pytest.raises(ArenaError, match="sealed"):
        map_host(arena.handle(), writable=True)
    late = map_host(arena.handle(), writable=False).tensor()
    arena.view(0, 1)[:] = b"x"
    arena.tail[0] = 1
    early[1] = ord("y")
    late[2] = ord("z")
    assert bytes(arena.view(0, 3)) == b"xy\0"


def test_tensors_outlive_the_arena_and_the_mapping() -> None:
    arena = new_arena()
    arena.view(0, 3)[:] = b"abc"
    own, view = arena.tensor(), arena.view(0, 3)
    mapped = map_host(arena.handle(), writable=False)
    tensor = mapped.tensor()
    for _ in range(2):
        arena.close()
        mapped.close()
    assert bytes(tensor[:3].tolist()) == bytes(own[:3].tolist()) == bytes(view) == b"abc"
    with pytest.raises(ArenaError, match="no longer"):
        mapped.tensor()


def test_close_gives_the_memory_back() -> None:
    arena = new_arena(64 << 20, prefault=True)
    before = resident_shared_kilobytes()
    arena.close()
    assert before - resident_shared_kilobytes() >= 64 << 10


def test_pages_of_a_slice_can_be_taken_without_changing_it() -> None:
    arena = new_arena(8 << 20)
    arena.view(5000, 3)[:] = b"abc"
    before = resident_shared_kilobytes()
    arena.prefault(5000, 4 << 20)
    assert resident_shared_kilobytes() - before >= 4000
    assert arena.view(5000, 3) == b"abc"
    with pytest.raises(ValueError, match="inside"):
        arena.prefault(0, (8 << 20) + 1)


def test_pages_are_taken_on_the_side_while_the_arena_is_in_use() -> None:
    arena = new_arena(64 << 20)
    before = resident_shared_kilobytes()
    arena.start_prefault()
    arena.view(1, 3)[:] = b"abc"
    deadline = time.monotonic() + 20
    while resident_shared_kilobytes() - before < 64 << 10:
        assert time.monotonic() < deadline
        os.sched_yield()
    assert arena.view(0, 5) == b"\0abc\0"
    arena.close()


def test_an_arena_can_be_closed_while_its_pages_are_being_taken() -> None:
    arena = new_arena(256 << 20)
    arena.start_prefault()
    arena.close()


def resident_shared_kilobytes() -> int:
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) for line in status if line.startswith("RssShmem"))


def test_a_handle_of_an_arena_that_was_given_back_is_refused() -> None:
    arena = new_arena()
    handle = arena.handle()
    arena.close()
    with pytest.raises(ArenaGone):
        map_host(handle, writable=False)


def test_a_handle_whose_descriptor_was_used_again_is_refused() -> None:
    arena, other = new_arena(), new_arena()
    forged = arena.handle().model_copy(update={"fd": other.handle().fd})
    with pytest.raises(ArenaGone, match="its place is taken"):
        map_host(forged, writable=False)
    with open("/dev/null") as null, pytest.raises(ArenaGone, match="no arena"):
        map_host(arena.handle().model_copy(update={"fd": null.fileno()}), writable=False)


def test_a_handle_with_another_size_is_refused() -> None:
    arena = new_arena()
    with pytest.raises(ArenaError, match="its handle says"):
        map_host(arena.handle().model_copy(update={"nbytes": NBYTES + 1}), writable=False)


def test_a_handle_of_a_process_that_has_ended_is_refused() -> None:
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    with pytest.raises(ArenaGone, match="has ended, or runs in another container"):
        map_host(HostArenaHandle(arena_id="x", pid=ended.pid, fd=3, nbytes=1, tail_nbytes=0), writable=False)


def test_handles_cross_processes_as_json() -> None:
    adapter: TypeAdapter[ArenaHandle] = TypeAdapter(ArenaHandle)
    host = HostArenaHandle(arena_id="a", pid=1, fd=0, nbytes=0, tail_nbytes=0)
    device = DeviceArenaHandle(arena_id="a", device_uuid="GPU-1", ipc_handle=bytes(range(192, 256)), nbytes=1)
    for handle in (host, device):
        assert adapter.validate_json(adapter.dump_json(handle)) == handle
    with pytest.raises(ValidationError):
        DeviceArenaHandle(arena_id="a", device_uuid="GPU-1", ipc_handle=b"short", nbytes=1)


def test_numpy_sees_the_same_memory_as_torch() -> None:
    arena = new_arena()
    arena.tensor()[:] = 7
    assert np.frombuffer(arena.view(0, NBYTES), dtype=np.uint8).sum() == 7 * NBYTES
