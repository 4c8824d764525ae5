"""The load format on real vLLM models, without the engine around them, against a real cluster."""

from __future__ import annotations

import logging
import re
import shutil
import threading

import pytest
import torch
from vllm.model_executor.model_loader import get_model

import ray_weights
from ray_weights import errors
from ray_weights.actors.session import Session
from ray_weights.core.layout import TensorFacts, build_layout
from ray_weights.integrations.vllm.key import Ranks, ranks_of, shard_key
from ray_weights.integrations.vllm.options import LoaderOptions

CPU = torch.device("cpu")


@pytest.fixture
def own_checkpoint(checkpoint, tmp_path):
    """A copy that no other test knows, so that its weights are in no other test's cluster state."""
    return shutil.copytree(checkpoint, tmp_path / "own")


def key_of(config, **options):
    return shard_key(config, config.model_config, ranks_of(config), CPU, LoaderOptions(**options))


def fingerprint(model) -> dict[str, torch.Tensor]:
    """What is left of the weights after vLLM has packed the linear layers: their results on a fixed input."""
    found = {n: p.detach().clone() for n, p in model.named_parameters() if p.numel()}
    layer = model.model.layers[-1]
    torch.manual_seed(0)
    with torch.inference_mode():
        hidden = torch.randn(3, model.config.hidden_size)
        found["mlp"] = layer.mlp(hidden)
        found["qkv"] = layer.self_attn.qkv_proj(hidden)[0]
        found["logits"] = model.lm_head.quant_method.apply(model.lm_head, hidden)
        found["rotary"] = layer.self_attn.rotary_emb.cos_sin_cache.clone()
    return found


def assert_same(one, other) -> None:
    assert one.keys() == other.keys()
    for name, value in one.items():
        assert torch.equal(value, other[name]), name


def replica(key):
    (shard,) = (s for s in ray_weights.status().shards if s.shard == key)
    return shard.versions[-1]


@pytest.mark.parametrize("kind", ["checkpoint", "tied_checkpoint"])
def test_a_receiver_has_the_weights_that_vllms_own_loader_gives(one_node, configure, request, kind):
    path = request.getfixturevalue(kind)
    plain = fingerprint(get_model(vllm_config=configure(path, load_format="auto")))
    config = configure(path)
    origin = fingerprint(get_model(vllm_config=config))
    receiver = fingerprint(get_model(vllm_config=configure(path)))
    assert_same(origin, plain)
    assert_same(receiver, plain)
    assert replica(key_of(config)).storage_reads == 1


def test_a_receiver_reads_no_storage(one_node, configure, own_checkpoint):
    config = configure(own_checkpoint)
    origin = fingerprint(get_model(vllm_config=config))
    # A loader that is not installed: had the receiver used it, it would have failed.
    options = {"model_loader_extra_config": {"fallback_load_format": "tensorizer", "fallback": False}}
    receiver = fingerprint(get_model(vllm_config=configure(own_checkpoint, **options)))
    assert_same(receiver, origin)
    assert replica(key_of(config)).storage_reads == 1


def test_another_maximum_length_shares_weights_and_keeps_its_own_rotary_cache(one_node, configure, own_checkpoint):
    long = configure(own_checkpoint, max_model_len=512)
    assert_same(fingerprint(get_model(vllm_config=configure(own_checkpoint))), fingerprint(get_model(vllm_config=long)))


def test_a_checkpoint_overwritten_in_place_is_another_revision(one_node, configure, own_checkpoint):
    before = configure(own_checkpoint)
    old = key_of(before)
    file = sorted(own_checkpoint.glob("*.safetensors"))[0]
    data = bytearray(file.read_bytes())
    half = len(data) // 2
    data[half:] = bytes(len(data) - half)
    file.write_bytes(data)
    assert old.model.differing_fields(key_of(before).model) == ("revision",)


def test_the_key_names_what_decides_the_bytes(one_node, configure, checkpoint):
    config = configure(checkpoint)
    key = key_of(config)
    assert key.model.model == str(checkpoint)
    assert key.model.revision.startswith("sha256:")
    assert (key.model.dtype, key.model.quantization, key.model.parallel, key.rank) == ("float32", "", "", "")
    assert (key.model.device, key.model.capture, key.model.role) == ("cpu", "raw", "target")
    assert key.model.engine.startswith("vllm ")
    assert key_of(config, model_name="llama").model.model == "llama"
    assert key_of(config, weights_uri="s3://bucket/llama").model.revision == "s3://bucket/llama"


def test_ranks_of_parallel_groups_are_in_the_key(one_node, configure, checkpoint):
    config = configure(checkpoint)
    ranks = Ranks(tp=1, tp_size=2, pp=0, pp_size=2)
    key = shard_key(config, config.model_config, ranks, CPU, LoaderOptions())
    assert (key.model.parallel, key.rank) == ("tp2 pp2", "tp1 pp0")
    experts = Ranks(tp=1, tp_size=2, ep=3, ep_size=4, placement="linear")
    key = shard_key(config, config.model_config, experts, CPU, LoaderOptions())
    assert (key.model.parallel, key.rank) == ("tp2 ep4 linear", "tp1 ep3")


def test_a_checkpoint_without_weights_gives_vllms_own_error_and_releases_who_waits(one_node, configure, own_checkpoint):
    for file in own_checkpoint.glob("*.safetensors"):
        file.unlink()
    config = configure(own_checkpoint)
    key = key_of(config)
    outcome: list[object] = []
    loading = threading.Event()

    def wait_for_it() -> None:
        loading.wait(30)
        session = Session()
        try:
            session.open(key, None, may_load=False, timeout=60)
        except errors.RayWeightsError as e:
            outcome.append(e)
        finally:
            session.close()

    waiter = threading.Thread(target=wait_for_it)
    waiter.start()

    class Announce(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            if "reads storage for" in record.getMessage():
                loading.set()

    announce = Announce()
    log = logging.getLogger("vllm.plugins.ray_weights")
    log.addHandler(announce)
    try:
        with pytest.raises(RuntimeError, match="Cannot find any model weights"):
            get_model(vllm_config=config)
    finally:
        log.removeHandler(announce)
        waiter.join(70)
    assert not waiter.is_alive()
    assert isinstance(outcome[0], errors.RayWeightsError)
    assert not isinstance(outcome[0], errors.DeadlineExceeded)


FIRST_DIFFERENCE = "'model.embed_tokens.weight': shape is [1024, 256] here and [3, 4] at the source"


def other_layout():
    facts = TensorFacts(
        name="model.embed_tokens.weight",
        shape=(3, 4),
        dtype="float32",
        stride=(4, 1),
        storage=1,
        storage_offset=0,
        storage_nbytes=48,
    )
    return build_layout([facts], {"float32": 4})


def publish_other_layout(key) -> None:
    session = Session()
    layout = other_layout()
    session.create(key, layout, 1, timeout=30)
    session.seal(key, 1, seconds=0.0, from_storage=False, timeout=30)
    session.close()


def test_a_source_with_another_layout_is_named_and_storage_is_read(one_node, configure, own_checkpoint, caplog_vllm):
    config = configure(own_checkpoint)
    publish_other_layout(key_of(config))
    loaded = fingerprint(get_model(vllm_config=config))
    assert_same(loaded, fingerprint(get_model(vllm_config=configure(own_checkpoint, load_format="auto"))))
    (line,) = [m for m in caplog_vllm if "reads storage by itself" in m]
    assert "LayoutMismatch" in line
    assert FIRST_DIFFERENCE in line


def test_without_fallback_the_reason_is_raised(one_node, configure, own_checkpoint):
    options = {"model_loader_extra_config": {"fallback": False}}
    config = configure(own_checkpoint, **options)
    publish_other_layout(key_of(config))
    with pytest.raises(errors.LayoutMismatch, match=re.escape(FIRST_DIFFERENCE)):
        get_model(vllm_config=config)


def test_loading_again_in_place_is_left_to_vllm(one_node, configure, checkpoint):
    from vllm.model_executor.model_loader import get_model_loader
    from vllm.model_executor.model_loader.utils import initialize_model

    config = configure(checkpoint)
    model = initialize_model(vllm_config=config)
    reads = [s.versions[-1].storage_reads for s in ray_weights.status().shards if s.shard == key_of(config)]
    get_model_loader(config.load_config).load_weights(model, config.model_config)
    assert torch.equal(model.model.norm.weight, torch.ones_like(model.model.norm.weight))
    after = [s.versions[-1].storage_reads for s in ray_weights.status().shards if s.shard == key_of(config)]
    assert after == reads


def test_an_unknown_option_is_refused_when_the_loader_is_made(one_node, configure, checkpoint):
    config = configure(checkpoint, model_loader_extra_config={"time_out": 3})
    with pytest.raises(errors.ConfigError, match=r"time_out\. Known are: .*timeout_s"):
        get_model(vllm_config=config)
