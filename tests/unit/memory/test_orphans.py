"""Arenas whose owner has died: they live on in an engine, and a restarted owner takes them over."""

from __future__ import annotations

import ctypes
import os
import subprocess
import sys
import uuid

import pytest

from ray_weights.errors import ArenaError
from ray_weights.memory.handles import HostArenaHandle
from ray_weights.memory.host import HostArena, find_orphans
from ray_weights.memory.mapping import map_arena, map_host

NBYTES = 3 * 4096 + 17
TAIL = 5000


def new_id() -> str:
    return f"test-{uuid.uuid4().hex}:tp0"


def test_an_arena_with_a_living_owner_is_no_orphan_and_cannot_be_adopted() -> None:
    arena = HostArena.create(new_id(), NBYTES, TAIL)
    mapped = map_host(arena.handle(), writable=False)
    assert find_orphans(arena.arena_id) == []
    with pytest.raises(ArenaError, match="living owner"):
        HostArena.adopt(os.getpid(), mapped.fd)


@pytest.mark.parametrize("sealed", [False, True])
def test_a_restarted_owner_adopts_what_an_engine_still_maps(sealed: bool) -> None:
    first = HostArena.create(new_id(), NBYTES, TAIL)
    first.view(0, 3)[:] = b"abc"
    first.tail[:8] = b"manifest"
    mapped, again = map_host(first.handle(), writable=False), map_host(first.handle(), writable=False)
    if sealed:
        first.seal()
    digest = first.digest(0, NBYTES)
    first.close()
    (orphan,) = find_orphans(first.arena_id[:20])
    assert (orphan.arena_id, orphan.pid) == (first.arena_id, os.getpid())
    second = HostArena.adopt(orphan.pid, orphan.fd)
    assert (second.arena_id, second.data.nbytes, second.tail_region.nbytes) == (first.arena_id, NBYTES, TAIL)
    assert (second.digest(0, NBYTES), bytes(second.tail[:8]), ctypes.string_at(second.tail_region.address, 8)) == (
        digest,
        *[b"manifest"] * 2,
    )
    assert second.writable is not sealed
    second.tail[0] = ord("M")
    assert find_orphans(first.arena_id) == []
    mapped.close()
    again.close()
    assert bytes(map_host(second.handle(), writable=False).tensor()[:3].tolist()) == b"abc"


def test_an_adopted_sealed_arena_can_be_read_as_a_tensor_but_not_written_through_it() -> None:
    first = HostArena.create(new_id(), NBYTES, TAIL)
    mapped = map_host(first.handle(), writable=False)
    first.seal()
    first.close()
    second = HostArena.adopt(os.getpid(), mapped.fd)
    with pytest.raises(TypeError):
        second.view(0, 1)[:] = b"x"
    with pytest.raises(ArenaError, match="sealed"):
        second.tensor()
    second.prefault()


def test_memory_of_something_else_is_not_adopted() -> None:
    fd = os.memfd_create("ray_weights:forged")
    for size in (0, 10, 8192):
        os.ftruncate(fd, size)
        with pytest.raises(ArenaError, match="no arena of this version"):
            HostArena.adopt(os.getpid(), fd)
    os.close(fd)


def test_an_arena_outlives_its_owner_as_long_as_an_engine_maps_it() -> None:
    program = (
        "import sys; from ray_weights.memory.host import HostArena;"
        "arena = HostArena.create(sys.argv[1], 4096, 10);"
        "arena.view(0, 2)[:] = b'hi'; print(arena.handle().model_dump_json(), flush=True); sys.stdin.read()"
    )
    owner = subprocess.Popen(
        [sys.executable, "-c", program, new_id()], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert owner.stdout is not None and owner.stdin is not None
    handle = HostArenaHandle.model_validate_json(owner.stdout.readline())
    mapped = map_arena(handle, writable=False)
    assert find_orphans(handle.arena_id) == []
    owner.kill()
    owner.wait()
    owner.stdin.close()
    owner.stdout.close()
    assert bytes(mapped.tensor()[:2].tolist()) == b"hi"
    (orphan,) = find_orphans(handle.arena_id)
    assert bytes(HostArena.adopt(orphan.pid, orphan.fd).view(0, 2)) == b"hi"
    mapped.close()
