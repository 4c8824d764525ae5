"""The builder of Serve's LLMConfig, against Ray's own classes. No cluster is needed to build one."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace

import pytest
from ray.llm._internal.common.utils.download_utils import NodeModelDownloadable

from ray_weights.errors import ConfigError
from ray_weights.integrations.serve import CALLBACK, LeaveWeightsInStore, llm_config, model_uri


def build(source, **fields):
    loading = {"model_id": "llama", "model_source": source}
    return llm_config(model_loading_config=loading, accelerator_config={"kind": "cpu"}, **fields)


def test_a_local_model_gets_the_load_format_and_nothing_else(tmp_path):
    config = build(str(tmp_path), engine_kwargs={"max_model_len": 256})
    assert config.engine_kwargs == {"max_model_len": 256, "load_format": "ray_weights"}
    assert model_uri(config) is None


@pytest.mark.parametrize("source", ["s3://bucket/llama", {"bucket_uri": "gs://bucket/llama"}])
def test_a_model_in_a_store_stays_there_but_for_the_origin(source):
    config = build(source, engine_kwargs={"model_loader_extra_config": {"timeout_s": 60}})
    uri = source if isinstance(source, str) else source["bucket_uri"]
    assert config.engine_kwargs["model_loader_extra_config"] == {"timeout_s": 60, "weights_uri": uri}
    assert config.callback_config.callback_class == CALLBACK


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("s3://bucket/llama", NodeModelDownloadable.EXCLUDE_SAFETENSORS),
        ("meta-llama/Llama-3.1-8B", NodeModelDownloadable.MODEL_AND_TOKENIZER),
    ],
)
def test_the_callback_leaves_weights_of_a_store_where_they_are(source, expected):
    config = SimpleNamespace(model_loading_config={"model_id": "llama", "model_source": source})
    context = {"worker_node_download_model": NodeModelDownloadable.MODEL_AND_TOKENIZER}
    callback = LeaveWeightsInStore(llm_config=config, ctx_kwargs=context)
    asyncio.run(callback.run_callback("on_before_node_init"))
    assert callback.ctx.worker_node_download_model == expected


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"engine_kwargs": {"load_format": "auto"}}, "load_format 'auto'"),
        ({"engine_kwargs": {"model_loader_extra_config": {"time_out": 1}}}, "time_out"),
        ({"callback_config": {"callback_class": "my.module:Callback"}}, "let yours inherit from it"),
    ],
)
def test_a_contradiction_is_named(fields, words):
    with pytest.raises(ConfigError, match=words):
        build("s3://bucket/llama", **fields)
