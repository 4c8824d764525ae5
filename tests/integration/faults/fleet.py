"""A small Ray cluster with ray_weights on it, and the means to break it: every process is known by its pid."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
import ray
from ray.actor import ActorHandle
from ray.cluster_utils import Cluster
from ray.exceptions import RayError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from ray_weights.actors.connect import ensure_coordinator, find_coordinator
from ray_weights.actors.names import NAMESPACE, transfer_name
from ray_weights.config import ServiceSettings
from ray_weights.schemas.keys import ShardKey
from ray_weights.schemas.members import MemberInfo
from ray_weights.schemas.status import CoordinatorStatus, StoryLine, TransferProgress, VersionStatus
from tests.integration.faults.engines import Engine, MiB, Weights
from tests.integration.faults.processes import arenas_of, is_alive, processes_in

PATIENCE = 90.0
"""Seconds after which a condition that never comes true fails a test."""


def wait_until(condition: Callable[[], Any], what: str, seconds: float = PATIENCE, every: float = 0.02) -> Any:
    """Poll until `condition` returns something true; that is returned."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if found := condition():
            return found
        time.sleep(every)
    raise AssertionError(f"after {seconds:.0f} s: not {what}")


@dataclass(slots=True)
class Host:
    """One Ray node, its engine, and what it started."""

    index: int
    node_id: str
    engine: ActorHandle


@dataclass(slots=True)
class Fleet:
    """The hosts of a cluster. Use kill() and freeze() on pids that transfer_pid() and others return."""

    cluster: Cluster
    node_ids: list[str]
    settings: ServiceSettings
    hosts: list[Host] = field(default_factory=list)
    _frozen: set[int] = field(default_factory=set)

    # The service

    def start(self) -> None:
        """Coordinator, engines and, with them, transfer actors."""
        ensure_coordinator(self.settings, time.monotonic() + PATIENCE)
        self.hosts = [Host(i, node_id, self._engine(node_id)) for i, node_id in enumerate(self.node_ids)]
        ray.get([h.engine.pid.remote() for h in self.hosts], timeout=PATIENCE)

    def stop(self) -> None:
        """End every actor of ray_weights and every engine."""
        self.thaw_all()
        for host in self.hosts:
            ray.kill(host.engine)
        for actor in ray.util.list_named_actors(all_namespaces=True):
            if actor["namespace"] == NAMESPACE:
                with contextlib.suppress(ValueError):
                    ray.kill(ray.get_actor(actor["name"], namespace=NAMESPACE))
        self.hosts = []
        wait_until(
            lambda: not [a for a in ray.util.list_named_actors(all_namespaces=True) if a["namespace"] == NAMESPACE],
            "all actors of ray_weights gone",
        )

    def _engine(self, node_id: str) -> ActorHandle:
        pinned = NodeAffinitySchedulingStrategy(node_id=node_id, soft=False)
        remote = ray.remote(num_cpus=0, max_concurrency=8)(Engine)
        return remote.options(scheduling_strategy=pinned).remote(self.settings.model_dump_json().encode())

    def renew_engine(self, index: int) -> None:
        """A new engine in the place of one that was killed."""
        self.hosts[index].engine = self._engine(self.node_ids[index])
        ray.get(self.hosts[index].engine.pid.remote(), timeout=PATIENCE)

    # What engines do

    def engine(self, index: int) -> ActorHandle:
        return self.hosts[index].engine

    def get(self, index: int, weights: Weights, timeout: float = PATIENCE) -> Any:
        """An answer that will come."""
        return self.engine(index).get.remote(weights, timeout)

    def seed(self, index: int, weights: Weights) -> None:
        """Host `index` loads the weights from storage."""
        opening = ray.get(self.get(index, weights), timeout=PATIENCE)
        assert opening.outcome == "load", opening

    def chain(self, weights: Weights, *indices: int) -> list[Any]:
        """Hosts that receive, each behind the one before it where the planner agrees; their answers will come."""
        refs = []
        for index in indices:
            refs.append(self.get(index, weights))
            wait_until(
                lambda i=index: (p := self.progress(i, weights)) is not None and p.state in ("receiving", "ready"),
                f"host {index} receives",
                every=0.005,
            )
        return refs

    def wrong_bytes(self, weights: Weights, *indices: int) -> int:
        return sum(ray.get([self.engine(i).wrong_bytes.remote(weights) for i in indices], timeout=PATIENCE))

    # What is going on

    def coordinator(self) -> ActorHandle:
        found = find_coordinator()
        assert found is not None
        return found

    def status(self) -> CoordinatorStatus:
        """Asked again while the coordinator restarts."""

        def ask() -> CoordinatorStatus | None:
            try:
                return CoordinatorStatus.model_validate_json(ray.get(self.coordinator().status.remote(), timeout=10))
            except RayError:
                return None

        found: CoordinatorStatus = wait_until(ask, "an answer of the coordinator")
        return found

    def version(self, weights: Weights) -> VersionStatus | None:
        for shard in self.status().shards:
            if shard.shard == weights.key:
                return shard.versions[0]
        return None

    def state(self, index: int, weights: Weights) -> str:
        """Of the replica on a host, as the coordinator sees it; "" where there is none."""
        version, member = self.version(weights), self.member(index)
        found = [r.state for r in version.replicas if member and r.member == member.member] if version else []
        return found[0] if found else ""

    def story(self, weights: Weights) -> list[str]:
        key: ShardKey = weights.key
        lines = ray.get(self.coordinator().story.remote(key.model_dump_json().encode()), timeout=10)
        return [f"{x.member[:12]} {x.what}" for x in map(StoryLine.model_validate_json, lines)]

    def transfer(self, index: int) -> ActorHandle:
        return ray.get_actor(transfer_name(self.node_ids[index], "cpu"), namespace=NAMESPACE)

    def member(self, index: int) -> MemberInfo | None:
        name = transfer_name(self.node_ids[index], "cpu")
        return next((m for m in self.status().members if m.actor_name == name), None)

    def joined(self, index: int) -> MemberInfo:
        found: MemberInfo = wait_until(lambda: self.member(index), f"host {index} has joined")
        return found

    def transfer_pid(self, index: int) -> int:
        return self.joined(index).pid

    def coordinator_pid(self) -> int:
        actors = ray._private.state.state.actor_table(self.coordinator()._actor_id.hex())
        return int(actors["Pid"])

    def progress(self, index: int, weights: Weights, timeout: float = 10.0) -> TransferProgress | None:
        try:
            lines = ray.get(self.transfer(index).progress.remote(), timeout=timeout)
        except (RayError, ValueError):
            return None
        found = [p for p in map(TransferProgress.model_validate_json, lines) if p.shard == weights.key]
        return found[0] if found else None

    def wait_for_share(self, index: int, weights: Weights, share: float) -> TransferProgress:
        """Return once a receiver has this share of the chunks; it must still be receiving."""

        def far_enough() -> TransferProgress | None:
            p = self.progress(index, weights)
            return p if p is not None and p.chunks and p.chunks_verified >= share * p.chunks else None

        found: TransferProgress = wait_until(far_enough, f"{share:.0%} of {weights.name} on host {index}", every=0.002)
        assert found.state == "receiving", f"too late to break anything: {found}"
        return found

    def upstream(self, index: int, weights: Weights) -> int:
        """The host that a receiver reads from."""
        p = self.progress(index, weights)
        assert p is not None and p.upstreams
        names = {m.member: m.node_id for m in self.status().members}
        return self.node_ids.index(names[p.upstreams[0]])

    # What breaks

    def kill(self, pid: int) -> None:
        os.kill(pid, signal.SIGKILL)
        wait_until(lambda: not is_alive(pid), f"process {pid} gone")

    def freeze(self, pid: int) -> None:
        os.kill(pid, signal.SIGSTOP)
        self._frozen.add(pid)

    def thaw(self, pid: int) -> None:
        self._frozen.discard(pid)
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGCONT)

    def thaw_all(self) -> None:
        for pid in list(self._frozen):
            self.thaw(pid)

    def kill_node(self, index: int) -> None:
        """The raylet and every process of it."""
        node = next(n for n in self.cluster.worker_nodes if n.node_id == self.node_ids[index])
        family = self.processes(index)
        for pid in family:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self.cluster.remove_node(node, allow_graceful=False)
        wait_until(lambda: not any(is_alive(p) for p in family), f"node {index} gone")

    def processes(self, index: int) -> list[int]:
        """The raylet of a host (not the head) and every process of it."""
        node = next(n for n in self.cluster.worker_nodes if n.node_id == self.node_ids[index])
        raylet = node.all_processes["raylet"][0].process.pid
        return [raylet, *(child.pid for child in psutil.Process(raylet).children(recursive=True))]

    def replace_node(self, index: int) -> None:
        """A new node in the place of one that was killed."""
        node = self.cluster.add_node(num_cpus=4, object_store_memory=100 * MiB, include_dashboard=False)
        self.node_ids[index] = self.hosts[index].node_id = node.node_id
        self.renew_engine(index)

    def flip_bytes(self, index: int, weights: Weights, *, at: int, count: int) -> None:
        """Change bytes in the arena of a host's transfer actor, behind its back."""
        pid = self.transfer_pid(index)
        for line in Path(f"/proc/{pid}/maps").read_text().splitlines():
            span, *_, path = line.split(maxsplit=5)
            start, end = (int(x, 16) for x in span.split("-"))
            if "/memfd:ray_weights:" in path and end - start >= weights.nbytes:
                with open(f"/proc/{pid}/mem", "r+b", buffering=0) as memory:
                    memory.seek(start + at)
                    old = memory.read(count)
                    memory.seek(start + at)
                    memory.write(bytes(b ^ 0xFF for b in old))
                return
        raise AssertionError(f"no arena of {weights.name} in process {pid}")

    # What is left

    def clean_up(self, *all_weights: Weights) -> None:
        """Drop the weights everywhere; then no arena, lease or memory may be left."""
        for host in self.hosts:
            for weights in all_weights:
                with contextlib.suppress(RayError):
                    ray.get(host.engine.let_go.remote(weights), timeout=PATIENCE)
                wait_until(
                    lambda i=host.index, w=weights: self.progress(i, w) is None or self._drop(i, w),
                    f"{weights.name} is dropped on host {host.index}",
                )
        wait_until(lambda: not arenas_of(tuple(self.node_ids)), f"no memory is left: {arenas_of(tuple(self.node_ids))}")
        wait_until(lambda: not self._leases(), "no lease is left")
        wait_until(self._one_transfer_actor_each, "one transfer actor on each node, and none stopped")

    def _leases(self) -> int:
        """Granted and held, on all hosts."""
        try:
            counts = ray.get([self.transfer(h.index).lease_counts.remote() for h in self.hosts], timeout=10)
        except (RayError, ValueError):
            return -1  # one is being started again
        return sum(granted + held for granted, held in counts)

    def _one_transfer_actor_each(self) -> bool:
        """No second process of a transfer actor, nor one that is frozen; killed ones are gone."""
        states = [
            state for command, state in processes_in(Path(os.environ["RAY_TMPDIR"])) if "TransferActor" in command
        ]
        return len(states) == len(self.hosts) and psutil.STATUS_STOPPED not in states

    def _drop(self, index: int, weights: Weights) -> bool:
        p = self.progress(index, weights)
        if p is not None and p.state == "ready" and p.version is not None:
            key = weights.key.model_dump_json().encode()
            with contextlib.suppress(RayError):
                ray.get(self.transfer(index).drop.remote(key, p.version), timeout=PATIENCE)
        return self.progress(index, weights) is None
