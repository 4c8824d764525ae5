"""How fast each member has been seen to be, and which ones are slow.

A receiver's overall rate says little about the receiver: behind a slow upstream everybody is slow. The rate
of a flow while it is busy says more: it is bounded by one of its two ends only. So a member is as fast as the
fastest flow that it was ever an end of in its present transfer, and slow if all of them were slow.
"""

from __future__ import annotations

import bisect
from collections.abc import Iterable


class Rates:
    """Bytes per second of members and the median of them, kept sorted so that asking is cheap."""

    def __init__(self) -> None:
        self._of: dict[str, float] = {}
        self._sorted: list[float] = []
        self._flows: dict[tuple[str, str], float] = {}
        self._ends: dict[str, set[tuple[str, str]]] = {}

    def of(self, member: str) -> float:
        """0 when unknown."""
        return self._of.get(member, 0.0)

    @property
    def median(self) -> float:
        """0 when nothing was measured."""
        return self._sorted[len(self._sorted) // 2] if self._sorted else 0.0

    def received(self, member: str, rate: float) -> None:
        """A member received a whole shard at this rate, at least: its upstreams may have been slower than
        itself."""
        flows = self._ends.get(member, set())
        if rate > 0:
            self._set(member, max([rate, *(self._flows[f] for f in flows)]))
        for flow in [f for f in flows if f[1] == member]:
            self._drop(flow)

    def flow(self, upstream: str, receiver: str, rate: float) -> None:
        """A flow was measured while it was busy."""
        if rate <= 0:
            return
        flow = (upstream, receiver)
        self._flows[flow] = rate
        for end in flow:
            self._ends.setdefault(end, set()).add(flow)
            self._set(end, max(self._flows[f] for f in self._ends[end]))

    def measured_flows(self, upstream: str, receivers: Iterable[str]) -> bool:
        """Whether any of these receivers has measured what it reads from `upstream`."""
        return any((upstream, r) in self._flows for r in receivers)

    def forget(self, member: str) -> None:
        for flow in list(self._ends.get(member, ())):
            self._drop(flow)
        old = self._of.pop(member, None)
        if old is not None:
            del self._sorted[bisect.bisect_left(self._sorted, old)]

    def validate(self) -> None:
        assert self._sorted == sorted(self._of.values())
        for end, flows in self._ends.items():
            assert all(end in f and f in self._flows for f in flows)

    def _drop(self, flow: tuple[str, str]) -> None:
        del self._flows[flow]
        for end in flow:
            self._ends[end].discard(flow)
            if not self._ends[end]:
                del self._ends[end]

    def _set(self, member: str, rate: float) -> None:
        old = self._of.get(member)
        if old is not None:
            del self._sorted[bisect.bisect_left(self._sorted, old)]
        self._of[member] = rate
        bisect.insort(self._sorted, rate)
