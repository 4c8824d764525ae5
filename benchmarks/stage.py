"""What every case stands on: hosts with one replica each, and a way to measure one trial."""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from benchmarks.meter import Meter, Used
from benchmarks.network import Host, Network
from benchmarks.replica import Got, Replica
from benchmarks.results import Trial, add_up
from ray_weights.actors.names import COORDINATOR, NAMESPACE
from ray_weights.config import ServiceSettings
from ray_weights.schemas.keys import ModelKey, ShardKey
from ray_weights.schemas.status import CoordinatorStatus, StoryLine

_UNUSUAL = ("lost", "moved", "takes the place", "made a leaf", "makes room", "quarantined", "gave up")
"""How lines of a story begin that a trial without faults should not have: shown, as they explain its time."""
LEAD_SECONDS = 0.3
"""Receivers are told this long ahead when to begin, so that they begin together."""


@dataclass(frozen=True, slots=True)
class Sizes:
    nbytes: int
    link_rate: float
    """Bytes per second; infinite where links are not shaped."""

    @property
    def line_seconds(self) -> float:
        """What the bytes take at the link's rate."""
        return self.nbytes / self.link_rate


class Stage:
    """`hosts`: the origin's first; each has one Ray node. The head of the cluster is not one of them."""

    def __init__(self, network: Network, hosts: Sequence[Host], sizes: Sizes, settings: ServiceSettings) -> None:
        self.network = network
        self.sizes = sizes
        self.settings = settings
        self.hosts = tuple(hosts)
        self._nodes = {n["NodeManagerAddress"]: n["NodeID"] for n in ray.nodes() if n["Alive"]}
        self._names = (f"bench-{n}" for n in itertools.count())
        packed = settings.model_dump_json().encode()
        self.replicas = [
            Replica.options(scheduling_strategy=self.on(i)).remote(h.name, sizes.nbytes, packed)
            for i, h in enumerate(self.hosts)
        ]
        ray.get([r.member_actor.remote() for r in self.replicas], timeout=300)

    def on(self, host: int) -> NodeAffinitySchedulingStrategy:
        """Where to run an actor so that it is on host number `host`."""
        return NodeAffinitySchedulingStrategy(node_id=self._nodes[self.hosts[host].address], soft=False)

    def status(self) -> CoordinatorStatus:
        coordinator = ray.get_actor(COORDINATOR, namespace=NAMESPACE)
        return CoordinatorStatus.model_validate_json(ray.get(coordinator.status.remote(), timeout=30))

    def pids(self) -> dict[str, int]:
        """The transfer actor's process of each host."""
        by_address = {m.node_name: m.pid for m in self.status().members}
        return {h.name: by_address[h.address] for h in self.hosts if h.address in by_address}

    def wait_for_restart(self, host: int, before: dict[str, int]) -> None:
        """Return once a killed transfer actor is back and the coordinator knows its new process."""
        name, deadline = self.hosts[host].name, time.monotonic() + 60
        while self.pids().get(name) in (None, before[name]):
            if time.monotonic() > deadline:
                raise TimeoutError(f"the transfer actor of {name} did not come back")
            time.sleep(0.25)
        ray.get(self.replicas[host].wait_for_transfer_actor.remote(60.0), timeout=90)

    def host_of(self, member: str) -> str:
        """Host name of a transfer actor."""
        addresses = {m.member: m.node_name for m in self.status().members}
        names = {h.address: h.name for h in self.hosts}
        return names.get(addresses.get(member, ""), member)

    def story(self, model: str) -> list[StoryLine]:
        """What the coordinator did, and why."""
        coordinator = ray.get_actor(COORDINATOR, namespace=NAMESPACE)
        shard = ShardKey(model=ModelKey(model=model)).model_dump_json().encode()
        return [StoryLine.model_validate_json(x) for x in ray.get(coordinator.story.remote(shard), timeout=30)]

    @contextmanager
    def weights(self, among: Sequence[int]) -> Iterator[str]:
        """Weights that nobody has but host 0; dropped from the hosts `among` and host 0 at the end."""
        model = next(self._names)
        ray.get(self.replicas[0].load.remote(model), timeout=120)
        try:
            yield model
        finally:
            ray.get([self.replicas[i].drop.remote(model) for i in {0, *among}], timeout=120)
            time.sleep(0.5)

    def receive(
        self, model: str, receivers: Sequence[int], delays: Sequence[float] = (), patience: float = 20.0
    ) -> list[Any]:
        """Have these hosts ask for the weights together, or each `delays` seconds later; returns pending answers."""
        start = time.monotonic() + LEAD_SECONDS
        waits = delays or [0.0] * len(receivers)
        timeout = patience * self.sizes.line_seconds + 60
        return [
            self.replicas[i].receive.remote(model, start + w, timeout) for i, w in zip(receivers, waits, strict=True)
        ]

    def wrong_bytes(self, model: str, hosts: Sequence[int]) -> int:
        """Of what these hosts have received."""
        return sum(ray.get([self.replicas[i].wrong_bytes.remote(model) for i in hosts], timeout=120))

    def measure(
        self, case: str, label: str, repeat: int, receivers: Sequence[int], delays: Sequence[float] = ()
    ) -> Trial:
        """1 -> N as it is: fresh weights on host 0, received by `receivers`."""
        with self.weights(receivers) as model:
            calls, meter = self.status().calls, Meter(self.network, self.pids())
            got = ray.get(self.receive(model, receivers, delays), timeout=600)
            for line in self.story(model):
                if line.what.startswith(_UNUSUAL):
                    print(f"  {line.node}: {line.what}", flush=True)
            return self.trial(case, label, repeat, got, meter.read(), self.status().calls - calls)

    def trial(
        self, case: str, label: str, repeat: int, got: Sequence[Got], used: Used, calls: int, **facts: float
    ) -> Trial:
        return Trial(
            case=case,
            label=label,
            repeat=repeat,
            receivers=len(got),
            nbytes=self.sizes.nbytes,
            seconds=tuple(g.ended - g.began for g in got),
            span=max(g.ended for g in got) - min(g.began for g in got),
            transfer_seconds=tuple(g.transfer_seconds for g in got),
            first_chunk_seconds=tuple(g.first_chunk_seconds for g in got),
            origin_sent=used.links[self.hosts[0].name].sent,
            received=tuple(used.links[g.host].received for g in got),
            cpu_busy=used.cpu_busy,
            cpu_by_host=tuple(used.cpu_seconds.items()),
            cpu_by_thread=add_up(used.thread_seconds[g.host].items() for g in got if g.host in used.thread_seconds),
            coordinator_calls=calls,
            facts=tuple(facts.items()),
        )
