"""The file behind a host arena: its name, its layout and how another process reaches it.

    | data, padded to a page | tail | padding | trailer, 64 bytes |

The file has no path: it lives as long as some process holds it open or mapped, so nothing is left behind
after any crash. It describes itself (name and trailer), so a restarted owner can take it over from an
engine that still maps it. Whoever owns it holds an exclusive flock, which the kernel drops with the owner's
last descriptor: a file without that lock is an orphan.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import mmap
import os
import struct
from dataclasses import dataclass
from pathlib import Path

from blake3 import blake3

from ray_weights.errors import ArenaError, ArenaGone

_NAME_PREFIX = "ray_weights:"
_NAME_MAX = 249
"""Limit of memfd_create, in bytes."""
_TRAILER = struct.Struct("<8sQQ16s")
_MAGIC = b"rwarena1"
TRAILER_NBYTES = 64
F_SEAL_FUTURE_WRITE = 0x0010
"""Linux 5.1; not in Python's fcntl before 3.13."""


@dataclass(frozen=True, slots=True)
class FileLayout:
    """Where things lie in the file."""

    nbytes: int
    tail_nbytes: int

    @property
    def tail_offset(self) -> int:
        return _round_up(self.nbytes)

    @property
    def file_nbytes(self) -> int:
        return self.tail_offset + _round_up(self.tail_nbytes + TRAILER_NBYTES)


def create(arena_id: str, layout: FileLayout) -> int:
    """A new file of fixed size, owned by this process. Touches only the page of the trailer."""
    name = _NAME_PREFIX + arena_id
    if not arena_id or "\0" in arena_id or len(name.encode()) > _NAME_MAX:
        limit = _NAME_MAX - len(_NAME_PREFIX)
        raise ValueError(f"an arena id has 1 to {limit} bytes and no NUL, not {arena_id!r}")
    fd = os.memfd_create(name, os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    try:
        os.ftruncate(fd, layout.file_nbytes)
        # A mapping of a file that can shrink is a SIGBUS in waiting.
        fcntl.fcntl(fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW)
        trailer = _TRAILER.pack(_MAGIC, layout.nbytes, layout.tail_nbytes, _trailer_digest(arena_id, layout))
        os.pwrite(fd, trailer, layout.file_nbytes - TRAILER_NBYTES)
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BaseException:
        os.close(fd)
        raise
    return fd


def read_layout(fd: int, arena_id: str) -> FileLayout:
    """What the trailer says; ArenaError unless it is intact and belongs to `arena_id`."""
    size = os.fstat(fd).st_size
    packed = os.pread(fd, _TRAILER.size, max(size - TRAILER_NBYTES, 0))
    if len(packed) == _TRAILER.size:
        magic, nbytes, tail_nbytes, digest = _TRAILER.unpack(packed)
        layout = FileLayout(nbytes, tail_nbytes)
        if (magic, layout.file_nbytes, digest) == (_MAGIC, size, _trailer_digest(arena_id, layout)):
            return layout
    raise ArenaError(f"the memory named {arena_id!r} is no arena of this version of ray_weights")


def open_shared(pid: int, fd: int, *, writable: bool) -> tuple[int, str]:
    """Open descriptor `fd` of process `pid` anew; returns the new descriptor and the arena id.

    Raises ArenaGone when the process has ended or may not be looked into, ArenaError when that is no arena.
    """
    path = f"/proc/{pid}/fd/{fd}"
    try:
        opened = os.open(path, (os.O_RDWR if writable else os.O_RDONLY) | os.O_CLOEXEC)
    except PermissionError as error:
        raise ArenaGone(
            f"not permitted to map memory of process {pid}: run the engine and the transfer actor as the "
            "same user and, in containers, in the same one"
        ) from error
    except (FileNotFoundError, ProcessLookupError) as error:
        raise ArenaGone(
            f"process {pid} holds no memory {fd}: it has ended, or runs in another container than this "
            "process (the engine and the transfer actor need one PID namespace); open the shard again"
        ) from error
    except OSError as error:
        if error.errno != errno.ENXIO:  # a socket: the descriptor's number was used again
            raise
        raise ArenaError(f"{path} is no arena") from error
    # Ask the opened file: the pid or the descriptor may belong to something else by now.
    arena_id = _arena_id(f"/proc/self/fd/{opened}")
    if arena_id is None:
        os.close(opened)
        raise ArenaGone(f"{path} is no arena: its owner has given it back; open the shard again")
    return opened, arena_id


def map_file(fd: int, nbytes: int, *, shared: bool, writable: bool = True) -> mmap.mmap:
    """Map the file from its beginning, in huge pages where the system lends them to shared memory.

    It does when /sys/kernel/mm/transparent_hugepage/shmem_enabled says `advise` (`never` is the usual default): first
    writes are then ten times as fast, and reads by peers on the same host almost twice.
    """
    protection = mmap.PROT_READ | mmap.PROT_WRITE if writable else mmap.PROT_READ
    mapping = mmap.mmap(fd, nbytes, mmap.MAP_SHARED if shared else mmap.MAP_PRIVATE, protection)
    with contextlib.suppress(OSError):  # a kernel without huge pages
        mapping.madvise(mmap.MADV_HUGEPAGE)
    return mapping


def take_ownership(fd: int, arena_id: str) -> None:
    """Become the owner; ArenaError while another process is."""
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise ArenaError(f"arena {arena_id!r} has a living owner") from error


def give_up_ownership(fd: int) -> None:
    """Let others adopt, even while views in this process keep the file open."""
    fcntl.flock(fd, fcntl.LOCK_UN)


def seal(fd: int) -> None:
    """Forbid new writable shared mappings."""
    fcntl.fcntl(fd, fcntl.F_ADD_SEALS, F_SEAL_FUTURE_WRITE)


def is_sealed(fd: int) -> bool:
    return bool(fcntl.fcntl(fd, fcntl.F_GET_SEALS) & F_SEAL_FUTURE_WRITE)


@dataclass(frozen=True, slots=True)
class Orphan:
    """An arena without an owner, kept alive by process `pid`, which has it open as `fd`."""

    arena_id: str
    pid: int
    fd: int


def find_orphans(prefix: str = "") -> list[Orphan]:
    """Arenas that nobody owns any more and whose id begins with `prefix`: one entry each, whoever holds it.

    Looks through the descriptors of all processes that this user may look into.
    """
    found: dict[tuple[int, int], Orphan] = {}
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        try:
            links = list((entry / "fd").iterdir())
        except OSError:
            continue  # ended meanwhile, or another user's
        for link in links:
            arena_id = _arena_id(str(link))
            if arena_id is None or not arena_id.startswith(prefix):
                continue
            try:
                identity = _identity_if_orphaned(link)
            except OSError:
                continue
            if identity is not None:
                found.setdefault(identity, Orphan(arena_id, int(entry.name), int(link.name)))
    return sorted(found.values(), key=lambda orphan: (orphan.arena_id, orphan.pid, orphan.fd))


def _identity_if_orphaned(link: Path) -> tuple[int, int] | None:
    fd = os.open(link, os.O_RDONLY | os.O_CLOEXEC)
    try:
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
        stat = os.fstat(fd)
        return stat.st_dev, stat.st_ino
    except BlockingIOError:
        return None
    finally:
        os.close(fd)


def _arena_id(link: str) -> str | None:
    """The arena behind a /proc/.../fd link, None when it is something else."""
    start, end = f"/memfd:{_NAME_PREFIX}", " (deleted)"
    try:
        target = os.readlink(link)
    except OSError:
        return None
    return target[len(start) : -len(end)] if target.startswith(start) and target.endswith(end) else None


def _trailer_digest(arena_id: str, layout: FileLayout) -> bytes:
    return blake3(f"{arena_id}\0{layout.nbytes}\0{layout.tail_nbytes}".encode()).digest(length=16)


def _round_up(nbytes: int) -> int:
    return -(-nbytes // mmap.PAGESIZE) * mmap.PAGESIZE
