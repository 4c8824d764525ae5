"""Layout plus one digest per chunk: what makes a copy provably the same."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

from ray_weights.core.layout import Layout
from ray_weights.schemas.base import Frozen
from ray_weights.schemas.members import Seal

KiB = 1024
MiB = 1024 * KiB
DIGEST_NBYTES = 16


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


def choose_chunk_nbytes(nbytes: int, *, wanted: int | None = None) -> tuple[int, str]:
    """Pick the chunk size for a shard.

    A relay adds about one chunk time per hop, so chunks should be small against the shard (128 to 256 of
    them); each costs a round trip and a digest call, so they should not be smaller than 256 KiB nor larger
    than 128 MiB.

    Returns:
        (bytes, reason).
    """
    if wanted is not None:
        return wanted, "set by the caller"
    size = -(-nbytes // 192)
    rounded = -(-size // (256 * KiB)) * (256 * KiB)
    chosen = min(max(rounded, 256 * KiB), 128 * MiB)
    return chosen, f"{nbytes} bytes in about 192 chunks, between 256 KiB and 128 MiB each"


def bad_chunks(manifest: Manifest, digests: Sequence[bytes]) -> tuple[int, ...]:
    """Chunks whose digest is not the manifest's."""
    return tuple(i for i, (want, have) in enumerate(zip(manifest.digests, digests, strict=True)) if want != have)
