"""Reads the layout off a torch module or a dict of tensors."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from torch import nn

from ray_weights.core.layout import Layout, TensorFacts, TensorSpec, build_layout
from ray_weights.errors import CaptureUnsupported

NamedTensors = Mapping[str, torch.Tensor]


def tensors_of(module: nn.Module) -> dict[str, torch.Tensor]:
    """Every parameter and buffer by name, in the order in which the module has them.

    Ties appear under each of their names. Buffers that are not persistent are included: a loader may fill them too.
    """
    found: dict[str, torch.Tensor] = dict(module.named_parameters(remove_duplicate=False))
    found.update(module.named_buffers(remove_duplicate=False))
    return found


def layout_of(tensors: NamedTensors, *, device: torch.device | None = None) -> Layout:
    """Lay tensors out in the order given.

    Tensors that share a storage share its span. Of a storage only the part between the first and the last byte that
    some tensor names is laid out, so a small slice of a large storage does not drag the rest along.

    Args:
        device: where all tensors must be; None does not care.

    Raises:
        CaptureUnsupported: a tensor has no plain memory of its own (meta, sparse, not yet sized), or is elsewhere.
    """
    facts = facts_of(tensors, device=device)
    sizes = {f.dtype: torch_dtype(f.dtype).itemsize for f in facts}
    return build_layout(facts, sizes)


def facts_of(tensors: NamedTensors, *, device: torch.device | None = None) -> tuple[TensorFacts, ...]:
    """See layout_of. A tensor without elements gets a storage of its own: their addresses are all 0."""
    spans = _named_spans(tensors, device)
    facts = []
    for number, (name, t) in enumerate(tensors.items()):
        if t.numel() == 0:
            storage, start, end, offset = -1 - number, 0, 0, 0
        else:
            storage = t.untyped_storage().data_ptr()
            start, end = spans[storage]
            offset = int(t.storage_offset()) * t.itemsize
        facts.append(
            TensorFacts(
                name=name,
                shape=tuple(t.shape),
                dtype=dtype_name(t.dtype),
                stride=tuple(t.stride()),
                storage=storage,
                storage_offset=offset - start,
                storage_nbytes=end - start,
            )
        )
    return tuple(facts)


def view_of(arena: torch.Tensor, spec: TensorSpec) -> torch.Tensor:
    """The tensor of `spec` inside an arena (1-D uint8): shares its memory."""
    dtype = torch_dtype(spec.dtype)
    if spec.nbytes == 0:
        return torch.empty_strided(spec.shape, spec.stride, dtype=dtype, device=arena.device)
    flat = arena.narrow(0, spec.offset, spec.nbytes).view(dtype)
    return flat.as_strided(spec.shape, spec.stride)


def copy_elements(target: torch.Tensor, source: torch.Tensor) -> None:
    """Copy values between tensors of one shape; an expanded target gets each of its elements once."""
    repeated = [d for d, (n, s) in enumerate(zip(target.shape, target.stride(), strict=True)) if s == 0 and n > 1]
    with torch.no_grad():
        target, source = target.detach(), source.detach()
        for d in repeated:
            target, source = target.narrow(d, 0, 1), source.narrow(d, 0, 1)
        target.copy_(source)


def dtype_name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def torch_dtype(name: str) -> torch.dtype:
    dtype = getattr(torch, name, None)
    if not isinstance(dtype, torch.dtype):
        raise CaptureUnsupported(f"this torch ({torch.__version__}) has no dtype {name!r}")
    return dtype


def _named_spans(tensors: NamedTensors, device: torch.device | None) -> dict[int, tuple[int, int]]:
    """By storage: the range of bytes that the tensors name, its start aligned for the widest of them."""
    spans: dict[int, tuple[int, int]] = {}
    widest: dict[int, int] = {}
    for name, t in tensors.items():
        _check_plain(name, t, device)
        if t.numel() == 0:
            continue
        storage = t.untyped_storage().data_ptr()
        first = int(t.storage_offset()) * t.itemsize
        last = first + int(1 + sum((n - 1) * s for n, s in zip(t.shape, t.stride(), strict=True))) * t.itemsize
        if last > t.untyped_storage().nbytes():  # FSDP, for one, frees storages under living tensors
            raise CaptureUnsupported(f"the memory of tensor {name!r} has been freed")
        start, end = spans.get(storage, (first, last))
        spans[storage] = min(start, first), max(end, last)
        widest[storage] = max(widest.get(storage, 1), t.itemsize)
    return {s: (start // widest[s] * widest[s], end) for s, (start, end) in spans.items()}


def _check_plain(name: str, t: torch.Tensor, device: torch.device | None) -> None:
    if isinstance(t, (nn.UninitializedParameter, nn.UninitializedBuffer)):
        raise CaptureUnsupported(f"tensor {name!r} has no shape before it is loaded")
    if t.layout is not torch.strided or t.is_quantized:
        raise CaptureUnsupported(f"tensor {name!r} is not a plain strided tensor: {t.layout}")
    if t.is_meta:
        raise CaptureUnsupported(f"tensor {name!r} has no memory yet (device meta)")
    if device is not None and not same_device(t.device, device):
        raise CaptureUnsupported(f"tensor {name!r} is on {t.device}, not on {device}")


def same_device(one: torch.device, other: torch.device) -> bool:
    """Whether two device names mean one device; no index means the current one."""
    if one.type != other.type or one.type == "cpu":
        return one.type == other.type
    current = torch.accelerator.current_device_index()
    return (current if one.index is None else one.index) == (current if other.index is None else other.index)


def names(tensors: Iterable[str], *, most: int = 5) -> str:
    """A few names for a message."""
    listed = list(tensors)
    more = f" and {len(listed) - most} more" if len(listed) > most else ""
    return ", ".join(repr(n) for n in listed[:most]) + more
