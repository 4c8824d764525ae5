"""The progress page: identity, state, one byte per chunk."""

from __future__ import annotations

import pytest

from ray_weights.core.page import (
    HEADER_NBYTES,
    PageIdentity,
    PageState,
    PageView,
    mark_ready,
    page_nbytes,
    parse_page,
    write_header,
)

IDENTITY = PageIdentity(version=3, manifest_digest="ab" * 32, arena_id="0123456789abcdef")


def page(chunks: int = 4, state: PageState = PageState.SERVING) -> bytearray:
    data = bytearray(page_nbytes(chunks))
    write_header(memoryview(data), IDENTITY, state, chunks)
    return data


def test_a_new_page_shows_no_chunk() -> None:
    assert parse_page(page(), IDENTITY) == PageView(PageState.SERVING, b"\0\0\0\0")


def test_chunks_become_ready_in_any_order() -> None:
    data = page()
    mark_ready(memoryview(data), 2)
    mark_ready(memoryview(data), 0)
    seen = parse_page(data, IDENTITY)
    assert isinstance(seen, PageView) and seen.ready == b"\1\0\1\0"


def test_a_header_written_anew_keeps_what_is_ready() -> None:
    data = page()
    mark_ready(memoryview(data), 1)
    write_header(memoryview(data), IDENTITY, PageState.MOVED, 4)
    assert parse_page(data, IDENTITY) == PageView(PageState.MOVED, b"\0\1\0\0")


@pytest.mark.parametrize(
    "other",
    [
        PageIdentity(4, IDENTITY.manifest_digest, IDENTITY.arena_id),
        PageIdentity(3, "cd" * 32, IDENTITY.arena_id),
        PageIdentity(3, IDENTITY.manifest_digest, "another"),
    ],
)
def test_a_page_of_another_version_manifest_or_arena_is_not_believed(other: PageIdentity) -> None:
    assert "another arena" in str(parse_page(page(), other))


def test_memory_that_was_given_back_is_recognized() -> None:
    assert "no header" in str(parse_page(bytes(page_nbytes(4)), IDENTITY))


def test_a_page_that_is_too_short_is_not_believed() -> None:
    assert "only" in str(parse_page(b"", IDENTITY))
    assert "ends after 3 of 4" in str(parse_page(page()[: HEADER_NBYTES + 3], IDENTITY))


def test_an_unknown_state_is_not_believed() -> None:
    data = page()
    data[8] = 77
    assert "unknown state 77" in str(parse_page(data, IDENTITY))
