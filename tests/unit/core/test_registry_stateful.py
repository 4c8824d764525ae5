"""Hypothesis drives the registry with any events in any order; every invariant holds after each."""

from __future__ import annotations

from contextlib import suppress

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from ray_weights.core.registry import Registry, RegistryOptions
from ray_weights.errors import Fenced, LimitReached
from ray_weights.schemas import messages as m
from ray_weights.schemas.keys import ShardKey
from ray_weights.schemas.members import Holding, ReceiveStats, Receiving
from tests.unit.core.cluster import CHUNKS, SHARD, info, seal

MEMBERS = [f"m{i}" for i in range(14)]
members = st.sampled_from(MEMBERS)
shards = st.sampled_from([SHARD, SHARD.model_copy(update={"rank": "tp1"})])
versions = st.sampled_from([1, 2])
digests = st.sampled_from(["aa", "aa", "aa", "bb"])
layouts = st.sampled_from(["layout", "layout", "layout", "", "other"])


class RegistryMachine(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.now = 0.0
        self.registry = Registry(1, self.now, RegistryOptions(max_members=12, max_replicas=11))
        self.commands: dict[str, m.Command] = {}

    def send(self, event: m.Event) -> None:
        with suppress(Fenced, LimitReached):
            self.keep(self.registry.handle(event, self.now))

    def keep(self, out: list) -> None:  # type: ignore[type-arg]
        known = {i.member for i in self.registry.members()}
        for o in out:
            assert o.command.epoch == self.registry.epoch
            self.commands[o.member] = o.command
            if isinstance(o.command, m.Receive):
                assert set(o.command.upstreams) <= known, "sent to read from somebody who is gone"
                assert o.member not in o.command.upstreams
                assert {a for a, _ in o.command.addresses} == set(o.command.upstreams)

    @rule(member=members, held=st.booleans(), digest=digests, rate=st.sampled_from([0.0, 1.0, 10.0]))
    def join(self, member: str, held: bool, digest: str, rate: float) -> None:
        holding = Holding(shard=SHARD, version=1, seal=seal(digest), rate=rate)
        self.send(
            m.Join(epoch=self.registry.epoch, member=member, info=info(member), holdings=(holding,) if held else ())
        )

    @rule(
        member=members,
        shard=shards,
        version=st.sampled_from([None, None, 1, 2]),
        layout=layouts,
        may_load=st.booleans(),
    )
    def open(self, member: str, shard: ShardKey, version: int | None, layout: str, may_load: bool) -> None:
        self.send(
            m.Open(
                epoch=self.registry.epoch,
                member=member,
                shard=shard,
                version=version,
                layout_digest=layout,
                may_load=may_load,
            )
        )

    @rule(count=st.integers(2, 14))
    def everybody_opens(self, count: int) -> None:
        for member in MEMBERS[:count]:
            self.open(member, SHARD, 1, "layout", True)

    @rule(member=members, shard=shards, version=versions, digest=digests)
    def sealed(self, member: str, shard: ShardKey, version: int, digest: str) -> None:
        self.send(m.Sealed(epoch=self.registry.epoch, member=member, shard=shard, version=version, seal=seal(digest)))

    @rule(member=members, shard=shards, version=versions, seconds=st.sampled_from([0.0, 1.0, 30.0]))
    def completed(self, member: str, shard: ShardKey, version: int, seconds: float) -> None:
        stats = ReceiveStats(nbytes=CHUNKS * 100, seconds=seconds)
        self.send(m.Completed(epoch=self.registry.epoch, member=member, shard=shard, version=version, stats=stats))

    @rule(
        data=st.data(),
        member=members,
        kind=st.sampled_from(["dead", "unreachable", "stalled", "starved", "corrupt", "stale"]),
    )
    def upstream_lost(self, data: st.DataObject, member: str, kind: m.LossKind) -> None:
        command = self.commands.get(member)
        upstreams = command.upstreams if isinstance(command, m.Receive) else tuple(MEMBERS[:2])
        self.send(
            m.UpstreamLost(
                epoch=self.registry.epoch,
                member=member,
                shard=SHARD,
                version=1,
                upstream=data.draw(st.sampled_from(upstreams)),
                kind=kind,
            )
        )

    @rule(data=st.data(), member=members, rate=st.sampled_from([1.0, 10.0, 11.0]))
    def measured(self, data: st.DataObject, member: str, rate: float) -> None:
        command = self.commands.get(member)
        if isinstance(command, m.Receive):
            upstream = data.draw(st.sampled_from(command.upstreams))
            self.send(
                m.Measured(
                    epoch=self.registry.epoch,
                    member=member,
                    shard=command.shard,
                    version=command.version,
                    upstream=upstream,
                    rate=rate,
                )
            )

    @rule(member=members, shard=shards, version=st.sampled_from([None, 1, 2]), storage=st.booleans())
    def gave_up(self, member: str, shard: ShardKey, version: int | None, storage: bool) -> None:
        self.send(
            m.GaveUp(
                epoch=self.registry.epoch,
                member=member,
                shard=shard,
                version=version,
                reason="",
                read_storage=storage,
            )
        )

    @rule(member=members, shard=shards, version=versions)
    def dropped(self, member: str, shard: ShardKey, version: int) -> None:
        self.send(m.Dropped(epoch=self.registry.epoch, member=member, shard=shard, version=version))

    @rule(member=members, shard=shards, version=versions, hopeless=st.booleans())
    def origin_error(self, member: str, shard: ShardKey, version: int, hopeless: bool) -> None:
        self.send(
            m.OriginError(
                epoch=self.registry.epoch, member=member, shard=shard, version=version, error="disk", hopeless=hopeless
            )
        )

    @rule(member=members, bad=st.sampled_from([0, 0, 3]))
    def reverified(self, member: str, bad: int) -> None:
        self.send(m.Reverified(epoch=self.registry.epoch, member=member, shard=SHARD, version=1, bad_chunks=bad))

    @rule(member=members)
    def died(self, member: str) -> None:
        self.keep(self.registry.member_died(member, self.now))
        self.commands.pop(member, None)

    @rule(seconds=st.sampled_from([0.01, 0.1, 40.0]))
    def time_passes(self, seconds: float) -> None:
        self.now += seconds
        self.keep(self.registry.tick(self.now))

    @precondition(lambda self: any(isinstance(c, m.Receive) for c in self.commands.values()))
    @rule(order=st.randoms(use_true_random=False), missing=st.sets(members, max_size=3))
    def coordinator_restarts(self, order, missing: set[str]) -> None:  # type: ignore[no-untyped-def]
        """What each member last heard is what it reports."""
        states = {
            (s.shard, v.version, r.member): (r.state, v.seal)
            for s in self.registry.status()
            for v in s.versions
            for r in v.replicas
        }
        epoch = self.registry.epoch + 1
        present = [i.member for i in self.registry.members()]
        order.shuffle(present)
        expected = frozenset(info(x).actor_name for x in present)
        self.registry = Registry(epoch, self.now, RegistryOptions(max_members=12, max_replicas=11), expected)
        for member in present:
            if member in missing:
                self.keep(self.registry.expected_died(info(member).actor_name, self.now))
                continue
            holdings, receiving = [], []
            for (shard, version, who), (state, its_seal) in states.items():
                if who == member and its_seal is not None and state == "ready":
                    holdings.append(Holding(shard=shard, version=version, seal=its_seal))
                command = self.commands.get(member)
                if who != member or state != "receiving" or not isinstance(command, m.Receive):
                    continue
                if (command.shard, command.version) == (shard, version):
                    receiving.append(
                        Receiving(shard=shard, version=version, seal=command.seal, upstreams=command.upstreams)
                    )
            self.send(
                m.Join(
                    epoch=epoch,
                    member=member,
                    info=info(member),
                    holdings=tuple(holdings),
                    receiving=tuple(receiving),
                )
            )
            self.registry.validate()
        self.now += 10.0
        self.keep(self.registry.tick(self.now))

    @invariant()
    def nothing_contradicts_itself(self) -> None:
        self.registry.validate()

    @invariant()
    def whoever_waits_for_time_to_pass_has_a_wakeup(self) -> None:
        wakeup = self.registry.next_wakeup()
        assert wakeup is None or wakeup <= self.now + 60


TestRegistry = RegistryMachine.TestCase
TestRegistry.settings = settings(max_examples=150, stateful_step_count=40, deadline=None)
