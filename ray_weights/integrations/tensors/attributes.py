"""What loading changes on a module beside its tensors: plain Python values.

A receiver never runs the model's own load_weights. Flags and numbers that it would set (which embeddings an EAGLE
draft owns, scales mirrored as floats) travel with the manifest instead.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import nn

from ray_weights.errors import CaptureUnsupported
from ray_weights.integrations.tensors.facts import tensors_of

Scalar = bool | int | float | str | None
Attributes = tuple[tuple[str, str], ...]

LOADED_BUFFERS = "*loaded buffers*"
"""Name of the attribute that lists the buffers which loading wrote. No Python attribute can be called so."""


@dataclass(frozen=True, slots=True)
class Snapshot:
    """The state of a module beside its parameters, taken before loading."""

    scalars: Mapping[str, str]
    """JSON by dotted name."""
    hung_tensors: Mapping[str, tuple[object, ...]]
    """Tensors that are plain attributes, neither parameter nor buffer: what tells whether they changed."""
    buffers: Mapping[str, torch.Tensor]
    """Copies of those that are not persistent."""


def snapshot(module: nn.Module) -> Snapshot:
    """Take the state that changed_by_loading compares with. Copies the buffers that are not persistent."""
    return Snapshot(
        scalars=_scalars(module),
        hung_tensors=_hung_tensors(module),
        buffers={n: b.detach().clone() for n, b in _computed_buffers(module).items()},
    )


def changed_by_loading(module: nn.Module, before: Snapshot) -> Attributes:
    """What a receiver has to set, as (dotted name, JSON value), sorted.

    LOADED_BUFFERS lists the non-persistent buffers that loading wrote. Those that it left alone each replica computes
    for itself when it builds the model, and they may rightly differ: a rotary cache depends on the maximum length.

    Raises:
        CaptureUnsupported: loading changed something that cannot travel, which the message names.
    """
    now = _hung_tensors(module)
    for name, identity in now.items():
        if before.hung_tensors.get(name) != identity:
            raise CaptureUnsupported(f"loading set the tensor {name!r}, which is neither parameter nor buffer")
    after = _scalars(module)
    changed = {name: value for name, value in after.items() if before.scalars.get(name) != value}
    own = _computed_buffers(module)
    written = sorted(n for n, b in own.items() if n not in before.buffers or not _same_bytes(b, before.buffers[n]))
    if written:
        changed[LOADED_BUFFERS] = json.dumps(written)
    return tuple(sorted(changed.items()))


def apply_attributes(module: nn.Module, attributes: Attributes) -> None:
    """Set on a receiver what loading set on the origin.

    Raises:
        CaptureUnsupported: there is no such submodule; nothing was changed.
    """
    modules = dict(module.named_modules(remove_duplicate=False))
    todo: list[tuple[nn.Module, str, Scalar]] = []
    for name, value in attributes:
        if name == LOADED_BUFFERS:
            continue
        owner, _, leaf = name.rpartition(".")
        if owner not in modules:
            raise CaptureUnsupported(f"the source's loader set {name!r}, but there is no module {owner!r} here")
        todo.append((modules[owner], leaf, json.loads(value)))
    for target, leaf, plain in todo:
        setattr(target, leaf, plain)


def untouched_buffers(module: nn.Module, attributes: Attributes) -> frozenset[str]:
    """Non-persistent buffers that the origin's loader did not write: a receiver keeps its own."""
    return frozenset(_computed_buffers(module)) - set(json.loads(dict(attributes).get(LOADED_BUFFERS, "[]")))


def check_no_hidden_views(module: nn.Module) -> None:
    """Raise CaptureUnsupported where a plain attribute shares memory with a parameter or buffer.

    Moving that parameter to an arena would leave the attribute behind, on memory that nobody fills.
    """
    owned = {t.untyped_storage().data_ptr(): n for n, t in tensors_of(module).items() if t.numel() and not t.is_meta}
    objects = {id(t) for t in tensors_of(module).values()}
    for name, t in _walk_hung_tensors(module):
        if id(t) not in objects and t.numel() and not t.is_meta and t.untyped_storage().data_ptr() in owned:
            raise CaptureUnsupported(
                f"the tensor {name!r} shares memory with {owned[t.untyped_storage().data_ptr()]!r}"
            )


def _computed_buffers(module: nn.Module) -> dict[str, torch.Tensor]:
    """Non-persistent buffers: in no checkpoint, so the module computes them when it is built."""
    return {
        f"{path}.{leaf}" if path else leaf: buffer
        for path, part in module.named_modules(remove_duplicate=False)
        for leaf, buffer in part._buffers.items()
        if buffer is not None and leaf in part._non_persistent_buffers_set
    }


_TORCH_OWN = frozenset(nn.Module().__dict__)


def _plain_items(module: nn.Module) -> Iterable[tuple[str, object]]:
    for path, part in module.named_modules(remove_duplicate=False):
        prefix = f"{path}." if path else ""
        for leaf, value in part.__dict__.items():
            if leaf not in _TORCH_OWN:
                yield prefix + leaf, value


def _scalars(module: nn.Module) -> dict[str, str]:
    # bool is an int, and numpy's float64 is a float: json writes all of them.
    return {n: json.dumps(v) for n, v in _plain_items(module) if v is None or isinstance(v, (bool, int, float, str))}


def _walk_hung_tensors(module: nn.Module) -> Iterable[tuple[str, torch.Tensor]]:
    for name, value in _plain_items(module):
        if isinstance(value, torch.Tensor):
            yield name, value
        elif isinstance(value, (list, tuple)):
            yield from ((f"{name}[{i}]", v) for i, v in enumerate(value) if isinstance(v, torch.Tensor))
        elif isinstance(value, dict):
            yield from ((f"{name}[{k!r}]", v) for k, v in value.items() if isinstance(v, torch.Tensor))


def _hung_tensors(module: nn.Module) -> dict[str, tuple[object, ...]]:
    known = {id(t) for t in tensors_of(module).values()}
    found: dict[str, tuple[object, ...]] = {}
    for name, t in _walk_hung_tensors(module):
        if id(t) in known:
            continue  # a second reference to a parameter or buffer, which stays the same object in an arena
        version = None if t.is_inference() else t._version
        found[name] = (id(t), version, tuple(t.shape), t.dtype)
    return found


def _same_bytes(one: torch.Tensor, other: torch.Tensor) -> bool:
    """Equal in every bit: a NaN equals itself, which torch.equal denies."""
    if one.shape != other.shape or one.dtype != other.dtype or one.device != other.device:
        return False
    if one.numel() == 0:
        return True
    flat = [t.detach().contiguous().flatten().view(torch.uint8) for t in (one, other)]
    return torch.equal(flat[0], flat[1])
