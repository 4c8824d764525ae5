"""The coordinator's state machine: who has, loads, waits for and receives which version of which shard.

handle(event, now) changes the state and returns the commands to send. Everything in it can be rebuilt from what the
members say of themselves when they join, so the coordinator may be restarted at any moment: a new epoch starts, members
join with what they hold, and requests are answered once the members that were known have been heard.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable
from dataclasses import dataclass

from ray_weights.core import placing
from ray_weights.core.lookup import closest_keys, unknown_key_message
from ray_weights.core.outbox import Outbox, Outgoing
from ray_weights.core.placing import PlacingOptions
from ray_weights.core.planner import Place, World
from ray_weights.core.record import Replica, VersionRecord
from ray_weights.core.story import Story
from ray_weights.errors import Fenced, LimitReached
from ray_weights.schemas.keys import ShardKey
from ray_weights.schemas.members import Holding, MemberInfo, Receiving
from ray_weights.schemas.messages import (
    Accepted,
    Completed,
    Dropped,
    Event,
    GaveUp,
    Join,
    Open,
    OriginError,
    Refuse,
    Reverified,
    Sealed,
    UpstreamLost,
)
from ray_weights.schemas.status import ShardStatus, StoryLine


@dataclass(frozen=True, slots=True)
class RegistryOptions:
    """Bounds and times; each bound refuses with LimitReached when it is met."""

    placing: PlacingOptions = PlacingOptions()
    max_members: int = 16384
    max_shards: int = 16384
    max_replicas: int = 16384
    """Per version."""
    story_lines: int = 4096
    """Per shard."""
    recovery_seconds: float = 5.0
    """How long a new epoch waits for members that it knows of before it answers requests."""


class Registry:
    """All shards of one cluster. Single-threaded: one mutator, handle()."""

    def __init__(
        self,
        epoch: int,
        now: float,
        options: RegistryOptions = RegistryOptions(),  # noqa: B008 (frozen)
        expected: frozenset[str] = frozenset(),
    ) -> None:
        """`expected`: actor names of members known to be alive, which will join this epoch."""
        self.epoch = epoch
        self._options = options
        self._members: dict[str, MemberInfo] = {}
        self._records: dict[ShardKey, dict[int, VersionRecord]] = {}
        self._rates: dict[str, float] = {}
        self._median_rate = 0.0
        self._story = Story(options.story_lines)
        self._expected = set(expected)
        self._recover_until = now + options.recovery_seconds if expected else now
        self._queued: list[Open] = []
        self._unplaced: dict[tuple[str, ShardKey, int], Receiving] = {}
        self._handlers: dict[type[object], Callable[..., None]] = {
            Join: self._join,
            Open: self._open,
            Sealed: self._sealed,
            OriginError: self._origin_error,
            Completed: self._completed,
            UpstreamLost: self._upstream_lost,
            GaveUp: self._gave_up,
            Dropped: self._dropped,
            Reverified: self._reverified,
        }

    # What comes in

    def handle(self, event: Event, now: float) -> list[Outgoing]:
        """Apply one event of a member.

        Raises:
            Fenced: another epoch, or a member that has not joined. The sender joins and repeats.
            LimitReached: a bound of the options is met; nothing was changed.
        """
        if event.epoch != self.epoch:
            raise Fenced(f"epoch {event.epoch} is not the present {self.epoch}")
        if event.member not in self._members and not isinstance(event, Join):
            raise Fenced(f"{event.member} has not joined epoch {self.epoch}")
        out = self._outbox(now)
        self._handlers[type(event)](event, out)
        return out.messages

    def member_died(self, member: str, now: float) -> list[Outgoing]:
        """A member's process has ended. Its receivers move, its waiters promote the next."""
        out = self._outbox(now)
        self._remove_member(member, "died", out)
        return out.messages

    def expected_died(self, actor_name: str, now: float) -> list[Outgoing]:
        """A member that was to join this epoch has ended before it could."""
        self._expected.discard(actor_name)
        return self.tick(now)

    def tick(self, now: float) -> list[Outgoing]:
        """Do what is due: place gathered receivers, end the recovery of a new epoch."""
        out = self._outbox(now)
        self._end_recovery_if_due(out)
        for record in self._all_records():
            if record.burst_at is not None and record.burst_at <= now:
                placing.place_waiting(record, self._world(), self._options.placing, out)
        return out.messages

    def next_wakeup(self) -> float | None:
        """When tick() is due next; None when nothing is pending."""
        times = [r.burst_at for r in self._all_records() if r.burst_at is not None]
        if self._queued or self._unplaced:
            times.append(self._recover_until)
        return min(times, default=None)

    # Members

    def _join(self, event: Join, out: Outbox) -> None:
        if event.member not in self._members and len(self._members) >= self._options.max_members:
            raise LimitReached(f"{len(self._members)} transfer actors have joined; max_members is the limit")
        for old in [m for m, i in self._members.items() if i.actor_name == event.info.actor_name]:
            if old != event.member:
                self._remove_member(old, "was restarted", out)
        self._members[event.member] = event.info
        self._expected.discard(event.info.actor_name)
        for holding in event.holdings:
            self._join_holding(event.member, holding, out)
        for receiving in event.receiving:
            record = self._record(receiving.shard, receiving.version)
            known = record.replicas.get(event.member)
            if known is None or known.state == "waiting":
                self._unplaced[(event.member, receiving.shard, receiving.version)] = receiving
        self._place_unplaced(out)
        self._end_recovery_if_due(out)

    def _join_holding(self, member: str, holding: Holding, out: Outbox) -> None:
        record = self._record(holding.shard, holding.version)
        if record.seal is not None and record.seal.manifest_digest != holding.seal.manifest_digest:
            out.refuse(record, member, "VersionConflict", _conflict(record))
            return
        record.seal = record.seal or holding.seal
        replica = record.replicas.setdefault(member, Replica(member, "ready"))
        replica.state, replica.reason = "ready", "had it when it joined"
        record.swarm.add_complete(member)
        self._measured(member, holding.rate)
        placing.place_waiting(record, self._world(), self._options.placing, out)

    def _place_unplaced(self, out: Outbox) -> None:
        """Take up transfers that went on under an earlier epoch, parents first."""
        progress = True
        while progress:
            progress = False
            for (member, shard, version), receiving in list(self._unplaced.items()):
                record = self._record(shard, version)
                if not all(u in record.swarm for u in receiving.upstreams):
                    continue
                self._resume(record, member, receiving, out)
                progress = True

    def _resume(self, record: VersionRecord, member: str, receiving: Receiving, out: Outbox) -> None:
        del self._unplaced[(member, record.shard, record.version)]
        if record.seal is None:
            record.seal = receiving.seal
        request = Open(epoch=self.epoch, member=member, shard=record.shard, version=record.version, may_load=True)
        record.replicas[member] = Replica(member, "receiving", request, "was receiving when it joined")
        record.swarm.attach(member, receiving.upstreams, out.now)

    def _end_recovery_if_due(self, out: Outbox) -> None:
        if self._recovering(out.now):
            return
        for (member, shard, version), receiving in list(self._unplaced.items()):
            # Its parent never came back: give it another, as if the parent had just died.
            record = self._record(shard, version)
            present = tuple(u for u in receiving.upstreams if u in record.swarm) or record.swarm.complete_members()[:1]
            if present:
                self._resume(record, member, receiving.model_copy(update={"upstreams": present[:1]}), out)
                out.receive(record, member, self._median_rate)
            else:
                del self._unplaced[(member, shard, version)]
                record.seal = record.seal or receiving.seal
                request = Open(epoch=self.epoch, member=member, shard=shard, version=version, may_load=True)
                self._open_in(record, request, out)
        queued, self._queued = self._queued, []
        for request in queued:
            if request.member in self._members:
                self._open(request, out)

    def _recovering(self, now: float) -> bool:
        return bool(self._expected) and now < self._recover_until

    def _remove_member(self, member: str, why: str, out: Outbox) -> None:
        if member not in self._members:
            return
        for record in self._all_records():
            if member in record.replicas:
                self._leave(record, member, why, out)
        del self._members[member]
        self._rates.pop(member, None)
        self._unplaced = {k: v for k, v in self._unplaced.items() if k[0] != member}
        self._queued = [q for q in self._queued if q.member != member]

    def _leave(self, record: VersionRecord, member: str, why: str, out: Outbox) -> None:
        out.tell(record, member, why)
        del record.replicas[member]
        children = record.swarm.remove(member) if member in record.swarm else ()
        placing.orphaned(record, member, children, why, self._world(), self._options.placing, out)
        if not record.alive():
            versions = self._records[record.shard]
            # The seal is kept with the record as long as another version lives: it guards against a reused number.
            if not any(r.alive() for r in versions.values()):
                del self._records[record.shard]

    # Requests

    def _open(self, event: Open, out: Outbox) -> None:
        if self._recovering(out.now):
            self._queued.append(event)
            return
        versions = self._records.get(event.shard, {})
        alive = [v for v, r in versions.items() if r.alive()]
        if event.version is None and not alive or event.version is not None and event.version not in alive:
            if not event.may_load:
                known = tuple(self._records)
                message = unknown_key_message(event.shard, event.version, tuple(alive), closest_keys(event.shard, known))
                refuse = Refuse(
                    epoch=self.epoch, shard=event.shard, version=event.version, error="UnknownKey", message=message
                )
                out.send(event.member, refuse)
                return
        version = event.version if event.version is not None else max(alive, default=1)
        self._open_in(self._record(event.shard, version), event, out)

    def _open_in(self, record: VersionRecord, event: Open, out: Outbox) -> None:
        known = record.replicas.get(event.member)
        if known is not None:
            self._repeat(record, known, event, out)
            return
        if len(record.replicas) >= self._options.max_replicas:
            raise LimitReached(f"{record.shard} has {len(record.replicas)} replicas; max_replicas is the limit")
        replica = record.replicas[event.member] = Replica(event.member, "waiting", event)
        out.tell(record, event.member, "asked for it")
        placing.admit(record, replica, self._world(), self._options.placing, out)

    def _repeat(self, record: VersionRecord, replica: Replica, event: Open, out: Outbox) -> None:
        """The same member asks again (a lost answer, or a restarted engine): say the same again."""
        replica.open = event
        if replica.state == "receiving":
            out.receive(record, replica.member, self._median_rate)
        elif replica.state == "loading":
            record.storage_reads -= 1
            placing.promote(record, replica, replica.reason, out)
        elif replica.state == "waiting" and record.burst_at is None:
            placing.admit(record, replica, self._world(), self._options.placing, out)
        elif replica.state in ("ready", "quarantined"):
            # It says that it lacks what it was thought to hold: its arena is gone.
            record.swarm.vertex(replica.member).complete = False
            self._leave(record, replica.member, "no longer holds it", out)
            self._open(event, out)

    def _sealed(self, event: Sealed, out: Outbox) -> None:
        record = self._record(event.shard, event.version)
        if record.seal is not None and record.seal.manifest_digest != event.seal.manifest_digest:
            out.refuse(record, event.member, "VersionConflict", _conflict(record))
            if event.member in record.replicas and record.replicas[event.member].state == "loading":
                self._leave(record, event.member, "loaded other bytes than the version has", out)
            return
        record.seal = event.seal
        replica = record.replicas.get(event.member)
        if replica is not None and replica.state in ("ready", "quarantined"):
            out.send(event.member, Accepted(epoch=self.epoch, shard=record.shard, version=record.version))
            return
        if replica is None:
            replica = record.replicas[event.member] = Replica(event.member, "ready")
        replica.state = "ready"
        replica.from_storage = event.from_storage
        how = "loaded from storage" if event.from_storage else "published"
        out.tell(record, event.member, f"{how} in {event.seconds:.1f} s: now a source")
        record.swarm.add_complete(event.member)
        out.send(event.member, Accepted(epoch=self.epoch, shard=record.shard, version=record.version))
        placing.place_waiting(record, self._world(), self._options.placing, out)

    def _origin_error(self, event: OriginError, out: Outbox) -> None:
        record = self._known(event.shard, event.version)
        if record is None or event.member not in record.replicas:
            return
        if record.replicas[event.member].state == "loading":
            self._leave(record, event.member, f"failed to load: {event.error}", out)

    # Transfers

    def _completed(self, event: Completed, out: Outbox) -> None:
        record = self._known(event.shard, event.version)
        replica = record.replicas.get(event.member) if record else None
        if record is None or replica is None or replica.state != "receiving":
            return
        vertex = record.swarm.vertex(event.member)
        replica.last_upstreams, replica.last_depth = vertex.upstreams, vertex.depth
        replica.state, replica.stats = "ready", event.stats
        record.swarm.add_complete(event.member)
        self._measured(event.member, event.stats.rate)
        out.tell(
            record,
            event.member,
            f"complete and verified after {event.stats.seconds:.1f} s at {event.stats.rate / 1e6:.0f} MB/s",
        )
        if record.in_state("waiting") and record.burst_at is None:
            placing.place_waiting(record, self._world(), self._options.placing, out)

    def _upstream_lost(self, event: UpstreamLost, out: Outbox) -> None:
        record = self._known(event.shard, event.version)
        replica = record.replicas.get(event.member) if record else None
        if record is None or replica is None or replica.state != "receiving":
            return
        if event.upstream not in record.swarm.vertex(event.member).upstreams:
            out.receive(record, event.member, self._median_rate)  # already moved: it may have missed the command
            return
        why = f"{event.kind}: {event.detail}" if event.detail else event.kind
        out.tell(record, event.member, f"lost {out.node(event.upstream)} after {event.chunks_verified} chunks ({why})")
        if event.kind == "slow":
            self._measured(event.upstream, event.rate)
        moved: tuple[str, ...] = (event.member,)
        if event.kind == "corrupt" and event.upstream in record.replicas:
            bad = f"sent a bad chunk to {out.node(event.member)}"
            moved += tuple(c for c in placing.quarantine(record, event.upstream, bad, out) if c != event.member)
        for member in moved:
            if member in record.replicas and member in record.swarm:
                receiver = record.replicas[member]
                placing.reparent(record, receiver, event.upstream, why, self._world(), self._options.placing, out)

    def _gave_up(self, event: GaveUp, out: Outbox) -> None:
        versions = self._records.get(event.shard, {})
        for record in list(versions.values()):
            replica = record.replicas.get(event.member)
            if replica is None or event.version not in (None, record.version):
                continue
            if replica.state in ("waiting", "receiving", "loading"):
                if event.read_storage:
                    record.storage_reads += 1
                self._leave(record, event.member, f"gave up: {event.reason}", out)

    def _dropped(self, event: Dropped, out: Outbox) -> None:
        record = self._known(event.shard, event.version)
        if record is not None and event.member in record.replicas:
            self._leave(record, event.member, "freed it", out)

    def _reverified(self, event: Reverified, out: Outbox) -> None:
        record = self._known(event.shard, event.version)
        replica = record.replicas.get(event.member) if record else None
        if record is None or replica is None or replica.state != "quarantined":
            return
        if event.bad_chunks:
            self._leave(record, event.member, f"has {event.bad_chunks} bad chunks in its own memory", out)
            return
        replica.state, replica.reason = "ready", "read its own memory again and found it whole"
        record.swarm.vertex(event.member).barred = False
        out.tell(record, event.member, replica.reason)
        placing.place_waiting(record, self._world(), self._options.placing, out)

    # What people see

    def status(self) -> tuple[ShardStatus, ...]:
        nodes = {m: i.node_name for m, i in self._members.items()}
        return tuple(
            ShardStatus(shard=s, versions=tuple(r.status(nodes) for _, r in sorted(versions.items())))
            for s, versions in self._records.items()
        )

    def members(self) -> tuple[MemberInfo, ...]:
        return tuple(self._members.values())

    def story(self, shard: ShardKey) -> tuple[StoryLine, ...]:
        return self._story.of(shard)

    def told_shards(self) -> tuple[ShardKey, ...]:
        """Shards that have a story, also those that nobody holds any more."""
        return self._story.shards()

    def validate(self) -> None:
        """Raise AssertionError where the state contradicts itself. Called by tests after every event."""
        for record in self._all_records():
            record.validate()
            assert set(record.replicas) <= set(self._members), "a replica of a member that is gone"

    # Parts

    def _outbox(self, now: float) -> Outbox:
        return Outbox(self.epoch, now, self._members, self._story)

    def _all_records(self) -> list[VersionRecord]:
        return [r for versions in self._records.values() for r in versions.values()]

    def _known(self, shard: ShardKey, version: int) -> VersionRecord | None:
        return self._records.get(shard, {}).get(version)

    def _record(self, shard: ShardKey, version: int) -> VersionRecord:
        if shard not in self._records and len(self._records) >= self._options.max_shards:
            raise LimitReached(f"{len(self._records)} shards are known; max_shards is the limit")
        versions = self._records.setdefault(shard, {})
        return versions.setdefault(version, VersionRecord(shard, version))

    def _world(self) -> World:
        return World(place=self._place, rate=lambda m: self._rates.get(m, 0.0), median_rate=self._median_rate)

    def _place(self, member: str) -> Place:
        info = self._members.get(member)
        return Place(info.node_id, info.labels) if info else Place("gone")

    def _measured(self, member: str, rate: float) -> None:
        if rate > 0:
            self._rates[member] = rate
            self._median_rate = statistics.median(self._rates.values())


def _conflict(record: VersionRecord) -> str:
    return (
        f"{record.shard} v{record.version} exists with other bytes (manifest "
        f"{record.seal.manifest_digest[:12] if record.seal else '?'}); publish under another version number"
    )
