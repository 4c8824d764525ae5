"""Nobody to talk to."""

from __future__ import annotations

import time

import pytest
import torch

import ray_weights
from ray_weights import errors


@pytest.mark.parametrize(
    "call",
    [
        lambda: ray_weights.fetch("x", timeout=5),
        lambda: ray_weights.publish({"x": torch.ones(1)}, key="x", version=1, timeout=5),
        lambda: ray_weights.status(timeout=5),
        lambda: ray_weights.explain("x", timeout=5),
    ],
)
def test_no_cluster_is_a_clear_error_and_not_a_hang(call, monkeypatch):
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:1")
    started = time.monotonic()
    with pytest.raises(errors.CoordinatorUnavailable, match="no Ray cluster can be reached"):
        call()
    assert time.monotonic() - started < 60
