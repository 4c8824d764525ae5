"""Who reads from whom, as trees: the order in which `status` draws replicas."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ray_weights.schemas.status import ReplicaStatus


@dataclass(frozen=True, slots=True)
class Reading:
    """A replica and those that read from it, now or when they received."""

    replica: ReplicaStatus
    readers: tuple[Reading, ...]


def reading_trees(replicas: Sequence[ReplicaStatus]) -> tuple[Reading, ...]:
    """Each replica once: below its first upstream that is among them, else at the top.

    Upstreams of complete replicas are history: one may be gone, or may have read from its own reader since. Where such
    a circle has no top, its first replica becomes one.
    """
    present = {r.member for r in replicas}
    parent: dict[str, str] = {}
    for r in replicas:
        upstream = next((u for u in r.upstreams if u in present and u != r.member), None)
        if upstream is not None and not _leads_to(upstream, r.member, parent):
            parent[r.member] = upstream

    def reading(replica: ReplicaStatus) -> Reading:
        return Reading(replica, tuple(reading(r) for r in replicas if parent.get(r.member) == replica.member))

    return tuple(reading(r) for r in replicas if r.member not in parent)


def _leads_to(start: str, end: str, parent: dict[str, str]) -> bool:
    at: str | None = start
    while at is not None:
        if at == end:
            return True
        at = parent.get(at)
    return False
