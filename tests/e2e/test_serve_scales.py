"""The main job: a Serve app scales from one replica to three, and the new ones get their weights from the first."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest
import ray
from blake3 import blake3
from demo_support.cluster import LocalCluster
from demo_support.completions import Completion, differences, why_too_dull
from demo_support.ports import free_ports
from demo_support.replicas import ask_every_replica
from demo_support.serve_app import ServeApp
from demo_support.weights import start_coordinator
from pydantic import TypeAdapter

import ray_weights
from ray_weights.actors.names import NAMESPACE
from ray_weights.memory.handles import ArenaHandle
from ray_weights.memory.mapping import map_arena
from ray_weights.schemas.leases import Opened, OpenRequest
from ray_weights.schemas.status import CoordinatorStatus, VersionStatus

UP_S = 300.0
SLOWLY = ("--receive-rate", "200000")
"""Bytes per second: the 9 MB take so long that the third replica comes while the second still receives."""


@pytest.mark.timeout(900)
def test_new_replicas_hold_exactly_what_the_first_one_read_and_pass_it_on(
    cluster: LocalCluster, tiny_checkpoint: Path, plain_completions: Callable[..., tuple[Completion, ...]]
) -> None:
    expected = plain_completions(tiny_checkpoint)
    assert not why_too_dull(expected)
    start_coordinator(cluster, *SLOWLY)
    app = ServeApp(tiny_checkpoint, free_ports("127.0.0.1", 1)[0], "ray_weights")
    app.deploy(cluster, replicas=1)
    app.wait_until_running(replicas=1, timeout_s=UP_S)
    app.deploy(cluster, replicas=3)
    app.wait_until_running(replicas=3, timeout_s=UP_S)

    answers = ask_every_replica(app=app.name, deployment=app.deployment, model_id=app.model_id, replicas=3)
    assert {a.node_ip for a in answers} == set(cluster.node_addresses)
    for answer in answers:
        assert not differences(expected, answer.completions), answer.replica_id

    status = ray_weights.status(timeout=30.0)
    (shard,) = status.shards
    (version,) = shard.versions
    assert version.storage_reads == 1
    assert [r.state for r in version.replicas] == ["ready"] * 3
    assert sum(r.from_storage for r in version.replicas) == 1
    assert _forwarded_before_complete(version) > 0, "nobody passed chunks on while it was still receiving"
    assert len(_digests_of_every_copy(status)) == 3
    assert len(set(_digests_of_every_copy(status).values())) == 1, "copies differ"


def _forwarded_before_complete(version: VersionStatus) -> int:
    return sum(r.stats.chunks_from_receivers for r in version.replicas if r.stats is not None)


def _digests_of_every_copy(status: CoordinatorStatus) -> dict[str, str]:
    """BLAKE3 of each transfer actor's whole arena, computed here from the memory itself."""
    (shard,) = status.shards
    ask = OpenRequest(shard=shard.shard, version=shard.versions[0].version, timeout=30.0, pid=os.getpid())
    digests = {}
    for member in status.members:
        actor = ray.get_actor(member.actor_name, namespace=NAMESPACE)
        opened = Opened.model_validate_json(ray.get(actor.open.remote(ask.model_dump_json().encode()), timeout=60.0))
        mapped = map_arena(TypeAdapter(ArenaHandle).validate_json(opened.handle), writable=False)
        digests[member.node_name] = blake3(mapped.tensor().numpy()).hexdigest()
        mapped.close()
    return digests
