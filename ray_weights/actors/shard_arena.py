"""An arena with the manifest and the progress page of the shard that lives in it.

The tail holds: the length of a record, the record (shard key, version, manifest), and, page-aligned, the progress page.
So an arena describes itself: a restarted transfer actor that finds it in an engine's hands knows what it is.
"""

from __future__ import annotations

import struct

from ray_weights.core import page
from ray_weights.core.manifest import DIGEST_NBYTES, Manifest, chunk_count, chunk_span
from ray_weights.core.page import PageIdentity, PageState
from ray_weights.errors import ArenaError
from ray_weights.memory.arena import Arena, Region
from ray_weights.memory.handles import ArenaHandle
from ray_weights.schemas.base import Frozen
from ray_weights.schemas.keys import ShardKey

_LENGTH = struct.Struct("<QQ")
_ATTRIBUTES_NBYTES = 64 * 1024
_KEY_NBYTES = 16 * 1024
_PAGE_SIZE = 4096


class Record(Frozen):
    """What an arena says of itself."""

    shard: ShardKey
    version: int
    manifest: bytes


def tail_nbytes(layout_json_nbytes: int, chunks: int) -> int:
    """Room for the record and the page of a shard, given the size of its layout as JSON."""
    manifest = layout_json_nbytes + 2 * DIGEST_NBYTES * chunks + _ATTRIBUTES_NBYTES
    record = 4 * manifest // 3 + _KEY_NBYTES  # the manifest is stored as base64
    return _round_up(record) + _round_up(page.page_nbytes(chunks)) + _PAGE_SIZE


class ShardArena:
    """The memory of one shard version in this process."""

    def __init__(self, arena: Arena, shard: ShardKey, version: int, nbytes: int, chunk_nbytes: int) -> None:
        self.arena = arena
        self.shard = shard
        self.version = version
        self.nbytes = nbytes
        self.chunk_nbytes = chunk_nbytes
        self.chunks = chunk_count(nbytes, chunk_nbytes)
        self.manifest: Manifest | None = None
        self._page_offset = len(arena.tail) // _PAGE_SIZE * _PAGE_SIZE - _round_up(page.page_nbytes(self.chunks))
        if self._page_offset < _PAGE_SIZE:
            raise ArenaError(f"the tail of {len(arena.tail)} bytes has no room for {self.chunks} chunks")
        self._page = arena.tail[self._page_offset : self._page_offset + page.page_nbytes(self.chunks)]
        self._page[:] = bytes(len(self._page))

    @property
    def data(self) -> Region:
        return self.arena.data

    @property
    def page_address(self) -> int:
        return self.arena.tail_region.address + self._page_offset

    def handle(self) -> ArenaHandle:
        return self.arena.handle()

    def digest(self, chunk: int, algorithm: str) -> bytes:
        """Of a chunk as it is in memory now. Raises ArenaError for an algorithm that is not known here."""
        return self.arena.digest(*chunk_span(chunk, self.nbytes, self.chunk_nbytes), algorithm)

    def digests(self, algorithm: str) -> tuple[bytes, ...]:
        """Of every chunk."""
        return tuple(self.digest(c, algorithm) for c in range(self.chunks))

    def describe(self, manifest: Manifest) -> None:
        """Write what this arena is into its tail, and an empty page that may be served from."""
        self.manifest = manifest
        record = Record(shard=self.shard, version=self.version, manifest=manifest.to_bytes())
        data = record.model_dump_json().encode()
        if _LENGTH.size + len(data) > self._page_offset:
            raise ArenaError(f"the record of {self.shard} needs {len(data)} bytes, the tail has {self._page_offset}")
        self.arena.tail[_LENGTH.size : _LENGTH.size + len(data)] = data
        _LENGTH.pack_into(self.arena.tail, 0, len(data), self.chunk_nbytes)
        self.write_page(PageState.SERVING)

    def write_page(self, state: PageState) -> None:
        assert self.manifest is not None, "only an arena with a manifest has a page"
        identity = PageIdentity(self.version, self.manifest.digest(), page_token(self.arena.arena_id))
        page.write_header(self._page, identity, state, self.chunks)

    def advertise(self, chunk: int) -> None:
        page.mark_ready(self._page, chunk)

    def advertise_all(self) -> None:
        for chunk in range(self.chunks):
            page.mark_ready(self._page, chunk)

    def leave(self) -> None:
        """Send children elsewhere: this member serves the shard from another arena now."""
        if self.manifest is not None:
            self.write_page(PageState.MOVED)

    def shut(self) -> None:
        """Nothing here may be relied on any more."""
        if self.manifest is not None:
            self.write_page(PageState.CLOSED)

    def close(self) -> None:
        self._page.release()
        self.arena.close()


def read_record(tail: memoryview) -> Record:
    """What the arena that this tail belongs to says of itself. ValueError when it says nothing that makes sense."""
    length, _ = _LENGTH.unpack_from(tail, 0)
    if not 0 < length <= len(tail) - _LENGTH.size:
        raise ValueError("the arena was never sealed")
    return Record.model_validate_json(bytes(tail[_LENGTH.size : _LENGTH.size + length]))


def page_token(arena_id: str) -> str:
    """The part of an arena's id that differs from one arena to the next: it fits into the page's header."""
    return arena_id.rpartition(".")[2]


def _round_up(nbytes: int) -> int:
    return -(-nbytes // _PAGE_SIZE) * _PAGE_SIZE
