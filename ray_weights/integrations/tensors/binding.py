"""Moves the tensors of a module into an arena, back out of it, and finds those that a loader put elsewhere."""

from __future__ import annotations

from collections.abc import Collection

import torch

from ray_weights.core.layout import Layout, TensorSpec, first_difference
from ray_weights.errors import CaptureUnsupported, LayoutMismatch
from ray_weights.integrations.tensors.facts import NamedTensors, copy_elements, layout_of, names, torch_dtype, view_of


def bind(
    tensors: NamedTensors, layout: Layout, arena: torch.Tensor, *, keep_values: bool, leave: Collection[str] = ()
) -> None:
    """Make every tensor a strided view into the arena. The tensor objects stay the same, and so do ties.

    Everything is checked before the first tensor is touched.

    Args:
        tensors: those that `layout` was read off, or ones with equal facts.
        arena: 1-D uint8 of at least layout.nbytes.
        keep_values: copy the present values into the arena first. An origin must: what a module computes when it is
            built (rotary caches, default scales) is in no checkpoint. On a receiver the arena has every byte already.
        leave: names of tensors that stay where they are.

    Raises:
        LayoutMismatch: the tensors are not those of the layout; nothing was changed.
    """
    _check_same(tensors, layout, arena)
    if keep_values:
        copy_into(tensors, layout, arena)
    for spec in layout.tensors:
        if spec.nbytes and spec.name not in leave:
            tensors[spec.name].data = view_of(arena, spec)


def copy_into(tensors: NamedTensors, layout: Layout, arena: torch.Tensor) -> None:
    """Copy the tensors' values to their places in the arena."""
    done: set[tuple[int, tuple[int, ...], tuple[int, ...], str]] = set()
    for spec in layout.tensors:
        place = (spec.offset, spec.shape, spec.stride, spec.dtype)
        if spec.nbytes and place not in done:
            copy_elements(view_of(arena, spec), tensors[spec.name])
            done.add(place)


def settle(tensors: NamedTensors, layout: Layout, arena: torch.Tensor) -> tuple[str, ...]:
    """After loading: bring tensors back that are no longer at their place in the arena.

    A loader may replace a parameter or its data instead of writing into it. Where shape, dtype and stride are still
    those of the layout, the values are copied to their place and the tensor is bound to it again.

    Returns:
        Names of the tensors that were brought back.

    Raises:
        CaptureUnsupported: tensors came, went or changed their form: the arena does not hold this model.
    """
    known = {s.name for s in layout.tensors}
    if gone := known - tensors.keys():
        raise CaptureUnsupported(f"loading removed {names(sorted(gone))}")
    if new := tensors.keys() - known:
        raise CaptureUnsupported(f"loading added {names(sorted(new))}")
    moved = []
    for spec in layout.tensors:
        t = tensors[spec.name]
        if (tuple(t.shape), tuple(t.stride()), t.dtype) != (spec.shape, spec.stride, torch_dtype(spec.dtype)):
            raise CaptureUnsupported(
                f"loading changed tensor {spec.name!r} from {spec.dtype} {list(spec.shape)} to "
                f"{t.dtype} {list(t.shape)} with strides {list(t.stride())}"
            )
        if spec.nbytes and not _is_at(t, arena, spec):
            moved.append(spec)
    for spec in moved:
        copy_elements(view_of(arena, spec), tensors[spec.name])
    for spec in moved:
        t = tensors[spec.name]
        # A tie made by loading has one tensor and two places: it keeps the one it was bound to first.
        if not _is_inside(t, arena):
            t.data = view_of(arena, spec)
    return tuple(s.name for s in moved)


def release(tensors: NamedTensors, arena: torch.Tensor) -> None:
    """Copy every tensor that is in the arena to memory of its own. Tensors that share bytes go on sharing them."""
    inside = {name: t for name, t in tensors.items() if _is_inside(t, arena)}
    layout = layout_of(inside)
    own = torch.empty(layout.nbytes, dtype=torch.uint8, device=arena.device)
    bind(inside, layout, own, keep_values=True)


def check_matches(tensors: NamedTensors, source: Layout) -> None:
    """Raise LayoutMismatch unless the source has every tensor, in the same form, under the same name.

    A tensor tied to another one may be missing at the source: checkpoints carry one name of a tie.
    """
    offered = {s.name: s for s in source.tensors}
    wanted = {s.name: s for s in layout_of(tensors).tensors}
    held = {(s.offset, s.nbytes) for name, s in wanted.items() if name in offered}
    for name, w in wanted.items():
        o = offered.get(name)
        if o is None:
            if w.nbytes and (w.offset, w.nbytes) in held:
                continue
            raise LayoutMismatch(f"tensor {name!r} is not in the source")
        for field in ("shape", "dtype", "stride"):
            mine, theirs = getattr(w, field), getattr(o, field)
            if mine != theirs:
                raise LayoutMismatch(
                    f"tensor {name!r}: {field} is {_plain(mine)} here and {_plain(theirs)} at the source"
                )
    for name in offered:
        if name not in wanted:
            raise LayoutMismatch(f"tensor {name!r} is at the source but not here")


def _check_same(tensors: NamedTensors, layout: Layout, arena: torch.Tensor) -> None:
    if arena.dtype != torch.uint8 or arena.dim() != 1 or arena.numel() < layout.nbytes:
        raise ValueError(f"an arena is 1-D uint8 of at least {layout.nbytes} bytes, not {arena.dtype} {arena.shape}")
    if tensors.keys() != {s.name for s in layout.tensors} and (d := first_difference(layout_of(tensors), layout)):
        raise LayoutMismatch(d)
    for spec in layout.tensors:
        t = tensors[spec.name]
        if (tuple(t.shape), tuple(t.stride()), t.dtype) != (spec.shape, spec.stride, torch_dtype(spec.dtype)):
            raise LayoutMismatch(
                f"tensor {spec.name!r} is {t.dtype} {list(t.shape)} with strides {list(t.stride())} here, and "
                f"{spec.dtype} {list(spec.shape)} with strides {list(spec.stride)} in the layout"
            )


def _is_at(t: torch.Tensor, arena: torch.Tensor, spec: TensorSpec) -> bool:
    return t.device == arena.device and t.data_ptr() == arena.data_ptr() + spec.offset


def _is_inside(t: torch.Tensor, arena: torch.Tensor) -> bool:
    start = arena.data_ptr()
    return t.numel() > 0 and t.device == arena.device and start <= t.data_ptr() < start + arena.numel()


def _plain(value: object) -> str:
    return str(list(value)) if isinstance(value, tuple) else str(value)
