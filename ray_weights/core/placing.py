"""What happens to the receivers of one version: placed, moved, promoted. Called by the registry for each event."""

from __future__ import annotations

from dataclasses import dataclass

from ray_weights.core.outbox import Outbox
from ray_weights.core.planner import PlannerOptions, World, choose_upstream, plan_burst
from ray_weights.core.record import Replica, VersionRecord
from ray_weights.schemas.messages import BecomeOrigin, Reverify, Wait


@dataclass(frozen=True, slots=True)
class PlacingOptions:
    planner: PlannerOptions = PlannerOptions()
    gather_seconds: float = 0.05
    """How long receivers that follow one another closely are gathered, to be placed as one burst."""
    avoid_seconds: float = 30.0
    """How long a receiver stays away from an upstream that failed it, unless there is no other."""


def admit(record: VersionRecord, replica: Replica, world: World, options: PlacingOptions, out: Outbox) -> None:
    """Give a member that wants this version its place: wait for the origin, be placed, or become the origin."""
    assert replica.open is not None
    if record.seal is not None and _layout_differs(record, replica, out):
        return
    if record.sources():
        replica.state = "waiting"
        if out.now - record.placed_at > options.gather_seconds and record.burst_at is None:
            place_waiting(record, world, options, out)
        elif record.burst_at is None:
            record.burst_at = out.now + options.gather_seconds
        return
    origin = record.origin()
    if origin is not None or record.in_state("receiving"):
        replica.state = "waiting"
        replica.reason = f"{out.node(origin.member)} is loading it" if origin else "others are receiving it"
        out.tell(record, replica.member, f"waits: {replica.reason}")
        wait = Wait(epoch=out.epoch, shard=record.shard, version=record.version, reason=replica.reason)
        out.send(replica.member, wait)
        return
    promote(record, replica, "nobody else has or loads these weights", out)


def promote(record: VersionRecord, replica: Replica, reason: str, out: Outbox) -> None:
    """Make a member the origin if it can read storage; otherwise it is told that there is no source."""
    assert replica.open is not None
    if not replica.open.may_load:
        waiting = "" if record.seal is None else "every source of it is gone and "
        out.refuse(record, replica.member, "SourceLost", f"{record.shard} v{record.version}: {waiting}nobody loads it")
        del record.replicas[replica.member]
        return
    replica.state, replica.reason, replica.from_storage = "loading", reason, True
    record.storage_reads += 1
    out.tell(record, replica.member, f"loads from storage: {reason}")
    out.send(
        replica.member, BecomeOrigin(epoch=out.epoch, shard=record.shard, version=record.version, reason=reason)
    )


def place_waiting(record: VersionRecord, world: World, options: PlacingOptions, out: Outbox) -> None:
    """Place everybody who waits, as one burst."""
    record.burst_at, record.placed_at = None, out.now
    waiting = [r for r in record.in_state("waiting") if not _layout_differs(record, r, out)]
    for placement in plan_burst(record.swarm, [r.member for r in waiting], world, options.planner, out.now):
        replica = record.replicas[placement.member]
        replica.state, replica.reason = "receiving", placement.reason
        names = ", ".join(out.node(u) for u in dict.fromkeys(placement.upstreams))
        out.tell(record, placement.member, f"assigned to {names}: {placement.reason}")
        out.receive(record, placement.member, world.median_rate)


def reparent(
    record: VersionRecord, replica: Replica, lost: str, why: str, world: World, options: PlacingOptions, out: Outbox
) -> None:
    """Give a receiver another upstream for every stripe that it read from `lost`."""
    vertex = record.swarm.vertex(replica.member)
    replica.avoided[lost] = out.now
    avoid = {m for m, at in replica.avoided.items() if out.now - at < options.avoid_seconds}
    before = vertex.upstreams
    interior = vertex.interior
    kept = [u for u in before if u != lost and u in record.swarm]
    record.swarm.detach(replica.member)
    chosen: list[str] = []
    reason = ""
    for stripe, upstream in enumerate(before):
        if upstream != lost and upstream in record.swarm:
            chosen.append(upstream)
            continue
        found, reason = _choose(record, replica.member, stripe, len(before), avoid, world, options)
        if found is None and kept:
            found, reason = kept[0], "the upstream of the other stripe takes both"
        if found is None:
            _strand(record, replica, f"lost {out.node(lost)} ({why}); {reason}", world, options, out)
            return
        chosen.append(found)
    if len(set(chosen)) == 1:
        chosen, interior = chosen[:1], None
    record.swarm.attach(replica.member, tuple(chosen), out.now, interior)
    replica.reason = f"moved from {out.node(lost)} ({why}) to {out.node(chosen[-1])}: {reason}"
    out.tell(record, replica.member, replica.reason)
    out.receive(record, replica.member, world.median_rate)


def _choose(
    record: VersionRecord,
    member: str,
    stripe: int,
    stripes: int,
    avoid: set[str],
    world: World,
    options: PlacingOptions,
) -> tuple[str | None, str]:
    """Try hard: a fitting parent, then one that failed before, as it may only have been the path."""
    for shunned in (avoid, set[str]()):
        found, reason = choose_upstream(
            record.swarm, member, world, options.planner, stripe=stripe, stripes=stripes, avoid=shunned
        )
        if found is not None or not avoid:
            break
    return found, reason


def _strand(
    record: VersionRecord, replica: Replica, why: str, world: World, options: PlacingOptions, out: Outbox
) -> None:
    """Nobody is left to read from: wait for whoever loads now, or load."""
    orphans = record.swarm.remove(replica.member)
    replica.state = "waiting"
    out.tell(record, replica.member, why)
    if replica.open is None:
        out.refuse(record, replica.member, "SourceLost", f"{record.shard} v{record.version}: {why}")
        del record.replicas[replica.member]
    else:
        admit(record, replica, world, options, out)
    for child in orphans:
        if child in record.replicas and child in record.swarm:
            reparent(record, record.replicas[child], replica.member, "it has no source itself", world, options, out)


def orphaned(
    record: VersionRecord, gone: str, children: tuple[str, ...], why: str, world: World, options: PlacingOptions,
    out: Outbox,
) -> None:
    """Move the children of a member that left the graph, then see whether the waiting need an origin."""
    for child in children:
        if child in record.swarm and child in record.replicas:
            reparent(record, record.replicas[child], gone, why, world, options, out)
    if not record.sources() and record.origin() is None and not record.in_state("receiving"):
        for replica in record.in_state("waiting"):
            if replica.member in record.replicas and record.origin() is None:
                promote(record, replica, f"{out.node(gone)} {why}", out)


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
