"""Layout plus digests, and the form in which peers send it."""

from __future__ import annotations

import pytest

from ray_weights.core.layout import Layout, TensorSpec
from ray_weights.core.manifest import (
    DIGEST_NBYTES,
    KiB,
    Manifest,
    MiB,
    bad_chunks,
    choose_chunk_nbytes,
    chunk_count,
    chunk_span,
)


def manifest(nbytes: int = 1000, chunk_nbytes: int = 300) -> Manifest:
    spec = TensorSpec(name="t", shape=(nbytes,), dtype="uint8", stride=(1,), offset=0, nbytes=nbytes)
    digests = tuple(bytes([i]) * DIGEST_NBYTES for i in range(chunk_count(nbytes, chunk_nbytes)))
    return Manifest(
        layout=Layout(tensors=(spec,), nbytes=nbytes),
        chunk_nbytes=chunk_nbytes,
        digest_algorithm="blake3",
        digests=digests,
        attributes=(("layer.scale", "0.5"),),
    )


def test_a_manifest_survives_the_way_to_a_peer() -> None:
    assert Manifest.from_bytes(manifest().to_bytes()) == manifest()


def test_an_empty_shard_has_a_manifest_without_digests() -> None:
    empty = Manifest(layout=Layout(tensors=(), nbytes=0), chunk_nbytes=1, digest_algorithm="blake3", digests=())
    assert Manifest.from_bytes(empty.to_bytes()).chunks == 0


@pytest.mark.parametrize("data", [b"", b"{}", b"\x80\x04", b'{"layout": 1}'])
def test_anything_else_is_refused(data: bytes) -> None:
    with pytest.raises(ValueError):
        Manifest.from_bytes(data)


def test_digests_that_do_not_cover_the_bytes_are_refused() -> None:
    short = manifest().model_copy(update={"digests": manifest().digests[:-1]})
    with pytest.raises(ValueError, match="do not cover"):
        Manifest.from_bytes(short.to_bytes())


@pytest.mark.parametrize(
    "change",
    [
        {"digests": (b"x" * DIGEST_NBYTES, *manifest().digests[1:])},
        {"attributes": ()},
        {"digest_algorithm": "other"},
        {"layout": manifest(nbytes=1001).layout},
    ],
)
def test_whatever_differs_changes_the_digest(change: dict[str, object]) -> None:
    assert manifest().model_copy(update=change).digest() != manifest().digest()


def test_the_last_chunk_may_be_shorter() -> None:
    assert [chunk_span(i, 1000, 300) for i in range(chunk_count(1000, 300))] == [
        (0, 300),
        (300, 300),
        (600, 300),
        (900, 100),
    ]


def test_bad_chunks_are_those_whose_digest_differs() -> None:
    digests = list(manifest().digests)
    digests[2] = b"?" * DIGEST_NBYTES
    assert bad_chunks(manifest(), digests) == (2,)


@pytest.mark.parametrize(
    ("nbytes", "rate", "chunk_nbytes", "why"),
    [
        (10 * MiB, 0.0, 256 * KiB, "not below"),
        (384 * MiB, 0.0, 1 * MiB, "about 384 chunks"),
        (384 * MiB, 1e6, 1 * MiB, "about 384 chunks"),
        (384 * MiB, 1e9, 2 * MiB, "at least 2 ms each at 1000 MB/s"),
        (384 * MiB, 1.02e9, 2 * MiB, "at least 2 ms"),  # a rate that is hardly another one changes nothing
        (384 * MiB, 100e9, 4 * MiB, "at least 96 chunks"),
        (17_500 * MiB, 45e9, 128 * MiB, "at least 2 ms"),
        (100_000 * MiB, 0.0, 128 * MiB, "not above"),
    ],
)
def test_a_shard_is_cut_into_a_useful_number_of_chunks(nbytes: int, rate: float, chunk_nbytes: int, why: str) -> None:
    size, reason = choose_chunk_nbytes(nbytes, rate=rate)
    assert size == chunk_nbytes and why in reason


def test_a_chunk_size_that_the_caller_sets_is_taken() -> None:
    assert choose_chunk_nbytes(100, wanted=7) == (7, "set by the caller")
