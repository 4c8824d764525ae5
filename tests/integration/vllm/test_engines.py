"""Whole engines: an origin on one node, a receiver on another, tensor-parallel, as a user starts them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

import ray_weights
from tests.integration.vllm.conftest import ENGINE_ENV, ENGINE_KWARGS


@dataclass(frozen=True, slots=True)
class Engine:
    tokens: list[list[int]]
    log: str

    def lines(self, words: str) -> list[str]:
        return [line for line in self.log.splitlines() if words in line]


def run_engine(checkpoint: Path, directory: Path, environment: dict[str, str], *flags: str) -> Engine:
    output = directory / "tokens.json"
    kwargs = {**ENGINE_KWARGS, "load_format": "ray_weights", "tensor_parallel_size": 2}
    script = Path(__file__).with_name("one_engine.py")
    run = subprocess.run(
        [sys.executable, str(script), str(checkpoint), str(output), json.dumps(kwargs), *flags],
        # vLLM leaves its sockets behind: with the cluster's directory they go.
        env={**os.environ, **ENGINE_ENV, "TMPDIR": os.environ["RAY_TMPDIR"], **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=400,
        check=False,
    )
    assert run.returncode == 0, run.stdout[-5000:]
    return Engine(json.loads(output.read_text()), run.stdout)


@pytest.mark.slow
@pytest.mark.timeout(900)  # two engines of two workers each, on cores that others may use as well
def test_a_tensor_parallel_engine_on_another_node_receives_rank_by_rank(two_nodes, checkpoint, tmp_path):
    cluster = {"RAY_ADDRESS": two_nodes.address}
    # The first engine's parent is connected to Ray, as in a notebook; the second's is not, as under `vllm serve`.
    origin = run_engine(checkpoint, tmp_path, cluster, "--connect")
    receiver = run_engine(checkpoint, tmp_path, {**cluster, "RAY_WEIGHTS_NODE_ID": two_nodes.ids[1]})

    assert receiver.tokens == origin.tokens
    assert len(origin.lines("ray_weights: origin of")) == 2
    assert len(receiver.lines("ray_weights: receiver of")) == 2
    assert not receiver.lines("reads storage")
    for shard in ray_weights.status().shards:
        version = shard.versions[-1]
        assert shard.shard.model.parallel == "tp2"
        assert version.storage_reads == 1
        first, second = sorted(version.replicas, key=lambda r: not r.from_storage)
        assert (first.state, second.state) == ("ready", "ready")
        assert second.upstreams == (first.member,)
        assert second.stats.nbytes == version.seal.nbytes
    assert {s.shard.rank for s in ray_weights.status().shards} == {"tp0", "tp1"}
