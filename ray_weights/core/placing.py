"""What happens to the receivers of one version: placed, moved, promoted. Called by the registry for each
event."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from ray_weights.core.outbox import Outbox
from ray_weights.core.planner import (
    PlannerOptions,
    World,
    choose_upstream,
    has_room,
    is_slow,
    leaf_to_replace,
    plan_burst,
)
from ray_weights.core.rates import Rates
from ray_weights.core.record import Replica, VersionRecord
from ray_weights.schemas.messages import Reverify

Orphan = tuple[Replica, str, str]
"""A receiver, the upstream that it has lost, and why."""


@dataclass(frozen=True, slots=True)
class PlacingOptions:
    planner: PlannerOptions = field(default_factory=PlannerOptions)
    gather_seconds: float = 0.05
    """How long receivers that follow one another closely are gathered at most, to be placed as one burst; a
    fifth of it without another one ends the gathering."""
    avoid_seconds: float = 30.0
    """How long a receiver stays away from an upstream that failed it, unless there is no other."""


def admit(record: VersionRecord, replica: Replica, world: World, options: PlacingOptions, out: Outbox) -> None:
    """Give a member that wants this version its place: wait for the origin, be placed, or become the
    origin."""
    assert replica.open is not None
    if record.seal is not None and _layout_differs(record, replica, out):
        return
    if record.sources():
        replica.state = "waiting"
        if record.burst_at is not None:
            record.burst_at = min(record.gathering_since + options.gather_seconds, out.now + options.gather_seconds / 5)
        elif out.now - record.placed_at > options.gather_seconds:
            place_waiting(record, world, options, out)
        else:
            record.gathering_since = out.now
            record.burst_at = out.now + options.gather_seconds / 5
        return
    if record.origin() is not None or record.in_state("receiving"):
        _wait(record, replica, out)
        return
    promote(record, replica, "nobody else has or loads these weights", out)


def _wait(record: VersionRecord, replica: Replica, out: Outbox) -> None:
    origin = record.origin()
    replica.state = "waiting"
    replica.reason = f"{out.node(origin.member)} is loading it" if origin else "others are receiving it"
    out.tell(record, replica.member, f"waits: {replica.reason}")
    out.wait(record, replica.member, replica.reason)


def promote(record: VersionRecord, replica: Replica, reason: str, out: Outbox) -> None:
    """Make a member the origin if it can read storage; otherwise it is told that there is no source."""
    assert replica.open is not None
    if not replica.open.may_load:
        waiting = "" if record.seal is None else "every source of it is gone and "
        out.refuse(
            record,
            replica.member,
            "SourceLost",
            f"{record.shard} v{record.version}: {waiting}nobody loads it",
        )
        del record.replicas[replica.member]
        return
    replica.state, replica.reason, replica.from_storage = "loading", reason, True
    record.storage_reads += 1
    out.tell(record, replica.member, f"loads from storage: {reason}")
    out.to_storage(record, replica.member, reason)


def place_waiting(record: VersionRecord, world: World, options: PlacingOptions, out: Outbox) -> None:
    """Place everybody who waits, as one burst."""
    record.burst_at, record.placed_at = None, out.now
    waiting = [r for r in record.in_state("waiting") if not _layout_differs(record, r, out)]
    for placement in plan_burst(record.swarm, [r.member for r in waiting], world, options.planner, out.now):
        replica = record.replicas[placement.member]  # one that waited, or one that makes room for those
        replica.state, replica.reason = "receiving", placement.reason
        names = ", ".join(out.node(u) for u in dict.fromkeys(placement.upstreams))
        out.tell(record, placement.member, f"assigned to {names}: {placement.reason}")
        out.receive(record, placement.member)


def resume(
    record: VersionRecord,
    transfers: Sequence[tuple[Replica, tuple[str, ...]]],
    world: World,
    options: PlacingOptions,
    out: Outbox,
) -> None:
    """Register transfers that go on. A reader hears of it only where it must read from somebody else now."""
    swarm, later = record.swarm, list[tuple[Replica, tuple[str, ...]]]()
    for replica, _ in transfers:
        swarm.attach(replica.member, (), out.now)
    for replica, upstreams in transfers:
        known = upstreams and all(u in swarm for u in upstreams)
        if known and not any(swarm.reaches_in_stripe(replica.member, u, s) for s, u in enumerate(upstreams)):
            swarm.attach(replica.member, upstreams, out.now, _interior(replica.member, transfers, upstreams))
        else:
            later.append((replica, upstreams))
    for replica, upstreams in later:
        member = replica.member
        if replica.state != "receiving":
            continue
        fed = [u for u in upstreams if u in swarm and (swarm.vertex(u).complete or swarm.vertex(u).upstreams)]
        kept = next((u for u in fed if not swarm.vertex(u).barred and not swarm.reaches(member, u)), None)
        found, reason = (kept, "as before") if kept else choose_upstream(swarm, member, world, options.planner)
        if found is None:
            for orphan in _strand(record, replica, f"none of its upstreams joined; {reason}", out):
                reparent(record, *orphan, world, options, out)
            continue
        swarm.attach(member, (found,), out.now)
        replica.reason = f"moved to {out.node(found)} under a new epoch: {reason}"
        out.tell(record, member, replica.reason)
        out.receive(record, member)


def _interior(
    member: str, transfers: Sequence[tuple[Replica, tuple[str, ...]]], upstreams: tuple[str, ...]
) -> int | None:
    """The one stripe in which others read from a member of two trees."""
    if len(upstreams) < 2:
        return None
    stripes = {s for _, ups in transfers if len(ups) > 1 for s, u in enumerate(ups) if u == member}
    return min(stripes, default=0) if len(stripes) < 2 else None


def reparent(
    record: VersionRecord,
    replica: Replica,
    lost: str,
    why: str,
    world: World,
    options: PlacingOptions,
    out: Outbox,
) -> None:
    """Give a receiver another upstream for every stripe that it read from `lost`; without any it waits.

    Call settle() when all who are concerned have been moved.
    """
    if strand_if_lost(record, f"lost {out.node(lost)} ({why})", out):
        return
    orphans = [(replica, lost, why)]
    while orphans:  # whoever strands leaves those below it without an upstream
        orphans += _reparent(record, *orphans.pop(0), world, options, out)


def _reparent(
    record: VersionRecord,
    replica: Replica,
    lost: str,
    why: str,
    world: World,
    options: PlacingOptions,
    out: Outbox,
) -> list[Orphan]:
    """As reparent(), for one. Returns those below it, if it strands."""
    if replica.member not in record.swarm:
        return []
    vertex = record.swarm.vertex(replica.member)
    replica.avoided[lost] = out.now
    replica.avoided = {m: at for m, at in replica.avoided.items() if out.now - at < options.avoid_seconds}
    before, interior = vertex.upstreams, vertex.interior
    kept = [u for u in before if u != lost and u in record.swarm]
    chosen: list[str] = []
    displaced: list[tuple[str, int]] = []
    reason = ""
    for stripe, upstream in enumerate(before):
        if upstream in kept:
            chosen.append(upstream)
            continue
        found, reason = _choose(record, replica.member, stripe, len(before), world, options)
        if found is None and kept and not record.swarm.reaches_in_stripe(replica.member, kept[0], stripe):
            found, reason = kept[0], "the upstream of the other stripe takes both"
        if found is None:
            return _strand(record, replica, f"lost {out.node(lost)} ({why}); {reason}", out)
        if len(before) == 2 and vertex.children and not _has_room(record, found, world, options):
            leaf = leaf_to_replace(record.swarm, replica.member, stripe, world, options.planner)
            if leaf is not None and leaf.upstreams[stripe] not in replica.avoided:
                found, reason = leaf.upstreams[stripe], f"in the place of {out.node(leaf.member)}, a leaf"
                displaced.append((leaf.member, stripe))
        chosen.append(found)
    if len(set(chosen)) == 1:
        chosen, interior, displaced = chosen[:1], None, []
    record.swarm.attach(replica.member, tuple(chosen), out.now, interior)
    for leaf_member, stripe in displaced:
        _displace(record, leaf_member, stripe, world, options, out)
    to = ", ".join(out.node(u) for u in dict.fromkeys(chosen) if u not in kept) or out.node(chosen[0])
    replica.reason = f"moved from {out.node(lost)} ({why}) to {to}: {reason}"
    out.tell(record, replica.member, replica.reason)
    out.receive(record, replica.member)
    return []


def _has_room(record: VersionRecord, member: str, world: World, options: PlacingOptions) -> bool:
    return has_room(record.swarm.vertex(member), 0.5, world, options.planner)


def _displace(
    record: VersionRecord, leaf: str, stripe: int, world: World, options: PlacingOptions, out: Outbox
) -> None:
    """Another member took the place of a leaf: the leaf, which has nobody below it, goes where there is
    room."""
    found, reason = choose_upstream(record.swarm, leaf, world, options.planner, stripe=stripe, stripes=2)
    if found is not None:
        _replace(record, leaf, stripe, found, f"makes room: {reason}", world, out)


def _replace(
    record: VersionRecord, member: str, stripe: int, upstream: str, reason: str, world: World, out: Outbox
) -> None:
    """Give a receiver another upstream in one stripe and tell it."""
    vertex = record.swarm.vertex(member)
    upstreams = tuple(upstream if s == stripe else u for s, u in enumerate(vertex.upstreams))
    distinct = tuple(dict.fromkeys(upstreams))
    if len(distinct) == 1:
        record.swarm.attach(member, distinct, out.now)
    else:
        record.swarm.attach(member, upstreams, out.now, vertex.interior)
    record.replicas[member].reason = reason
    out.tell(record, member, reason)
    out.receive(record, member)


def _choose(
    record: VersionRecord, member: str, stripe: int, stripes: int, world: World, options: PlacingOptions
) -> tuple[str | None, str]:
    """Try hard: a fitting parent, then one that failed before, as it may only have been the path."""
    avoided = record.replicas[member].avoided
    for avoid in (avoided.keys(), ()) if avoided else ((),):
        found, reason = choose_upstream(
            record.swarm, member, world, options.planner, stripe=stripe, stripes=stripes, avoid=avoid
        )
        if found is not None:
            break
    return found, reason


def _strand(record: VersionRecord, replica: Replica, why: str, out: Outbox) -> list[Orphan]:
    """Nobody is left to read from: wait, in line by the order of asking. Returns those below."""
    orphans = record.swarm.remove(replica.member)
    replica.state, replica.reason = "waiting", ""
    out.tell(record, replica.member, why)
    below = [record.replicas[child] for child in orphans if child in record.swarm]
    return [(child, replica.member, "it has no source itself") for child in below]


def strand_if_lost(record: VersionRecord, why: str, out: Outbox, *, barred_feed: bool = True) -> bool:
    """With the last source, every receiver is lost: all wait at once, where one after another would be moved below
    others who are as lost. `barred_feed`: whether those who read from a barred source may go on."""
    sources = record.swarm.complete_members()
    if any(barred_feed or not record.swarm.vertex(s).barred for s in sources):
        return False
    for replica in record.in_state("receiving"):
        _strand(record, replica, why, out)
    return True


def settle(record: VersionRecord, why: str, world: World, options: PlacingOptions, out: Outbox) -> None:
    """See to it that whoever waits has somebody to wait for: a source, a receiver, or an origin, made if need
    be."""
    waiting = record.in_state("waiting")
    if not waiting:
        return
    if record.sources():
        if record.burst_at is None:
            place_waiting(record, world, options, out)
        return
    if record.origin() is None and not record.in_state("receiving"):
        first = next((r for r in waiting if r.open is not None and r.open.may_load), None)
        if first is None:
            for replica in waiting:
                promote(record, replica, why, out)
            return
        promote(record, first, why, out)
        waiting.remove(first)
    for replica in waiting:
        if not replica.reason:
            _wait(record, replica, out)


def orphaned(
    record: VersionRecord,
    gone: str,
    children: tuple[str, ...],
    why: str,
    world: World,
    options: PlacingOptions,
    out: Outbox,
) -> None:
    """Move the children of a member that left the graph, then see whether the waiting need an origin."""
    for child in children:
        if child in record.swarm:
            reparent(record, record.replicas[child], gone, why, world, options, out)
    settle(record, f"{out.node(gone)} {why}", world, options, out)


def demote_slow(
    record: VersionRecord, member: str, rates: Rates, world: World, options: PlacingOptions, out: Outbox
) -> bool:
    """A flow to `member` was measured: if that shows somebody above it to be slow, make it a leaf.

    Call settle() if it returns True.
    """
    for stripe in range(len(record.swarm.vertex(member).upstreams)):
        for ancestor in record.swarm.path(member, stripe):
            vertex = record.swarm.vertex(ancestor)
            if vertex.complete or not vertex.children:
                continue
            if is_slow(ancestor, world, options.planner) and rates.measured_flows(ancestor, vertex.children):
                _demote(record, record.replicas[ancestor], world, options, out)
                return True
    return False


def _demote(record: VersionRecord, replica: Replica, world: World, options: PlacingOptions, out: Outbox) -> None:
    """The first child takes its place, the others go where there is room, and so does it: below them all."""
    member = replica.member
    vertex = record.swarm.vertex(member)
    why = f"{world.rate(member) / 1e6:.0f} MB/s where the median is {world.median_rate / 1e6:.0f}"
    for stripe, upstream in enumerate(vertex.upstreams):
        heirs = [c for c in record.swarm.children_of(member, stripe) if c != upstream]
        if not heirs or upstream not in record.swarm:
            continue
        heir = record.swarm.vertex(heirs[0])
        if len(heir.upstreams) == len(vertex.upstreams):
            _replace(
                record, heirs[0], stripe, upstream, f"takes the place of {out.node(member)}, slow: {why}", world, out
            )
        for child in record.swarm.children_of(member, stripe):
            reparent(record, record.replicas[child], member, f"slow: {why}", world, options, out)
        if member not in record.swarm or len(vertex.upstreams) <= stripe:
            return
        found, _ = choose_upstream(
            record.swarm, member, world, options.planner, stripe=stripe, stripes=len(vertex.upstreams)
        )
        if found is not None:
            _replace(record, member, stripe, found, f"made a leaf: {why}", world, out)


def quarantine(record: VersionRecord, member: str, why: str, out: Outbox) -> tuple[str, ...]:
    """Bar a source that sent a bad chunk until it has read its own arena again; returns its children."""
    replica, vertex = record.replicas[member], record.swarm.vertex(member)
    if not vertex.complete or replica.state == "quarantined":
        return ()
    replica.state, vertex.barred = "quarantined", True
    replica.reason = why
    out.tell(record, member, f"quarantined: {why}")
    out.send(member, Reverify(epoch=out.epoch, shard=record.shard, version=record.version))
    return tuple(vertex.children)


def _layout_differs(record: VersionRecord, replica: Replica, out: Outbox) -> bool:
    """Refuse a receiver whose tensors are not the source's."""
    assert replica.open is not None
    if record.seal is None or replica.open.layout_digest in ("", record.seal.layout_digest):
        return False
    source = next(iter(record.swarm.complete_members()), None)
    message = f"{record.shard} v{record.version}: the receiver's layout is not the source's"
    out.refuse(record, replica.member, "LayoutMismatch", message, source)
    record.replicas.pop(replica.member, None)
    return True
