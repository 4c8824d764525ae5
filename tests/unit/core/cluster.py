"""A coordinator's registry and the members that talk to it, for tests: short words for long messages."""

from __future__ import annotations

from collections.abc import Iterable

from ray_weights.core.outbox import Outgoing
from ray_weights.core.registry import Registry, RegistryOptions
from ray_weights.schemas import messages as m
from ray_weights.schemas.keys import ModelKey, ShardKey
from ray_weights.schemas.members import Holding, Loading, MemberInfo, ReceiveStats, Receiving, Seal
from ray_weights.schemas.status import ReplicaStatus

SHARD = ShardKey(model=ModelKey(model="org/llama"))
CHUNKS = 16


def seal(digest: str = "aa", layout: str = "layout") -> Seal:
    return Seal(layout_digest=layout, manifest_digest=digest * 32, nbytes=CHUNKS * 100, chunk_nbytes=100, chunks=CHUNKS)


def info(member: str, *, node: str | None = None, rack: str = "") -> MemberInfo:
    return MemberInfo(
        member=member,
        actor_name=f"actor-{member.partition('#')[0]}",
        node_id=node or member,
        node_name=node or f"node-{member}",
        device="cpu",
        labels=(("rack", rack),) if rack else (),
    )


class Cluster:
    """A registry at a clock of its own. Each method sends one event and checks every invariant after it."""

    def __init__(self, options: RegistryOptions | None = None, epoch: int = 1, expected: Iterable[str] = ()) -> None:
        self.now = 100.0
        self.registry = Registry(epoch, self.now, options or RegistryOptions(), frozenset(expected))
        self.sent: list[Outgoing] = []

    def send(self, event: m.Event) -> list[m.Command]:
        """Returns the commands for the sender."""
        return self._keep(self.registry.handle(event, self.now), event.member)

    def wait(self, seconds: float = 1.0) -> None:
        self.now += seconds
        self._keep(self.registry.tick(self.now))

    def join(
        self,
        *members: str,
        holdings: tuple[Holding, ...] = (),
        receiving: tuple[Receiving, ...] = (),
        loading: tuple[Loading, ...] = (),
        node: str | None = None,
        rack: str = "",
    ) -> None:
        for name in members:
            join = m.Join(
                epoch=self.registry.epoch,
                member=name,
                info=info(name, node=node, rack=rack),
                holdings=holdings,
                receiving=receiving,
                loading=loading,
            )
            self.send(join)

    def open(
        self,
        member: str,
        *,
        version: int | None = None,
        layout: str = "layout",
        may_load: bool = True,
        shard: ShardKey = SHARD,
    ) -> list[m.Command]:
        return self.send(
            m.Open(
                epoch=self.registry.epoch,
                member=member,
                shard=shard,
                version=version,
                layout_digest=layout,
                may_load=may_load,
            )
        )

    def seal(self, member: str, *, version: int = 1, digest: str = "aa", layout: str = "layout") -> list[m.Command]:
        return self.send(
            m.Sealed(epoch=self.registry.epoch, member=member, shard=SHARD, version=version, seal=seal(digest, layout))
        )

    def complete(self, member: str, *, version: int = 1, seconds: float = 1.0) -> list[m.Command]:
        stats = ReceiveStats(nbytes=CHUNKS * 100, seconds=seconds)
        return self.send(
            m.Completed(epoch=self.registry.epoch, member=member, shard=SHARD, version=version, stats=stats)
        )

    def lose(self, member: str, upstream: str, kind: m.LossKind = "dead") -> list[m.Command]:
        return self.send(
            m.UpstreamLost(
                epoch=self.registry.epoch,
                member=member,
                shard=SHARD,
                version=1,
                upstream=upstream,
                kind=kind,
            )
        )

    def measure(self, member: str, upstream: str, rate: float) -> None:
        self.send(
            m.Measured(epoch=self.registry.epoch, member=member, shard=SHARD, version=1, upstream=upstream, rate=rate)
        )

    def give_up(self, member: str) -> None:
        self.send(m.GaveUp(epoch=self.registry.epoch, member=member, shard=SHARD, reason="deadline"))

    def reverified(self, member: str, bad: int = 0) -> None:
        self.send(m.Reverified(epoch=self.registry.epoch, member=member, shard=SHARD, version=1, bad_chunks=bad))

    def die(self, member: str) -> None:
        self._keep(self.registry.member_died(member, self.now))

    def source_with(self, *receivers: str, apart: float = 1.0) -> None:
        """A source "s", and receivers that ask one after another."""
        self.join("s", *receivers)
        self.open("s")
        self.seal("s")
        for r in receivers:
            self.wait(apart)
            self.open(r)
        self.wait()

    def replica(self, member: str, version: int = 1) -> ReplicaStatus | None:
        for shard in self.registry.status():
            for v in shard.versions:
                for r in v.replicas:
                    if shard.shard == SHARD and v.version == version and r.member == member:
                        return r
        return None

    def state(self, member: str, version: int = 1) -> str:
        found = self.replica(member, version)
        return found.state if found else "unknown"

    def upstreams(self, member: str) -> tuple[str, ...]:
        found = self.replica(member)
        return found.upstreams if found else ()

    def storage_reads(self, version: int = 1) -> int:
        return next(v.storage_reads for s in self.registry.status() for v in s.versions if v.version == version)

    def last(self, member: str) -> m.Command:
        """The last command sent to a member."""
        return next(o.command for o in reversed(self.sent) if o.member == member)

    def story(self) -> list[str]:
        return [f"{line.member}: {line.what}" for line in self.registry.story(SHARD)]

    def _keep(self, out: list[Outgoing], member: str = "") -> list[m.Command]:
        self.registry.validate()
        self.sent += out
        return [o.command for o in out if o.member == member]
