"""publish() and fetch() against a real cluster."""

from __future__ import annotations

import os
import signal

import pytest
import ray
import torch
from safetensors.torch import save_file
from torch import nn

import ray_weights
from ray_weights import errors

TIMEOUT = 60.0


def tensors() -> dict[str, torch.Tensor]:
    torch.manual_seed(1)
    return {"layer.weight": torch.randn(300, 400), "layer.bias": torch.randn(300), "empty": torch.empty(0, 3)}


def as_module(tmp_path) -> nn.Module:
    module = nn.Module()
    module.layer = nn.Linear(400, 300)
    module.empty = nn.Parameter(torch.empty(0, 3))
    module.load_state_dict(tensors())
    return module


def as_dict(tmp_path) -> dict[str, torch.Tensor]:
    return tensors()


def as_directory(tmp_path) -> str:
    state = tensors()
    save_file({"layer.weight": state.pop("layer.weight")}, tmp_path / "model-1.safetensors")
    save_file(state, tmp_path / "model-2.safetensors")
    return str(tmp_path)


@pytest.mark.parametrize("kind", [as_module, as_dict, as_directory])
def test_what_was_published_is_fetched(one_node, tmp_path, kind):
    key = f"round trip {kind.__name__}"
    published = ray_weights.publish(kind(tmp_path), key=key, version=1, timeout=TIMEOUT)
    fetched = ray_weights.fetch(key, timeout=TIMEOUT)
    assert (fetched.version, fetched.digest, fetched.nbytes) == (1, published.digest, published.nbytes)
    assert fetched.tensors.keys() == tensors().keys()
    for name, t in tensors().items():
        assert torch.equal(fetched.tensors[name], t), name


def test_equal_tensors_of_any_kind_are_one_version(one_node, tmp_path):
    digests = {
        ray_weights.publish(kind(tmp_path), key="one version", version=3, timeout=TIMEOUT).digest
        for kind in (as_module, as_dict, as_directory)
    }
    assert len(digests) == 1


def test_a_fetch_into_a_module_fills_its_own_tensors(one_node, tmp_path):
    ray_weights.publish(tensors(), key="into", version=1, timeout=TIMEOUT)
    module = nn.Module()
    module.layer, module.empty = nn.Linear(400, 300), nn.Parameter(torch.empty(0, 3))
    weight = module.layer.weight
    ray_weights.fetch("into", into=module, timeout=TIMEOUT)
    assert module.layer.weight is weight
    assert torch.equal(weight, tensors()["layer.weight"])


class TiedModel(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed, self.head = nn.Embedding(50, 8), nn.Linear(8, 50, bias=False)
        self.head.weight = self.embed.weight


def test_a_checkpoint_with_one_name_of_a_tie_fills_a_tied_module(one_node):
    weight = torch.randn(50, 8)
    ray_weights.publish({"embed.weight": weight}, key="tied", version=1, timeout=TIMEOUT)
    module = TiedModel()
    ray_weights.fetch("tied", into=module, timeout=TIMEOUT)
    assert torch.equal(module.head.weight, weight)
    assert module.head.weight is module.embed.weight


def test_writing_to_fetched_tensors_changes_nobody_elses(one_node):
    ray_weights.publish({"x": torch.ones(1000)}, key="private", version=1, timeout=TIMEOUT)
    ray_weights.fetch("private", timeout=TIMEOUT).tensors["x"].zero_()
    assert ray_weights.fetch("private", timeout=TIMEOUT).tensors["x"].all()


def test_the_newest_version_is_fetched_unless_another_is_asked_for(one_node):
    for version in (1, 2):
        ray_weights.publish({"x": torch.full((10,), float(version))}, key="many", version=version, timeout=TIMEOUT)
    assert ray_weights.fetch("many", timeout=TIMEOUT).tensors["x"][0] == 2.0
    assert ray_weights.fetch("many", version=1, timeout=TIMEOUT).tensors["x"][0] == 1.0


def test_an_unknown_key_names_the_closest(one_node):
    ray_weights.publish({"x": torch.ones(1)}, key="policy-llama-8b", version=1, timeout=TIMEOUT)
    with pytest.raises(errors.UnknownKey, match=r"nobody has published policy-lama-8b.* closest.* policy-llama-8b"):
        ray_weights.fetch("policy-lama-8b", timeout=TIMEOUT)


def test_an_unknown_version_names_those_that_there_are(one_node):
    ray_weights.publish({"x": torch.ones(1)}, key="versions", version=7, timeout=TIMEOUT)
    with pytest.raises(errors.UnknownKey, match=r"no version 8.* 7"):
        ray_weights.fetch("versions", version=8, timeout=TIMEOUT)


def other_shape() -> nn.Module:
    module = nn.Module()
    module.layer, module.empty = nn.Linear(400, 299), nn.Parameter(torch.empty(0, 3))
    return module


def other_dtype() -> nn.Module:
    module = nn.Module()
    module.layer, module.empty = nn.Linear(400, 300).half(), nn.Parameter(torch.empty(0, 3))
    return module


def one_less() -> nn.Module:
    module = nn.Module()
    module.layer = nn.Linear(400, 300)
    return module


@pytest.mark.parametrize(
    ("build", "words"),
    [
        (other_shape, r"'layer.bias': shape is \[299\] here and \[300\] at the source"),
        (other_dtype, "'layer.bias': dtype is float16 here and float32 at the source"),
        (one_less, "'empty'"),
    ],
)
def test_a_module_with_other_tensors_is_left_alone_and_told_the_first_difference(one_node, build, words):
    ray_weights.publish(tensors(), key="strict", version=1, timeout=TIMEOUT)
    module = build()
    before = {n: t.clone() for n, t in module.state_dict().items()}
    with pytest.raises(errors.LayoutMismatch, match=words):
        ray_weights.fetch("strict", into=module, timeout=TIMEOUT)
    assert all(torch.equal(t, before[n]) for n, t in module.state_dict().items())


def test_other_bytes_under_one_version_are_refused_and_the_first_ones_stay(one_node):
    ray_weights.publish({"x": torch.ones(10)}, key="conflict", version=1, timeout=TIMEOUT)
    with pytest.raises(errors.VersionConflict, match="another version number"):
        ray_weights.publish({"x": torch.zeros(10)}, key="conflict", version=1, timeout=TIMEOUT)
    assert ray_weights.fetch("conflict", timeout=TIMEOUT).tensors["x"].all()


class Unreadable(torch.Tensor):
    """As if its device had failed."""

    def detach(self) -> torch.Tensor:
        raise OSError("the device is gone")


def test_a_publish_that_fails_half_way_leaves_nothing_to_fetch(one_node):
    broken = {"a": torch.ones(4), "b": torch.ones(4).as_subclass(Unreadable)}
    with pytest.raises(OSError, match="the device is gone"):
        ray_weights.publish(broken, key="half", version=1, timeout=TIMEOUT)
    with pytest.raises(errors.UnknownKey):
        ray_weights.fetch("half", timeout=TIMEOUT)
    ray_weights.publish({"a": torch.ones(4)}, key="half", version=1, timeout=TIMEOUT)
    assert ray_weights.fetch("half", timeout=TIMEOUT).tensors["a"].all()


def test_status_and_explain_tell_what_happened(one_node):
    ray_weights.publish({"x": torch.ones(10)}, key="told", version=1, timeout=TIMEOUT)
    keys = {s.shard.model.model for s in ray_weights.status().shards}
    assert "told" in keys
    (shard,) = ray_weights.explain("told").shards
    (publisher,) = shard.replicas
    assert any("source" in line.what for line in publisher.lines)
    with pytest.raises(errors.UnknownKey, match="told"):
        ray_weights.explain("tolt")


def test_the_publisher_may_end(one_node):
    @ray.remote(num_cpus=0)
    def publish_there() -> int:
        ray_weights.publish({"x": torch.ones(10)}, key="ended", version=1, timeout=TIMEOUT)
        return os.getpid()

    publisher = ray.get(publish_there.remote(), timeout=TIMEOUT)
    os.kill(publisher, signal.SIGKILL)
    assert ray_weights.fetch("ended", timeout=TIMEOUT).tensors["x"].all()
