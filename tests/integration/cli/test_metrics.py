"""Metrics reach Ray's exporter under the names that the Grafana board asks for."""

from __future__ import annotations

import json
import re
import time
import urllib.error
import urllib.request
from pathlib import Path

import pytest
import ray
import torch

import ray_weights
from ray_weights.metrics import TransferMetrics
from ray_weights.schemas.keys import ModelKey, ShardKey
from ray_weights.schemas.members import ReceiveStats
from ray_weights.schemas.status import TransferProgress

pytestmark = [pytest.mark.slow]
BOARD = Path(__file__).parents[3] / "dashboards/ray_weights.json"
DEADLINE_SECONDS = 60.0


def asked_for() -> set[str]:
    """Metric names in the board's queries."""
    board = json.loads(BOARD.read_text())
    queries = [t["expr"] for panel in board["panels"] for t in panel.get("targets", ())]
    assert queries
    return {name for q in queries for name in re.findall(r"ray_weights_\w+", q)}


@ray.remote(num_cpus=0)
class Measuring:
    """Stands where a transfer actor does."""

    def measure(self) -> None:
        self.metrics = TransferMetrics("10.0.0.1", "cpu")
        shard = ShardKey(model=ModelKey(model="m"))
        self.metrics.update(
            [
                TransferProgress(
                    shard=shard,
                    version=1,
                    state="receiving",
                    chunks=4,
                    chunks_verified=1,
                    nbytes=4000,
                    nbytes_verified=1000,
                    rate=1.0,
                    seconds=1.0,
                    upstreams=("a",),
                    children=("b", "c"),
                )
            ]
        )
        stats = ReceiveStats(nbytes=4000, seconds=0.2, read_again_nbytes=1000, chunks_from_receivers=2)
        self.metrics.completed("m", stats)
        self.metrics.gave_up()
        self.metrics.lost_upstream("stalled")
        self.metrics.read_storage("m")


def exported() -> str:
    node = next(n for n in ray.nodes() if n["Alive"])
    url = f"http://{node['NodeManagerAddress']}:{node['MetricsExportPort']}/metrics"
    try:
        with urllib.request.urlopen(url, timeout=5) as answer:
            return str(answer.read().decode())
    except urllib.error.URLError:
        return ""


def test_every_metric_that_the_board_asks_for_is_exported(one_node):
    actor = Measuring.remote()
    ray.get(actor.measure.remote(), timeout=60)
    deadline = time.monotonic() + DEADLINE_SECONDS
    missing = asked_for()
    text = ""
    while missing and time.monotonic() < deadline:
        time.sleep(1.0)  # the exporter gathers on its own clock
        text = exported()
        missing = {name for name in asked_for() if not re.search(rf"^{name}\{{", text, re.MULTILINE)}
    if not text:
        pytest.skip("this Ray has no metrics exporter (ray[default] is not installed)")
    seen = sorted(set(re.findall(r"^(ray_weights_\w+)", text, re.MULTILINE)))
    assert not missing, f"only {seen}"
    value = re.search(r"^ray_weights_missing_bytes\{.*\} (\S+)", text, re.MULTILINE)
    assert value is not None and float(value[1]) == 3000


def test_a_transfer_actor_shows_what_it_holds(one_node):
    ray_weights.publish({"x": torch.ones(1000)}, key="metered", version=1, timeout=DEADLINE_SECONDS)
    deadline = time.monotonic() + DEADLINE_SECONDS
    ready: list[str] = []
    while not any(float(value) >= 1 for value in ready) and time.monotonic() < deadline:
        time.sleep(1.0)
        ready = re.findall(r'^ray_weights_shards\{.*State="ready".*\} (\S+)', exported(), re.MULTILINE)
    assert any(float(value) >= 1 for value in ready), exported()
