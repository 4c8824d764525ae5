"""Who decides: the real registry, or a baseline without one."""

from __future__ import annotations

from collections import deque
from typing import Protocol

from ray_weights.core.placing import PlacingOptions
from ray_weights.core.planner import PlannerOptions
from ray_weights.core.registry import Registry, RegistryOptions
from ray_weights.schemas import messages as m
from ray_weights.schemas.keys import ModelKey, ShardKey
from ray_weights.schemas.members import Holding, MemberInfo, ReceiveStats, Seal
from ray_weights.simulation.scenario import Scenario

SHARD = ShardKey(model=ModelKey(model="simulated"))
Assignments = list[tuple[str, tuple[str, ...]]]
"""(receiver, upstreams)."""


class Coordination(Protocol):
    """Each call is one message of a member; it returns whom to tell what."""

    def sealed(self, now: float) -> Assignments: ...
    def open(self, member: str, now: float) -> Assignments: ...
    def completed(self, member: str, seconds: float, now: float) -> Assignments: ...
    def measured(self, member: str, upstream: str, rate: float, now: float) -> Assignments: ...
    def lost(self, member: str, upstream: str, kind: m.LossKind, now: float) -> Assignments: ...
    def died(self, member: str, now: float) -> Assignments: ...
    def tick(self, now: float) -> Assignments: ...
    def next_wakeup(self) -> float | None: ...


class Real:
    """ray_weights' own registry and planner."""

    def __init__(self, scenario: Scenario, infos: list[MemberInfo], known_rates: dict[str, float]) -> None:
        threshold = {"chain": 1 << 30, "trees": 0}.get(scenario.strategy, PlannerOptions().stripe_threshold)
        planner = PlannerOptions(
            stripe_threshold=threshold, egress_rate=scenario.nic_rate if scenario.flow_rate else 0.0
        )
        self.registry = Registry(1, 0.0, RegistryOptions(placing=PlacingOptions(planner=planner)))
        self._nbytes = int(scenario.nbytes)
        seal = Seal(
            layout_digest="layout",
            manifest_digest="ab" * 32,
            nbytes=self._nbytes,
            chunk_nbytes=max(1, int(scenario.chunk_nbytes)),
            chunks=scenario.chunks,
        )
        one_loads = scenario.arrival == "waiting" and scenario.sources == 1
        earlier = SHARD.model_copy(update={"rank": "earlier"})
        for i, info in enumerate(infos):
            holdings: tuple[Holding, ...] = ()
            if i < scenario.sources and not one_loads:
                holdings = (Holding(shard=SHARD, version=1, seal=seal),)
            if info.member in known_rates:
                rate = known_rates[info.member]
                holdings += (Holding(shard=earlier, version=1, seal=seal, rate=rate),)
            self.registry.handle(m.Join(epoch=1, member=info.member, info=info, holdings=holdings), 0.0)

        self._receivers = [i.member for i in infos[scenario.sources :]]
        self._seal = seal
        self._origin = infos[0].member if one_loads else None
        if one_loads:
            for info in infos:
                self.registry.handle(m.Open(epoch=1, member=info.member, shard=SHARD, may_load=True), 0.0)

    def sealed(self, now: float) -> Assignments:
        """What everybody waits for is there. Several sources have it from the start: then everybody asks
        now."""
        if self._origin is not None:
            return self._handle(m.Sealed(epoch=1, member=self._origin, shard=SHARD, version=1, seal=self._seal), now)
        asked = [a for member in self._receivers for a in self.open(member, now)]
        return asked + self.tick(now + 1.0)

    def open(self, member: str, now: float) -> Assignments:
        return self._handle(m.Open(epoch=1, member=member, shard=SHARD), now)

    def completed(self, member: str, seconds: float, now: float) -> Assignments:
        stats = ReceiveStats(nbytes=self._nbytes, seconds=seconds)
        return self._handle(m.Completed(epoch=1, member=member, shard=SHARD, version=1, stats=stats), now)

    def measured(self, member: str, upstream: str, rate: float, now: float) -> Assignments:
        event = m.Measured(epoch=1, member=member, shard=SHARD, version=1, upstream=upstream, rate=rate)
        return self._handle(event, now)

    def lost(self, member: str, upstream: str, kind: m.LossKind, now: float) -> Assignments:
        event = m.UpstreamLost(epoch=1, member=member, shard=SHARD, version=1, upstream=upstream, kind=kind)
        return self._handle(event, now)

    def died(self, member: str, now: float) -> Assignments:
        return self._assignments(self.registry.member_died(member, now))

    def tick(self, now: float) -> Assignments:
        return self._assignments(self.registry.tick(now))

    def next_wakeup(self) -> float | None:
        return self.registry.next_wakeup()

    def _handle(self, event: m.Event, now: float) -> Assignments:
        return self._assignments(self.registry.handle(event, now))

    def _assignments(self, out: list) -> Assignments:  # type: ignore[type-arg]
        return [(o.member, o.command.upstreams) for o in out if isinstance(o.command, m.Receive)]


class Baseline:
    """What others do: a star, complete copies only, one binary tree. Knows nothing of failures or slow
    members."""

    def __init__(self, scenario: Scenario, infos: list[MemberInfo]) -> None:
        self._strategy = scenario.strategy
        self._sources = deque(i.member for i in infos[: scenario.sources])
        self._receivers = [i.member for i in infos[scenario.sources :]]
        self._tree: list[str] = list(self._sources)
        self._waiting: deque[str] = deque()
        self._reads_from: dict[str, str] = {}

    def sealed(self, now: float) -> Assignments:
        return [a for member in self._receivers for a in self.open(member, now)]

    def open(self, member: str, now: float) -> Assignments:
        if self._strategy == "star":
            self._sources.rotate(-1)
            return [(member, (self._sources[0],))]
        if self._strategy == "tree":
            self._tree.append(member)
            return [(member, (self._tree[(len(self._tree) - 2) // 2],))]
        self._waiting.append(member)
        return self._serve()

    def completed(self, member: str, seconds: float, now: float) -> Assignments:
        if self._strategy != "complete-copies":
            return []
        self._sources += [self._reads_from.pop(member), member]
        return self._serve()

    def _serve(self) -> Assignments:
        out: Assignments = []
        while self._waiting and self._sources:
            member, source = self._waiting.popleft(), self._sources.popleft()
            self._reads_from[member] = source
            out.append((member, (source,)))
        return out

    def measured(self, member: str, upstream: str, rate: float, now: float) -> Assignments:
        return []

    def lost(self, member: str, upstream: str, kind: m.LossKind, now: float) -> Assignments:
        return [(member, (self._tree[0] if self._tree else upstream,))]

    def died(self, member: str, now: float) -> Assignments:
        return []

    def tick(self, now: float) -> Assignments:
        return []

    def next_wakeup(self) -> float | None:
        return None
