"""Layout plus one digest per chunk: what makes a copy provably the same."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence

from ray_weights.core.layout import Layout
from ray_weights.schemas.base import Frozen
from ray_weights.schemas.members import Seal

KiB = 1024
MiB = 1024 * KiB
DIGEST_NBYTES = 16
_MANY_CHUNKS = 384
_FEW_CHUNKS = 96
_SHORTEST_CHUNK_SECONDS = 0.002
_SMALLEST = 256 * KiB
_LARGEST = 128 * MiB


class Manifest(Frozen):
    """Everything that a receiver must know of a shard before the first byte arrives."""

    layout: Layout
    chunk_nbytes: int
    digest_algorithm: str
    digests: tuple[bytes, ...]
    """One digest of DIGEST_NBYTES per chunk, in order."""
    attributes: tuple[tuple[str, str], ...] = ()
    """(dotted name, JSON value) of plain Python values that loading set on the model."""

    @property
    def nbytes(self) -> int:
        return self.layout.nbytes

    @property
    def chunks(self) -> int:
        return len(self.digests)

    def digest(self) -> str:
        """SHA-256 over the layout digest, every chunk digest and the attributes, as hex."""
        h = hashlib.sha256()
        h.update(f"manifest 1 {self.layout.digest()} {self.chunk_nbytes} {self.digest_algorithm}\n".encode())
        for d in self.digests:
            h.update(d)
        for name, value in self.attributes:
            h.update(f"\n{name}={value}".encode())
        return h.hexdigest()

    def seal(self) -> Seal:
        return Seal(
            layout_digest=self.layout.digest(),
            manifest_digest=self.digest(),
            nbytes=self.nbytes,
            chunk_nbytes=self.chunk_nbytes,
            chunks=self.chunks,
        )

    def to_bytes(self) -> bytes:
        """A form without pickle, for the tail of an arena and for peers."""
        stored = _Stored(**{f: getattr(self, f) for f in _SHARED_FIELDS}, digests_hex=b"".join(self.digests).hex())
        return stored.model_dump_json().encode()

    @classmethod
    def from_bytes(cls, data: bytes) -> Manifest:
        """Raises ValueError (pydantic's ValidationError is one) on anything that is not a manifest."""
        stored = _Stored.model_validate_json(data)
        raw = bytes.fromhex(stored.digests_hex)
        digests = tuple(raw[i : i + DIGEST_NBYTES] for i in range(0, len(raw), DIGEST_NBYTES))
        if len(raw) != DIGEST_NBYTES * chunk_count(stored.layout.nbytes, stored.chunk_nbytes):
            raise ValueError(f"{len(digests)} digests do not cover {stored.layout.nbytes} bytes")
        return cls(**{f: getattr(stored, f) for f in _SHARED_FIELDS}, digests=digests)


class _Stored(Frozen):
    """Digests as one hex string: a tenth of the size and time of a JSON list."""

    layout: Layout
    chunk_nbytes: int
    digest_algorithm: str
    digests_hex: str
    attributes: tuple[tuple[str, str], ...]


_SHARED_FIELDS = tuple(f for f in Manifest.model_fields if f != "digests")


def chunk_count(nbytes: int, chunk_nbytes: int) -> int:
    return -(-nbytes // chunk_nbytes)


def chunk_span(chunk: int, nbytes: int, chunk_nbytes: int) -> tuple[int, int]:
    """(offset, length) in bytes of a chunk; the last one may be shorter."""
    offset = chunk * chunk_nbytes
    return offset, min(chunk_nbytes, nbytes - offset)


def choose_chunk_nbytes(nbytes: int, *, rate: float = 0.0, wanted: int | None = None) -> tuple[int, str]:
    """Pick the chunk size for a shard.

    A hop of a chain costs the bytes of one window, so chunks should be small against the shard; each costs the
    receiver CPU time, so none should take less than 2 ms to arrive. A power of two where the rate decides, so that
    members that know slightly different rates choose alike.

    Args:
        rate: bytes per second that a flow is expected to have; 0 when unknown.
        wanted: bytes; overrules the choice.

    Returns:
        (bytes, reason).
    """
    if wanted is not None:
        return wanted, "set by the caller"
    by_count = -(-nbytes // _MANY_CHUNKS)
    by_time = 1 << math.ceil(math.log2(rate * _SHORTEST_CHUNK_SECONDS)) if rate > 0 else 0
    reason = f"about {_MANY_CHUNKS} chunks"
    if by_time > by_count:
        by_count, reason = by_time, f"at least {_SHORTEST_CHUNK_SECONDS * 1e3:.0f} ms each at {rate / 1e6:.0f} MB/s"
        if by_time > (most := -(-nbytes // _FEW_CHUNKS)):
            by_count, reason = most, f"at least {_FEW_CHUNKS} chunks"
    if by_count > _LARGEST:
        return _LARGEST, f"not above {_LARGEST // MiB} MiB"
    if by_count <= _SMALLEST:
        return _SMALLEST, f"not below {_SMALLEST // KiB} KiB"
    return -(-by_count // _SMALLEST) * _SMALLEST, reason


def bad_chunks(manifest: Manifest, digests: Sequence[bytes]) -> tuple[int, ...]:
    """Chunks whose digest is not the manifest's."""
    return tuple(i for i, (want, have) in enumerate(zip(manifest.digests, digests, strict=True)) if want != have)
