"""What can be published, and that the three kinds agree."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from ray_weights.errors import CaptureUnsupported
from ray_weights.integrations.tensors.facts import view_of
from ray_weights.integrations.tensors.sources import source_of


def module() -> nn.Module:
    torch.manual_seed(3)
    return nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3), nn.Linear(3, 2, bias=False))


@pytest.fixture
def directory(tmp_path):
    state = module().state_dict()
    names = list(state)
    save_file({n: state[n] for n in names[:3]}, tmp_path / "model-1.safetensors")
    save_file({n: state[n] for n in names[3:]}, tmp_path / "model-2.safetensors")
    return tmp_path


def filled(source) -> tuple[torch.Tensor, int]:
    arena = torch.zeros(source.layout.nbytes, dtype=torch.uint8)
    copied: list[int] = []
    source.fill(arena, copied.append)
    return arena, sum(copied)


def test_a_module_a_dict_and_a_directory_with_equal_tensors_are_the_same_bytes(directory):
    state = module().state_dict()
    backwards = {n: state[n] for n in reversed(state)}
    sources = [source_of(s) for s in (module(), backwards, directory, str(directory))]
    assert len({s.layout.digest() for s in sources}) == 1
    arenas = [filled(s)[0] for s in sources]
    assert all(torch.equal(a, arenas[0]) for a in arenas)


def test_every_byte_is_reported_and_every_tensor_is_in_its_place(directory):
    source = source_of(directory)
    arena, copied = filled(source)
    assert copied == sum(t.nbytes for t in source.layout.tensors)
    for spec in source.layout.tensors:
        assert torch.equal(view_of(arena, spec), module().state_dict()[spec.name]), spec.name


@pytest.mark.parametrize("dtype", [torch.bool, torch.int64, torch.bfloat16, torch.float8_e4m3fn])
def test_a_file_and_a_dict_agree_on_every_dtype_and_on_odd_shapes(tmp_path, dtype):
    tensors = {"x": torch.ones(5).to(dtype), "scalar": torch.tensor(1).to(dtype), "none": torch.ones(0, 3).to(dtype)}
    save_file(tensors, tmp_path / "model.safetensors")
    assert source_of(tmp_path / "model.safetensors").layout == source_of(tensors).layout


def test_the_index_decides_which_files_count(directory):
    save_file({"0.weight": torch.zeros(4, 3)}, directory / "consolidated.safetensors")
    with pytest.raises(CaptureUnsupported, match=r"'0.weight' is in consolidated.* and in model-1"):
        source_of(directory)
    index = {"weight_map": {"a": "model-1.safetensors", "b": "model-2.safetensors"}}
    (directory / "model.safetensors.index.json").write_text(json.dumps(index))
    assert len(source_of(directory).layout.tensors) == len(module().state_dict())


@pytest.mark.parametrize(
    ("given", "error", "words"),
    [
        (3, TypeError, "not int"),
        ({"a": 3}, TypeError, "'a' is int"),
        ("/no/such/directory", FileNotFoundError, "/no/such/directory"),
    ],
)
def test_other_things_are_refused(given, error, words):
    with pytest.raises(error, match=words):
        source_of(given)


def test_a_directory_without_safetensors_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no \*.safetensors"):
        source_of(tmp_path)
