"""The load format where there is no Ray cluster."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
from vllm.model_executor.model_loader import get_model

import ray_weights
from ray_weights import errors


def test_a_coordinator_that_cannot_be_reached_is_named_and_storage_is_read(
    configure, checkpoint, caplog_vllm, monkeypatch
):
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:1")
    get_model(vllm_config=configure(checkpoint))
    assert any("CoordinatorUnavailable: no Ray cluster can be reached" in m for m in caplog_vllm)


def test_an_engine_on_a_cpu_cannot_be_attached_and_is_told_what_to_do(configure, checkpoint):
    engine = SimpleNamespace(llm_engine=SimpleNamespace(vllm_config=configure(checkpoint, load_format="auto")))
    with pytest.raises(errors.CaptureUnsupported, match='load_format="ray_weights" instead'):
        ray_weights.attach(engine)
