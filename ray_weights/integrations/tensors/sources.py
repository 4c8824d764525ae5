"""What can be published: a torch module, a dict of tensors, a directory of safetensors.

Equal tensors under equal names give equal layouts, whichever of the three they come from: tensors are laid out by name,
and of a module what its state_dict has counts.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Protocol

import torch
from safetensors import safe_open
from torch import nn

from ray_weights.core.layout import Layout, TensorFacts, build_layout
from ray_weights.errors import CaptureUnsupported
from ray_weights.integrations.tensors.facts import copy_elements, layout_of, torch_dtype, view_of

_SAFETENSORS_DTYPES = {
    "BOOL": "bool",
    "U8": "uint8",
    "I8": "int8",
    "U16": "uint16",
    "I16": "int16",
    "U32": "uint32",
    "I32": "int32",
    "U64": "uint64",
    "I64": "int64",
    "F16": "float16",
    "BF16": "bfloat16",
    "F32": "float32",
    "F64": "float64",
    "C64": "complex64",
    "F8_E4M3": "float8_e4m3fn",
    "F8_E5M2": "float8_e5m2",
    "F8_E8M0": "float8_e8m0fnu",
}

OnBytes = Callable[[int], None]
"""Told the bytes that were copied since the last call."""


class Source(Protocol):
    """Tensors that can be copied into an arena."""

    @property
    def layout(self) -> Layout: ...

    @property
    def from_storage(self) -> bool: ...

    def fill(self, arena: torch.Tensor, on_bytes: OnBytes) -> None:
        """Copy every tensor to its place in `arena`, 1-D uint8."""
        ...


class TensorsSource:
    """Tensors in this process's memory, on any device."""

    from_storage = False

    def __init__(self, tensors: Mapping[str, torch.Tensor]) -> None:
        self._tensors = by_name(tensors)
        self.layout = layout_of(self._tensors)

    def fill(self, arena: torch.Tensor, on_bytes: OnBytes) -> None:
        for spec in self.layout.tensors:
            if spec.nbytes:
                copy_elements(view_of(arena, spec), self._tensors[spec.name])
                on_bytes(spec.nbytes)


class SafetensorsSource:
    """A safetensors file, or a directory of them. Read tensor by tensor, so there is never a second full copy."""

    from_storage = True

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self._files: dict[str, Path] = {}
        facts: dict[str, TensorFacts] = {}
        for file in safetensors_files(Path(path)):
            with safe_open(file, framework="pt") as opened:
                for name in opened.keys():  # noqa: SIM118 - not a dict
                    if name in facts:
                        raise CaptureUnsupported(f"tensor {name!r} is in {self._files[name].name} and in {file.name}")
                    part = opened.get_slice(name)
                    facts[name] = _facts(name, tuple(part.get_shape()), part.get_dtype(), len(facts))
                    self._files[name] = file
        ordered = [facts[n] for n in sorted(facts)]
        self.layout = build_layout(ordered, {f.dtype: torch_dtype(f.dtype).itemsize for f in ordered})

    def fill(self, arena: torch.Tensor, on_bytes: OnBytes) -> None:
        specs = {s.name: s for s in self.layout.tensors}
        for file in sorted(set(self._files.values())):
            with safe_open(file, framework="pt") as opened:
                for name in opened.keys():  # noqa: SIM118
                    spec = specs[name]
                    if spec.nbytes:
                        copy_elements(view_of(arena, spec), opened.get_tensor(name))
                        on_bytes(spec.nbytes)


def source_of(given: nn.Module | Mapping[str, torch.Tensor] | str | os.PathLike[str]) -> Source:
    """The source that `given` is.

    Raises:
        TypeError: it is none of the three kinds.
        FileNotFoundError: there is no such path, or no safetensors file in it.
        CaptureUnsupported: a tensor has no plain memory.
    """
    if isinstance(given, nn.Module):
        return TensorsSource(state_of(given))
    if isinstance(given, Mapping):
        return TensorsSource(given)
    if isinstance(given, (str, os.PathLike)):
        return SafetensorsSource(given)
    raise TypeError(f"publish takes a torch module, a dict of tensors or a path, not {type(given).__name__}")


def state_of(module: nn.Module) -> dict[str, torch.Tensor]:
    """The module's own tensors that its state_dict names, by name in sorted order."""
    return by_name(module.state_dict(keep_vars=True))


def by_name(tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Sorted by name. TypeError for a value that is no tensor."""
    for name, t in tensors.items():
        if not isinstance(name, str) or not isinstance(t, torch.Tensor):
            raise TypeError(f"{name!r} is {type(t).__name__}: only tensors by name can be published")
    return {n: tensors[n] for n in sorted(tensors)}


def safetensors_files(path: Path) -> list[Path]:
    """The safetensors files of a checkpoint, sorted. Where there is an index, those that it names."""
    if path.is_file():
        return [path]
    if not path.is_dir():
        raise FileNotFoundError(f"there is no {path}")
    files = sorted(path.glob("*.safetensors"))
    index = path / "model.safetensors.index.json"
    if index.is_file():
        # Some checkpoints hold the same tensors a second time, in one consolidated file.
        named = set(json.loads(index.read_text())["weight_map"].values())
        files = [path / n for n in sorted(named)]
    if not files:
        raise FileNotFoundError(f"there is no *.safetensors file in {path}")
    return files


def _facts(name: str, shape: tuple[int, ...], dtype: str, storage: int) -> TensorFacts:
    if dtype not in _SAFETENSORS_DTYPES:
        raise CaptureUnsupported(f"tensor {name!r} has the safetensors dtype {dtype}, which torch cannot hold")
    torch_name = _SAFETENSORS_DTYPES[dtype]
    stride: list[int] = []
    elements = 1
    for n in reversed(shape):
        stride.insert(0, elements)
        elements *= max(n, 1)  # as torch strides a tensor without elements
    empty = any(n == 0 for n in shape)
    return TensorFacts(
        name=name,
        shape=shape,
        dtype=torch_name,
        stride=tuple(stride),
        storage=storage,
        storage_offset=0,
        storage_nbytes=0 if empty else elements * torch_dtype(torch_name).itemsize,
    )
