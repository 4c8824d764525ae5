"""One version of one shard, as the registry keeps it."""

from __future__ import annotations

from dataclasses import dataclass, field

from ray_weights.core.swarm import Swarm
from ray_weights.schemas.keys import ShardKey
from ray_weights.schemas.members import ReceiveStats, Seal
from ray_weights.schemas.messages import Open
from ray_weights.schemas.status import ReplicaState, ReplicaStatus, VersionStatus


@dataclass(slots=True)
class Replica:
    """One member's part in one version."""

    member: str
    state: ReplicaState
    open: Open | None = None
    """What it asked for; None for one that published or joined with the shard in hand."""
    question: int = 0
    """The last one of the member's questions for the newest version that this one answers."""
    reason: str = ""
    from_storage: bool = False
    stats: ReceiveStats | None = None
    avoided: dict[str, float] = field(default_factory=dict)
    """Upstreams that failed this receiver -> when."""
    asks: Open | None = None
    """Came while it is quarantined: answered when it has read its own memory again."""
    last_upstreams: tuple[str, ...] = ()
    """Kept after completion, for the tree that people see."""
    last_depth: int = 0


@dataclass(slots=True)
class VersionRecord:
    """Who loads, waits for, receives and holds one version of one shard."""

    shard: ShardKey
    version: int
    seal: Seal | None = None
    storage_reads: int = 0
    replicas: dict[str, Replica] = field(default_factory=dict)
    """By member, in order of arrival: the first waiter is the next origin."""
    swarm: Swarm = field(default_factory=Swarm)
    burst_at: float | None = None
    """When the receivers that have gathered are to be placed."""
    gathering_since: float = 0.0
    placed_at: float = float("-inf")
    """When receivers were last placed: a burst shows by the next one following closely."""

    def in_state(self, *states: ReplicaState) -> list[Replica]:
        return [r for r in self.replicas.values() if r.state in states]

    def sources(self) -> list[Replica]:
        return self.in_state("ready")

    def origin(self) -> Replica | None:
        return next(iter(self.in_state("loading")), None)

    def alive(self) -> bool:
        """Whether anybody holds, loads or receives it."""
        return bool(self.replicas)

    def status(self, node_of: dict[str, str]) -> VersionStatus:
        replicas = []
        for r in self.replicas.values():
            in_swarm = r.member in self.swarm
            upstreams = self.swarm.vertex(r.member).upstreams if in_swarm else ()
            replicas.append(
                ReplicaStatus(
                    member=r.member,
                    node=node_of.get(r.member, "?"),
                    state=r.state,
                    upstreams=upstreams or r.last_upstreams,
                    depth=self.swarm.vertex(r.member).depth if upstreams else r.last_depth,
                    from_storage=r.from_storage,
                    stats=r.stats,
                    reason=r.reason,
                )
            )
        return VersionStatus(
            version=self.version, seal=self.seal, storage_reads=self.storage_reads, replicas=tuple(replicas)
        )

    def validate(self) -> None:
        """Raise AssertionError where the states and the graph disagree."""
        assert len(self.in_state("loading")) <= 1, f"two origins of {self.shard} v{self.version}"
        for r in self.replicas.values():
            if r.state in ("ready", "quarantined"):
                assert r.member in self.swarm and self.swarm.vertex(r.member).complete, f"{r.member} is {r.state}"
                assert self.swarm.vertex(r.member).barred == (r.state == "quarantined")
            elif r.state == "receiving":
                vertex = self.swarm.vertex(r.member)
                assert not vertex.complete and vertex.upstreams, f"{r.member} receives from nobody"
            else:
                assert r.member not in self.swarm, f"{r.member} is {r.state} and in the graph"
        assert set(self.swarm.members()) <= set(self.replicas)
        if self.in_state("receiving", "ready", "quarantined"):
            assert self.seal is not None
        self.swarm.validate()
