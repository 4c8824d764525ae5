"""The commands against a real cluster of two nodes: one publishes, the other fetches."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator

import pytest
import ray
import torch
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy
from typer.testing import CliRunner

import ray_weights
from ray_weights.actors.names import NAMESPACE
from ray_weights.cli import app

pytestmark = [pytest.mark.slow]
TIMEOUT = 60.0
KEY = "org/tiny-model"


def run(*arguments: str, exit_code: int = 0) -> str:
    """In this process, which is connected already."""
    result = CliRunner().invoke(app, [*arguments])
    assert result.exit_code == exit_code, f"{result.output}\n{result.exception!r}"
    return result.stdout if exit_code == 0 else result.output


def run_alone(address: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """As a person does it."""
    return subprocess.run(
        [sys.executable, "-m", "ray_weights.cli", *arguments],
        env={**os.environ, "RAY_ADDRESS": address},
        capture_output=True,
        text=True,
        timeout=120,
    )


@pytest.fixture(scope="module")
def started(two_nodes) -> str:
    return run("up", "--window", "2", "--timeout", "60")


@pytest.fixture(scope="module")
def published(two_nodes, started) -> Iterator[ray_weights.Published]:
    tensors = {"layer.weight": torch.arange(1 << 20, dtype=torch.float32)}
    published = ray_weights.publish(tensors, key=KEY, version=1, timeout=TIMEOUT)

    @ray.remote(num_cpus=0, scheduling_strategy=NodeAffinitySchedulingStrategy(node_id=two_nodes.ids[1], soft=False))
    def fetch() -> str:
        return ray_weights.fetch(KEY, timeout=TIMEOUT, progress=False).digest

    assert ray.get(fetch.remote(), timeout=2 * TIMEOUT) == published.digest
    yield published


def test_up_starts_a_detached_coordinator_with_the_settings_asked_for(two_nodes, started):
    assert "Started the coordinator" in started and "window=2" in started
    assert ray.get_actor("coordinator", namespace=NAMESPACE) is not None


def test_up_again_is_harmless_and_other_settings_are_refused(two_nodes, started):
    again = json.loads(run("up", "--window", "2", "--json"))
    assert again["already_running"] and again["settings"]["window"] == 2
    assert json.loads(run("up", "--json"))["epoch"] == again["epoch"]
    told = run("up", "--window", "3", exit_code=1)
    assert "window is 2, not 3" in told and "Traceback" not in told


def test_status_draws_who_read_from_whom(two_nodes, published):
    shown = run("status")
    assert KEY in shown and "version 1" in shown and "2 of 2 replicas ready" in shown
    view = json.loads(run("status", "--json"))
    (shard,) = view["coordinator"]["shards"]
    replicas = shard["versions"][0]["replicas"]
    publisher, reader = sorted(replicas, key=lambda r: len(r["upstreams"]))
    assert reader["upstreams"] == [publisher["member"]] and reader["stats"]["nbytes"] == published.nbytes
    assert [a["problem"] for a in view["actors"]] == ["", ""]
    assert all(p["state"] == "ready" for a in view["actors"] for p in a["progress"])


def test_a_process_of_its_own_prints_nothing_but_json_on_stdout(two_nodes, published):
    done = run_alone(two_nodes.address, "status", "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["coordinator"]["epoch"] > 0


def test_watch_prints_one_view_per_line_until_it_is_interrupted(two_nodes, published):
    command = [sys.executable, "-m", "ray_weights.cli", "status", "--watch", "--interval", "0.2", "--json"]
    env = {**os.environ, "RAY_ADDRESS": two_nodes.address}
    with subprocess.Popen(command, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as watching:
        assert watching.stdout is not None
        first, second = (json.loads(watching.stdout.readline()) for _ in range(2))
        watching.send_signal(signal.SIGINT)
        assert watching.wait(timeout=30) == 0
    assert second["taken_at"] > first["taken_at"] and second["coordinator"]["shards"]


@pytest.mark.parametrize("query", [KEY, "tiny", "org/"])
def test_explain_tells_the_story_of_each_replica(two_nodes, published, query):
    shown = run("explain", query)
    assert "asked for it" in shown and "published" in shown and "complete and verified" in shown
    answer = json.loads(run("explain", query, "--json"))
    assert len(answer["shards"][0]["replicas"]) == 2


def test_explain_names_the_closest_keys_to_an_unknown_one(two_nodes, published):
    told = run("explain", "org/tony-model", exit_code=1)
    assert KEY in told and "Traceback" not in told


def test_an_actor_that_does_not_answer_is_shown_as_such(two_nodes, published):
    from ray_weights.observe import transfer_actors_by_name

    view = json.loads(run("status", "--json"))
    member = view["coordinator"]["members"][0]
    assert member["actor_name"] in transfer_actors_by_name()
    os.kill(member["pid"], signal.SIGSTOP)
    try:
        stopped = json.loads(run("status", "--json", "--timeout", "3"))
    finally:
        os.kill(member["pid"], signal.SIGCONT)
    problems = {a["actor_name"]: a["problem"] for a in stopped["actors"]}
    assert "did not answer" in problems[member["actor_name"]] and list(problems.values()).count("") == 1


def test_drop_frees_a_version(two_nodes, published):
    ray_weights.publish({"x": torch.ones(1000)}, key="to be dropped", version=1, timeout=TIMEOUT)
    ray_weights.publish({"x": torch.zeros(1000)}, key="to be dropped", version=2, timeout=TIMEOUT)
    result = json.loads(run("drop", "to be dropped", "--version", "1", "--json"))
    assert [c["version"] for c in result["dropped"]] == [1] and not result["failed"]
    with pytest.raises(ray_weights.errors.UnknownKey):
        ray_weights.fetch("to be dropped", version=1, timeout=TIMEOUT)
    assert ray_weights.fetch("to be dropped", timeout=TIMEOUT).version == 2


def test_doctor_finds_the_cluster_and_its_coordinator(two_nodes, published):
    done = run_alone(two_nodes.address, "doctor", "--json", "--timeout", "30")
    findings = {f["area"]: f for f in json.loads(done.stdout)["findings"]}
    assert findings["cluster"]["found"] == "reachable, 2 nodes"
    assert "window=2" in findings["coordinator"]["found"]
    assert findings["transfer actors"]["level"] == "ok"


def test_down_ends_everything_and_again_is_harmless(two_nodes, published):
    ended = json.loads(run("down", "--json"))
    assert ended["coordinator"] and len(ended["actors"]) == 2 and ended["nbytes"] >= 2 * published.nbytes
    assert not [a for a in ray.util.list_named_actors(all_namespaces=True) if a["namespace"] == NAMESPACE]
    assert "Nothing was running" in run("down")
    assert "no coordinator runs" in run("status", exit_code=1)
    assert "no coordinator runs" in run("explain", "tiny", exit_code=1)
