"""The progress page: what a parent says to its children without running any code.

A few kilobytes of registered memory beside each arena, read by children with the same one-sided READ as the
weights. A header that identifies what is being served, then one byte per chunk: 1 once the chunk is verified.
One byte, so that a store is atomic and chunks may become ready in any order. A child that finds another
identity must leave: the memory now serves something else.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from enum import IntEnum

_HEADER = struct.Struct("<8sIIQ16s16s")
_MAGIC = b"rwpage1\0"
HEADER_NBYTES = 64
assert _HEADER.size <= HEADER_NBYTES


class PageState(IntEnum):
    """What a child may do with this arena."""

    SERVING = 1
    """Chunks marked ready may be read."""
    MOVED = 2
    """The member serves this shard from another arena now: ask it again."""
    CLOSED = 3
    """Nothing here may be relied on any more: ask the coordinator."""


@dataclass(frozen=True, slots=True)
class PageIdentity:
    """What an arena serves. Equal on both sides or the child leaves."""

    version: int
    manifest_digest: str
    """Hex; the first 16 bytes are in the page."""
    arena_id: str

    def _packed(self) -> tuple[int, bytes, bytes]:
        return (
            self.version,
            bytes.fromhex(self.manifest_digest)[:16],
            self.arena_id.encode()[:16].ljust(16, b"\0"),
        )


def page_nbytes(chunks: int) -> int:
    return HEADER_NBYTES + chunks


def write_header(page: memoryview, identity: PageIdentity, state: PageState, chunks: int) -> None:
    version, digest, arena = identity._packed()
    _HEADER.pack_into(page, 0, _MAGIC, int(state), chunks, version, digest, arena)


def mark_ready(page: memoryview, chunk: int) -> None:
    """Advertise a chunk. Call only once its bytes are verified in place."""
    page[HEADER_NBYTES + chunk] = 1


@dataclass(frozen=True, slots=True)
class PageView:
    """A page as a child read it."""

    state: PageState
    ready: bytes
    """One byte per chunk, 1 for ready."""


def parse_page(data: bytes | memoryview, identity: PageIdentity) -> PageView | str:
    """Read a page; a string says why it is not the page of `identity`."""
    if len(data) < HEADER_NBYTES:
        return f"the page has only {len(data)} bytes"
    magic, state, chunks, version, digest, arena = _HEADER.unpack_from(data, 0)
    if magic != _MAGIC:
        return "the page has no header: its memory was given back"
    if (version, digest, arena) != identity._packed():
        return "the page now belongs to another arena, version or manifest"
    if state not in PageState._value2member_map_:
        return f"the page has the unknown state {state}"
    ready = bytes(data[HEADER_NBYTES : HEADER_NBYTES + chunks])
    if len(ready) != chunks:
        return f"the page ends after {len(ready)} of {chunks} chunks"
    return PageView(PageState(state), ready)
