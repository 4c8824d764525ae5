"""Discrete events around the real Registry and the real Receivers; only time, wires and chance are made
up."""

from __future__ import annotations

import functools
import heapq
import random
import statistics
import time
from collections.abc import Callable

from ray_weights.core.link import ReceiverOptions
from ray_weights.schemas.members import MemberInfo
from ray_weights.simulation.coordination import Assignments, Baseline, Coordination, Real
from ray_weights.simulation.host import Host
from ray_weights.simulation.network import End, Network
from ray_weights.simulation.scenario import Result, Scenario, Tiers

_DETECTION = 0.03
"""Seconds until a read from a process that was killed fails (measured with NIXL over TCP)."""


class Simulation:
    """One run."""

    def __init__(self, scenario: Scenario) -> None:
        self.scenario = scenario
        self.now = 0.0
        self.events = 0
        self.calls = 0
        self.tiers = {"node": 0.0, "rack": 0.0, "fabric": 0.0}
        self.receiver_options = ReceiverOptions(
            window=scenario.window, measure_chunks=4 if scenario.strategy in ("auto", "chain", "trees") else 0
        )
        self.network = Network(self.at, scenario.chunk_nbytes)
        self._heap: list[tuple[float, int, Callable[[], None]]] = []
        self._serial = 0
        self._rng = random.Random(scenario.seed)
        self._coordinator_free = 0.0
        self._wakeup: float | None = None
        self.hosts: dict[str, Host] = {}
        self._racks: dict[str, tuple[End, End]] = {}
        self._make_hosts()
        self.coordination = self._make_coordination()

    def at(self, when: float, act: Callable[[], None]) -> None:
        self._serial += 1
        heapq.heappush(self._heap, (when, self._serial, act))

    def run(self) -> None:
        scenario = self.scenario
        receivers = [h for h in self.hosts.values() if not h.source]
        for host, arrival in zip(receivers, self._arrivals(len(receivers)), strict=True):
            host.arrived_at = arrival
            if scenario.arrival != "waiting":
                self.at(arrival, functools.partial(self._open, host))
        if scenario.arrival == "waiting":
            self.calls += len(receivers)  # each has asked
            self.call(self.coordination.sealed)
        for host in self._rng.sample(receivers, min(scenario.failures, len(receivers))):
            moment = host.arrived_at + self._rng.uniform(0.1, 0.9) * scenario.nbytes / scenario.nic_rate
            self.at(moment, functools.partial(self._kill, host))
        heap, network = self._heap, self.network
        while heap:
            self.now, _, act = heapq.heappop(heap)
            network.now = self.now
            self.events += 1
            act()

    # The cluster

    def _make_hosts(self) -> None:
        s, rng = self.scenario, self._rng
        nics: dict[str, tuple[End, End]] = {}
        first, last = s.sources, s.sources + s.receivers
        slow = set(
            range(first, first + s.stragglers)
            if s.straggler_first
            else rng.sample(range(first, last), min(s.stragglers, s.receivers))
        )
        for i in range(last):
            node = f"n{i if i < s.sources else s.sources + (i - s.sources) // s.members_per_node:05d}"
            labels: tuple[tuple[str, str], ...] = ()
            if s.nodes_per_rack:
                labels = (("rack", f"r{int(node[1:]) // s.nodes_per_rack:04d}"),)
            share = s.straggler_share if i in slow else 1.0
            if node not in nics:
                nics[node] = (End(s.nic_rate * share), End(s.nic_rate * share))
            info = MemberInfo(
                member=f"m{i:05d}", actor_name=f"m{i:05d}", node_id=node, node_name=node, device="cuda", labels=labels
            )
            self.hosts[info.member] = Host(self, info, nics[node], source=i < s.sources, slow=i in slow)

    def _make_coordination(self) -> Coordination:
        infos = [h.info for h in self.hosts.values()]
        if self.scenario.strategy not in ("auto", "chain", "trees"):
            return Baseline(self.scenario, infos)
        known = {}
        if self.scenario.stragglers_known:
            known = {h.info.member: h.nic[0].rate for h in self.hosts.values()}
        return Real(self.scenario, infos, known)

    def path(self, upstream: Host, reader: Host) -> tuple[tuple[End, ...], float]:
        """What a flow passes, and the most that it can carry."""
        s = self.scenario
        if upstream.info.node_id == reader.info.node_id:
            return (), s.node_rate
        ends = [upstream.nic[0], reader.nic[1]]
        if s.rack_rate and upstream.info.labels != reader.info.labels:
            ends += [self._rack(upstream)[0], self._rack(reader)[1]]
        return tuple(ends), s.flow_rate or s.nic_rate

    def _rack(self, host: Host) -> tuple[End, End]:
        name = host.info.labels[0][1] if host.info.labels else ""
        return self._racks.setdefault(name, (End(self.scenario.rack_rate), End(self.scenario.rack_rate)))

    def tier(self, upstream: Host, reader: Host) -> str:
        if upstream.info.node_id == reader.info.node_id:
            return "node"
        return "rack" if upstream.info.labels and upstream.info.labels == reader.info.labels else "fabric"

    def _arrivals(self, count: int) -> list[float]:
        s = self.scenario
        over = s.spread * s.nbytes / (s.flow_rate or s.nic_rate)
        if s.arrival == "waiting":
            return [0.0] * count
        if s.arrival == "at-once":
            return [self._rng.uniform(0, 1e-3) for _ in range(count)]
        if s.arrival == "staggered":
            return [over * i / max(1, count - 1) for i in range(count)]
        times, now = [], 0.0
        for _ in range(count):
            times.append(now)
            now += self._rng.expovariate(count / over)
        return times

    # The coordinator

    def call(self, act: Callable[[float], Assignments]) -> None:
        """A message to the coordinator, which serves one after another; then what it says to whom."""
        self.calls += 1
        arrival = self.now + self.scenario.coordinator_seconds
        self._coordinator_free = max(arrival, self._coordinator_free) + 1 / self.scenario.coordinator_calls_per_second
        self.at(self._coordinator_free, lambda: self._told(act(self.now)))

    def _told(self, assignments: Assignments) -> None:
        later = self.now + self.scenario.coordinator_seconds
        for member, upstreams in assignments:
            self.at(later, functools.partial(self.hosts[member].assign, upstreams))
        wakeup = self.coordination.next_wakeup()
        if wakeup is not None and wakeup != self._wakeup:
            self._wakeup = wakeup
            self.at(wakeup, self._tick)

    def _tick(self) -> None:
        self._wakeup = None
        self._told(self.coordination.tick(self.now))

    def _open(self, host: Host) -> None:
        self.call(lambda now: self.coordination.open(host.info.member, now))

    def _kill(self, host: Host) -> None:
        if host.finished_at is not None:
            return
        host.die()
        for other in self.hosts.values():
            self.at(self.now + _DETECTION, functools.partial(other.upstream_died, host.info.member))
        self.at(self.now + _DETECTION, lambda: self._told(self.coordination.died(host.info.member, self.now)))


def run(scenario: Scenario) -> Result:
    """Simulate. The lone receiver that ratios refer to is simulated too, in the same cluster."""
    started = time.process_time()
    simulation = Simulation(scenario)
    simulation.run()
    receivers = [h for h in simulation.hosts.values() if not h.source]
    done = [h for h in receivers if h.finished_at is not None]
    missing = [h.info.member for h in receivers if h.finished_at is None and h.alive]
    if missing:
        raise RuntimeError(f"{len(missing)} receivers never finished, the first is {missing[0]}")
    times = sorted(h.seconds for h in done)
    makespan = max((h.finished_at or 0.0) for h in done) - min(h.arrived_at for h in receivers)
    wire = scenario.nbytes / scenario.nic_rate
    return Result(
        scenario=scenario,
        makespan=makespan,
        mean=statistics.fmean(times),
        p50=times[len(times) // 2],
        p99=times[min(len(times) - 1, int(0.99 * len(times)))],
        worst=times[-1],
        others_mean=statistics.fmean([h.seconds for h in done if not h.slow] or times),
        lone=_lone_seconds(scenario),
        wire=wire,
        bound=wire * scenario.bound,
        completed=len(done),
        died=len(receivers) - len(done),
        tiers=Tiers(**simulation.tiers),
        origin_nbytes=next(iter(simulation.hosts.values())).sent,
        coordinator_calls=simulation.calls,
        calls_per_receiver=simulation.calls / scenario.receivers,
        calls_per_second=simulation.calls / makespan,
        read_again=sum(h.read_again for h in receivers),
        storage=scenario.storage_seconds,
        events=simulation.events,
        cpu_seconds=time.process_time() - started,
    )


@functools.lru_cache(maxsize=64)
def _lone(scenario: Scenario) -> float:
    simulation = Simulation(scenario)
    simulation.run()
    return next(h.seconds for h in simulation.hosts.values() if not h.source)


def _lone_seconds(scenario: Scenario) -> float:
    alone = {"receivers": 1, "sources": 1, "stragglers": 0, "failures": 0, "arrival": "at-once", "strategy": "chain"}
    return _lone(scenario.model_copy(update={**alone, "seed": 0}))
