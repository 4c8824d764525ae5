"""The coordinator's state machine: who has, loads, waits for and receives which version of which shard.

handle(event, now) changes the state and returns the commands to send. Everything in it can be rebuilt from
what the members say of themselves when they join, so the coordinator may be restarted at any moment: a new
epoch starts, members join with what they hold, and requests are answered once the members that were known
have been heard.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from ray_weights.core import placing
from ray_weights.core.lookup import closest_keys, unknown_key_message
from ray_weights.core.outbox import Outbox, Outgoing
from ray_weights.core.placing import PlacingOptions
from ray_weights.core.planner import Place, World
from ray_weights.core.rates import Rates
from ray_weights.core.record import Replica, VersionRecord
from ray_weights.core.records import Records, conflict, differs
from ray_weights.core.recovery import Recovery
from ray_weights.core.rejoining import take_up
from ray_weights.core.story import Story
from ray_weights.errors import Fenced, LimitReached
from ray_weights.schemas.keys import ShardKey
from ray_weights.schemas.members import Holding, MemberInfo
from ray_weights.schemas.messages import (
    Completed,
    Dropped,
    Event,
    GaveUp,
    Join,
    Measured,
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

    placing: PlacingOptions = field(default_factory=PlacingOptions)
    max_members: int = 16384
    max_shards: int = 16384
    max_replicas: int = 16384
    """Per version."""
    story_lines: int = 4096
    """Per shard."""
    max_dead_versions: int = 64
    """Versions that nobody holds any more but whose number is still guarded, per shard."""
    recovery_seconds: float = 5.0
    """How long a new epoch waits for members that it knows of before it answers requests."""


_DEFAULTS = RegistryOptions()


class Registry:
    """All shards of one cluster. Single-threaded: one mutator, handle()."""

    def __init__(
        self,
        epoch: int,
        now: float,
        options: RegistryOptions = _DEFAULTS,
        expected: frozenset[str] = frozenset(),
    ) -> None:
        """`expected`: actor names of members known to be alive, which will join this epoch."""
        self.epoch = epoch
        self._options = options
        self._members: dict[str, MemberInfo] = {}
        self._records = Records(options.max_shards, options.max_dead_versions)
        self._rates = Rates()
        self._story = Story(options.story_lines, options.max_shards)
        self._recovery = Recovery(expected, now + options.recovery_seconds if expected else now)
        self._handlers: dict[type[object], Callable[..., None]] = {
            Join: self._join,
            Open: self._open,
            Sealed: self._sealed,
            OriginError: self._origin_error,
            Measured: self._measured,
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
        self._recovery.heard(actor_name)
        return self.tick(now)

    def tick(self, now: float) -> list[Outgoing]:
        """Do what is due: place gathered receivers, end the recovery of a new epoch."""
        out = self._outbox(now)
        self._end_recovery_if_due(out)
        for record in self._records:
            if record.burst_at is not None and record.burst_at <= now:
                record.burst_at = None
                self._settle(record, "every source of it is gone", out)
        return out.messages

    def next_wakeup(self) -> float | None:
        """When tick() is due next; None when nothing is pending."""
        times = [r.burst_at for r in self._records if r.burst_at is not None]
        if self._recovery.pending():
            times.append(self._recovery.until)
        return min(times, default=None)

    # Members

    def _join(self, event: Join, out: Outbox) -> None:
        self._check_room(event)
        for old in [m for m, i in self._members.items() if i.actor_name == event.info.actor_name]:
            if old != event.member:
                self._remove_member(old, "was restarted", out)
        self._members[event.member] = event.info
        self._recovery.heard(event.info.actor_name)
        for holding in event.holdings:
            self._take_holding(event.member, holding, "had it when it joined", out)
        for receiving in event.receiving:
            known = self._records.made(receiving.shard, receiving.version).replicas.get(event.member)
            if known is None or known.state == "waiting":
                self._recovery.add(event.member, receiving)
        for loading in event.loading:
            self._recovery.queue(
                Open(
                    epoch=self.epoch,
                    member=event.member,
                    shard=loading.shard,
                    version=loading.version,
                    layout_digest=loading.layout_digest,
                    may_load=True,
                    filling=True,
                )
            )
        self._place_unplaced(out)
        self._end_recovery_if_due(out)

    def _check_room(self, event: Join) -> None:
        """Before anything is changed."""
        if event.member not in self._members and len(self._members) >= self._options.max_members:
            raise LimitReached(f"{len(self._members)} transfer actors have joined; max_members is the limit")
        shards = {h.shard for h in event.holdings} | {r.shard for r in event.receiving}
        shards |= {x.shard for x in event.loading}
        self._records.check_room(shards)

    def _take_holding(self, member: str, holding: Holding, how: str, out: Outbox) -> None:
        record = self._records.made(holding.shard, holding.version)
        if differs(record, holding.seal):
            out.refuse(record, member, "VersionConflict", conflict(record))
            self._records.prune(record)
            return
        self._recovery.take(member, holding.shard, holding.version)  # an earlier word, overtaken by this one
        record.seal = record.seal or holding.seal
        replica = record.replicas.setdefault(member, Replica(member, "ready"))
        if replica.state == "quarantined":
            return  # a repeated word of before; only Reverified ends it
        replica.state, replica.reason = "ready", how
        record.swarm.add_complete(member)
        self._rates.received(member, holding.rate)
        self._settle(record, how, out)

    def _place_unplaced(self, out: Outbox, *, everybody: bool = False) -> None:
        """Take up transfers that went on under an earlier epoch, as far as their upstreams are known."""
        options = self._options.placing
        for record in take_up(self._recovery, self._records, self._world(), options, out, everybody=everybody):
            self._settle(record, "every source of it is gone", out)

    def _end_recovery_if_due(self, out: Outbox) -> None:
        if self._recovery.under_way(out.now):
            return
        self._place_unplaced(out, everybody=True)
        queued, self._recovery.queued = self._recovery.queued, []
        # Whoever loads already goes first, so that nobody else is made the origin beside it.
        for request in sorted(queued, key=lambda q: not q.filling):
            try:
                self._open(request, out)
            except LimitReached as e:  # its sender waits for a command: the error has nobody else to go to
                self._refuse(request, "LimitReached", str(e), out)

    def _remove_member(self, member: str, why: str, out: Outbox) -> None:
        if member not in self._members:
            return
        self._recovery.forget(member)
        for record in self._records:
            if member in record.replicas:
                self._leave(record, member, why, out)
        del self._members[member]
        self._rates.forget(member)

    def _leave(self, record: VersionRecord, member: str, why: str, out: Outbox) -> None:
        out.tell(record, member, why)
        del record.replicas[member]
        children = record.swarm.remove(member) if member in record.swarm else ()
        placing.orphaned(record, member, children, why, self._world(), self._options.placing, out)
        self._records.prune(record)

    # Requests

    def _open(self, event: Open, out: Outbox) -> None:
        if self._recovery.under_way(out.now):
            self._recovery.queue(event)
            return
        alive = [v for v, r in self._records.versions(event.shard).items() if r.alive()]
        known = bool(alive) if event.version is None else event.version in alive
        if not known and not event.may_load:
            self._refuse_unknown(event, alive, out)
            return
        version = event.version if event.version is not None else max(alive, default=1)
        self._open_in(self._records.made(event.shard, version), event, out)

    def _refuse_unknown(self, event: Open, versions: list[int], out: Outbox) -> None:
        closest = closest_keys(event.shard, self._records.shards())
        self._refuse(event, "UnknownKey", unknown_key_message(event.shard, event.version, versions, closest), out)

    def _refuse(self, event: Open, error: str, message: str, out: Outbox) -> None:
        """Refuse a request that became nothing."""
        out.send(
            event.member,
            Refuse(
                epoch=self.epoch,
                shard=event.shard,
                version=event.version,
                error=error,
                message=message,
                question=event.question,
            ),
        )

    def _open_in(self, record: VersionRecord, event: Open, out: Outbox) -> None:
        known = record.replicas.get(event.member)
        if known is not None:
            if event.version is None:
                known.question = max(known.question, event.question)
            self._repeat(record, known, event, out)
            return
        if len(record.replicas) >= self._options.max_replicas:
            self._records.prune(record)
            raise LimitReached(f"{record.shard} has {len(record.replicas)} replicas; max_replicas is the limit")
        replica = record.replicas[event.member] = Replica(event.member, "waiting", event)
        replica.question = event.question if event.version is None else 0
        if event.filling:
            # It goes on, whoever has it by now: what it seals is compared, and if it fails it says so.
            replica.state, replica.from_storage, replica.reason = "loading", True, "was loading it before this epoch"
            record.storage_reads += 1
            out.tell(record, event.member, f"loads from storage: {replica.reason}")
            return
        out.tell(record, event.member, "asked for it")
        placing.admit(record, replica, self._world(), self._options.placing, out)
        self._records.prune(record)

    def _repeat(self, record: VersionRecord, replica: Replica, event: Open, out: Outbox) -> None:
        """The same member asks again (a lost answer, or a restarted engine): say the same again."""
        if replica.state == "quarantined":
            replica.asks = event
            return
        if replica.state == "ready":
            # If it does not hold it any more it says so (Dropped) and asks again. A question cannot tell: it may be
            # older than what the member has said of itself since.
            out.accept(record, event.member, sealed=False)
            return
        replica.open = _together(replica.open, event)
        if replica.state == "receiving":
            out.receive(record, replica.member)
        elif replica.state == "loading":
            out.to_storage(record, replica.member, replica.reason)
        elif replica.state == "waiting" and record.burst_at is None:
            placing.admit(record, replica, self._world(), self._options.placing, out)
            self._records.prune(record)

    def _sealed(self, event: Sealed, out: Outbox) -> None:
        record = self._records.made(event.shard, event.version)
        if differs(record, event.seal):
            out.refuse(record, event.member, "VersionConflict", conflict(record))
            if event.member in record.replicas and record.replicas[event.member].state == "loading":
                self._leave(record, event.member, "loaded other bytes than the version has", out)
            self._records.prune(record)
            return
        self._recovery.take(event.member, event.shard, event.version)
        record.seal = event.seal
        replica = record.replicas.get(event.member)
        if replica is not None and replica.state in ("ready", "quarantined"):
            out.accept(record, event.member, sealed=True)
            return
        if replica is None:
            replica = record.replicas[event.member] = Replica(event.member, "ready")
        replica.state = "ready"
        replica.from_storage = event.from_storage
        how = "loaded from storage" if event.from_storage else "published"
        chunks = f", in chunks of {event.seal.chunk_nbytes} bytes: {event.chunking}" if event.chunking else ""
        out.tell(record, event.member, f"{how} in {event.seconds:.1f} s: now a source{chunks}")
        record.swarm.add_complete(event.member)
        out.accept(record, event.member, sealed=True)
        self._settle(record, how, out)

    def _origin_error(self, event: OriginError, out: Outbox) -> None:
        record = self._records.known(event.shard, event.version)
        if record is None or event.member not in record.replicas:
            return
        if record.replicas[event.member].state != "loading":
            return
        if event.hopeless:
            for waiting in record.in_state("waiting"):
                message = f"{out.node(event.member)} loaded it and cannot share it: {event.error}"
                out.refuse(record, waiting.member, "CaptureUnsupported", message)
                del record.replicas[waiting.member]
        self._leave(record, event.member, f"failed to load: {event.error}", out)

    # Transfers

    def _measured(self, event: Measured, out: Outbox) -> None:
        record = self._records.known(event.shard, event.version)
        replica = record.replicas.get(event.member) if record else None
        if record is None or replica is None or replica.state != "receiving":
            return
        if event.upstream not in record.swarm.vertex(event.member).upstreams:
            return
        self._rates.flow(event.upstream, event.member, event.rate)
        if placing.demote_slow(record, event.member, self._rates, self._world(), self._options.placing, out):
            self._settle(record, "", out)

    def _completed(self, event: Completed, out: Outbox) -> None:
        under_way = self._recovery.take(event.member, event.shard, event.version)
        if under_way is not None:
            holding = Holding(shard=event.shard, version=event.version, seal=under_way.seal, rate=event.stats.rate)
            self._take_holding(event.member, holding, "completed as it joined", out)
        record = self._records.known(event.shard, event.version)
        replica = record.replicas.get(event.member) if record else None
        if record is None or replica is None or record.seal is None:
            return
        if replica.state in ("ready", "quarantined"):
            replica.stats = replica.stats or event.stats
            return
        if event.member in record.swarm:
            vertex = record.swarm.vertex(event.member)
            replica.last_upstreams, replica.last_depth = vertex.upstreams, vertex.depth
        # One that was told to wait or load may have had its last chunks in hand: what is verified is
        # verified.
        replica.state, replica.stats = "ready", event.stats
        replica.from_storage = False
        record.swarm.add_complete(event.member)
        self._rates.received(event.member, event.stats.rate)
        out.tell(
            record,
            event.member,
            f"complete and verified after {event.stats.seconds:.1f} s at {event.stats.rate / 1e6:.0f} MB/s, "
            f"the first chunk after {event.stats.first_chunk_seconds:.2f} s",
        )
        self._settle(record, "", out)

    def _upstream_lost(self, event: UpstreamLost, out: Outbox) -> None:
        record = self._records.known(event.shard, event.version)
        replica = record.replicas.get(event.member) if record else None
        if record is None or replica is None or replica.state != "receiving":
            return
        if event.upstream not in record.swarm.vertex(event.member).upstreams:
            out.receive(record, event.member)  # already moved: it may have missed the command
            return
        why = f"{event.kind}: {event.detail}" if event.detail else event.kind
        out.tell(
            record,
            event.member,
            f"lost {out.node(event.upstream)} after {event.chunks_verified} chunks ({why})",
        )
        moved: tuple[str, ...] = (event.member,)
        if event.kind == "corrupt" and event.upstream in record.replicas:
            bad = f"sent a bad chunk to {out.node(event.member)}"
            moved += tuple(c for c in placing.quarantine(record, event.upstream, bad, out) if c != event.member)
            placing.strand_if_lost(record, bad, out, barred_feed=False)
        elif event.kind == "stale" and event.upstream in record.replicas:
            # It may not hold what it is thought to hold. Those who read from it without complaint stay.
            placing.quarantine(record, event.upstream, f"{out.node(event.member)} found something else there", out)
        for member in moved:
            if member in record.swarm and event.upstream in record.swarm.vertex(member).upstreams:
                receiver = record.replicas[member]
                placing.reparent(record, receiver, event.upstream, why, self._world(), self._options.placing, out)
        self._settle(record, f"{out.node(event.upstream)} was lost ({event.kind})", out)

    def _gave_up(self, event: GaveUp, out: Outbox) -> None:
        if event.leaves:
            self._recovery.forget(event.member, event.shard, event.version)
        for record in self._records.versions(event.shard).values():
            replica = record.replicas.get(event.member)
            if replica is None or event.version not in (None, record.version):
                continue
            if replica.state in ("waiting", "receiving", "loading"):
                if event.read_storage:
                    record.storage_reads += 1
                if event.leaves:
                    self._leave(record, event.member, f"gave up: {event.reason}", out)

    def _dropped(self, event: Dropped, out: Outbox) -> None:
        self._recovery.forget(event.member, event.shard, event.version)
        record = self._records.known(event.shard, event.version)
        if record is not None and event.member in record.replicas:
            self._leave(record, event.member, "freed it", out)

    def _reverified(self, event: Reverified, out: Outbox) -> None:
        record = self._records.known(event.shard, event.version)
        replica = record.replicas.get(event.member) if record else None
        if record is None or replica is None or replica.state != "quarantined":
            return
        asks, replica.asks = replica.asks, None
        if event.bad_chunks:
            self._leave(record, event.member, f"has {event.bad_chunks} bad chunks in its own memory", out)
            if asks is not None:
                self._open(asks, out)
            return
        replica.state, replica.reason = "ready", "read its own memory again and found it whole"
        record.swarm.vertex(event.member).barred = False
        out.tell(record, event.member, replica.reason)
        if asks is not None:
            out.accept(record, event.member, sealed=False)
        self._settle(record, replica.reason, out)

    # What people see

    def status(self) -> tuple[ShardStatus, ...]:
        nodes = {m: i.node_name for m, i in self._members.items()}
        return tuple(
            ShardStatus(shard=s, versions=tuple(r.status(nodes) for _, r in sorted(self._records.versions(s).items())))
            for s in self._records.shards()
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
        for record in self._records:
            record.validate()
            assert set(record.replicas) <= set(self._members), "a replica of a member that is gone"
            if record.in_state("waiting"):
                somebody = record.sources() or record.origin() or record.in_state("receiving")
                assert somebody, f"replicas of {record.shard} v{record.version} wait for nobody"
                assert not record.sources() or record.burst_at is not None, "a source, and yet somebody waits"
        self._rates.validate()

    # Parts

    def _settle(self, record: VersionRecord, why: str, out: Outbox) -> None:
        placing.settle(record, why, self._world(), self._options.placing, out)
        self._records.prune(record)

    def _outbox(self, now: float) -> Outbox:
        return Outbox(self.epoch, now, self._members, self._story, self._rates)

    def _world(self) -> World:
        return World(place=self._place, rate=self._rates.of, median_rate=self._rates.median)

    def _place(self, member: str) -> Place:
        info = self._members.get(member)
        return Place(info.node_id, info.labels, info.node_name) if info else Place("gone")


def _together(before: Open | None, now: Open) -> Open:
    """What a member wants for all who ask there: one that can read storage is enough."""
    if before is None:
        return now
    may_load, layout = before.may_load or now.may_load, now.layout_digest or before.layout_digest
    return now.model_copy(update={"may_load": may_load, "layout_digest": layout})
