"""Where each tensor of a shard lies in one linear byte space.

A layout is derived on both sides, from the model as the engine built it, before any weight is there; the two
must agree in every field. Tensors that share a storage (ties, views) share its span, so nothing is moved
twice and a non-contiguous tensor keeps its strides. A storage of zero bytes occupies nothing.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from ray_weights.errors import LayoutMismatch
from ray_weights.schemas.base import Frozen

ALIGNMENT = 256
"""Bytes. CUDA's own allocations are aligned so, and vector loads of every CPU need less."""


@dataclass(frozen=True, slots=True)
class TensorFacts:
    """A tensor as found in a model."""

    name: str
    shape: tuple[int, ...]
    dtype: str
    stride: tuple[int, ...]
    """In elements."""
    storage: int
    """Any number that is equal for tensors of one storage and differs otherwise."""
    storage_offset: int
    """Bytes from the start of the storage."""
    storage_nbytes: int


class TensorSpec(Frozen):
    """A tensor and its place."""

    name: str
    shape: tuple[int, ...]
    dtype: str
    stride: tuple[int, ...]
    offset: int
    """Bytes from the start of the arena."""
    nbytes: int
    """Bytes from its first to behind its last element; 0 for a tensor without elements."""


class Layout(Frozen):
    """Ordered tensors of one shard, laid end to end."""

    tensors: tuple[TensorSpec, ...]
    nbytes: int

    def digest(self) -> str:
        """SHA-256 of every field of every tensor, as hex."""
        h = hashlib.sha256()
        h.update(f"layout 1 {self.nbytes}\n".encode())
        for t in self.tensors:
            h.update(f"{t.name!r} {t.shape} {t.dtype} {t.stride} {t.offset} {t.nbytes}\n".encode())
        return h.hexdigest()


def span_nbytes(shape: tuple[int, ...], stride: tuple[int, ...], itemsize: int) -> int:
    """Bytes from the first to behind the last element of a strided tensor."""
    if any(n == 0 for n in shape):
        return 0
    return (1 + sum((n - 1) * s for n, s in zip(shape, stride, strict=True))) * itemsize


def build_layout(tensors: Iterable[TensorFacts], itemsizes: Mapping[str, int]) -> Layout:
    """Lay tensors end to end, in the order given, one span for each storage.

    Args:
        tensors: as found in the model; names must be unique.
        itemsizes: bytes of one element, by dtype name.

    Raises:
        LayoutMismatch: two tensors have one name, or a tensor reaches past its storage.
    """
    specs: list[TensorSpec] = []
    starts: dict[int, int] = {}
    names: set[str] = set()
    end = 0
    for t in tensors:
        if t.name in names:
            raise LayoutMismatch(f"two tensors are called {t.name!r}")
        names.add(t.name)
        nbytes = span_nbytes(t.shape, t.stride, itemsizes[t.dtype])
        if nbytes and t.storage_offset + nbytes > t.storage_nbytes:
            raise LayoutMismatch(f"tensor {t.name!r} reaches past its storage of {t.storage_nbytes} bytes")
        if nbytes == 0:
            specs.append(TensorSpec(name=t.name, shape=t.shape, dtype=t.dtype, stride=t.stride, offset=0, nbytes=0))
            continue
        if t.storage not in starts:
            starts[t.storage] = end
            end = _align(end + t.storage_nbytes)
        offset = starts[t.storage] + t.storage_offset
        specs.append(
            TensorSpec(name=t.name, shape=t.shape, dtype=t.dtype, stride=t.stride, offset=offset, nbytes=nbytes)
        )
    return Layout(tensors=tuple(specs), nbytes=end)


def first_difference(wanted: Layout, offered: Layout) -> str:
    """Name the first tensor and field in which a receiver's layout differs from the source's; "" if in
    none."""
    for w, o in zip(wanted.tensors, offered.tensors, strict=False):
        if w.name != o.name:
            missing = w.name not in {t.name for t in offered.tensors}
            return (
                f"tensor {w.name!r} is not in the source"
                if missing
                else f"tensor {o.name!r} of the source stands where the receiver has {w.name!r}"
            )
        for field in ("shape", "dtype", "stride", "nbytes", "offset"):
            mine, theirs = getattr(w, field), getattr(o, field)
            if mine != theirs:
                return f"tensor {w.name!r}: {field} is {_plain(mine)} here and {_plain(theirs)} at the source"
    if len(wanted.tensors) != len(offered.tensors):
        longer, where = (
            (wanted, "here but not at the source")
            if len(wanted.tensors) > len(offered.tensors)
            else (offered, "at the source but not here")
        )
        extra = longer.tensors[min(len(wanted.tensors), len(offered.tensors))]
        return f"tensor {extra.name!r} is {where}"
    if wanted.nbytes != offered.nbytes:
        return f"{wanted.nbytes} bytes here and {offered.nbytes} at the source"
    return ""


def _align(offset: int) -> int:
    return -(-offset // ALIGNMENT) * ALIGNMENT


def _plain(value: object) -> str:
    return str(list(value)) if isinstance(value, tuple) else str(value)
