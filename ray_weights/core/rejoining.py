"""Transfers that went on while the coordinator was restarted, taken up by the new epoch."""

from __future__ import annotations

from ray_weights.core import placing
from ray_weights.core.outbox import Outbox
from ray_weights.core.placing import PlacingOptions
from ray_weights.core.planner import World
from ray_weights.core.record import Replica, VersionRecord
from ray_weights.core.records import Records, conflict, differs
from ray_weights.core.recovery import Recovery
from ray_weights.core.swarm import Swarm
from ray_weights.schemas.members import Receiving
from ray_weights.schemas.messages import Open


def take_up(
    recovery: Recovery, records: Records, world: World, options: PlacingOptions, out: Outbox, *, everybody: bool
) -> list[VersionRecord]:
    """Take up transfers as soon as all that they read from is known; with `everybody`, all there are.

    They are taken up in groups, since two interleaved trees read from each other. Returns the versions concerned: call
    settle() for them.
    """
    concerned = []
    for shard, version in recovery.versions():
        record = records.made(shard, version)
        concerned.append(record)
        for member, receiving in recovery.of(shard, version):
            if differs(record, receiving.seal):
                out.refuse(record, member, "VersionConflict", conflict(record))
                recovery.take(member, shard, version)
        group = recovery.of(shard, version)
        if not everybody:
            group = _closed(group, record.swarm)
        transfers: list[tuple[Replica, tuple[str, ...]]] = []
        for member, receiving in group:
            recovery.take(member, shard, version)
            record.seal = receiving.seal
            known = record.replicas.get(member)
            request = known.open if known and known.open else _request_of(member, receiving, out.epoch)
            replica = Replica(member, "receiving", request, reason="went on receiving under a new epoch")
            replica.question = known.question if known else 0
            record.replicas[member] = replica
            transfers.append((replica, receiving.upstreams))
            out.tell(record, member, replica.reason)
        placing.resume(record, transfers, world, options, out)
    return concerned


def _request_of(member: str, receiving: Receiving, epoch: int) -> Open:
    """What it must have asked for."""
    return Open(
        epoch=epoch,
        member=member,
        shard=receiving.shard,
        version=receiving.version,
        layout_digest=receiving.seal.layout_digest,
        may_load=receiving.may_load,
    )


def _closed(group: list[tuple[str, Receiving]], swarm: Swarm) -> list[tuple[str, Receiving]]:
    """The largest part of a group that reads from the swarm and from itself only."""
    while True:
        known = {member for member, _ in group}
        closed = [(m, r) for m, r in group if r.upstreams and all(u in swarm or u in known for u in r.upstreams)]
        if len(closed) == len(group):
            return closed
        group = closed
