"""Flows over NICs: each link carries one chunk after another, links share the NICs at both ends.

Sharing is local water-filling: each end divides its rate among its busy links, a link that its other end
holds back leaves the rest to its neighbours, and a link runs at the smaller of what its two ends give. No end
is ever overbooked; what a neighbour's neighbour cannot use is not redistributed, so times are never too
short. Chunks of one link are served in the order asked for, as a NIC serves the READs of one queue pair.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

_MANY = 16
"""Above this many busy links of one end, shares are recomputed only when their number has changed by 2 %."""


@dataclass(slots=True, eq=False)
class End:
    """One direction of one NIC, or of a rack's uplink."""

    rate: float
    busy: dict[Link, None] = field(default_factory=dict)
    shared_among: int = 0

    def fair(self) -> float:
        return self.rate / max(1, len(self.busy))


@dataclass(slots=True, eq=False)
class Link:
    """From one member to another."""

    ends: tuple[End, ...]
    limit: float
    latency: float
    done: Callable[[int], None]
    """Called with the chunk when its last byte is there."""
    queue: deque[int] = field(default_factory=deque)
    left: float = 0.0
    """Bytes of the first chunk in the queue still to come."""
    rate: float = 0.0
    since: float = 0.0
    serial: int = 0
    closed: bool = False


class Network:
    """Who sends how fast. `at(time, act)` is the simulator's clock."""

    def __init__(self, at: Callable[[float, Callable[[], None]], None], chunk_nbytes: float) -> None:
        self._at = at
        self._chunk_nbytes = chunk_nbytes
        self.now = 0.0

    def send(self, link: Link, chunk: int) -> None:
        """Queue a chunk on a link."""
        if link.queue:
            link.queue.append(chunk)
            return
        link.queue.append(chunk)
        self._at(self.now + link.latency, lambda: self._start(link))

    def close(self, link: Link) -> None:
        """Nothing more arrives on a link."""
        link.closed = True
        link.queue.clear()
        link.serial += 1
        if any(link in e.busy for e in link.ends):
            self._idle(link)

    def _start(self, link: Link) -> None:
        if link.closed:
            return
        link.left, link.since = self._chunk_nbytes, self.now
        for end in link.ends:
            end.busy[link] = None
        scheduled = link.serial
        self._reshare(link)
        if link.serial == scheduled and link.rate:  # as fast as before: it did not idle
            self._schedule(link)

    def _idle(self, link: Link) -> None:
        link.rate = 0.0
        for end in link.ends:
            end.busy.pop(link, None)
        self._reshare(link)

    def _reshare(self, changed: Link) -> None:
        touched: dict[Link, None] = {}
        if not changed.closed and changed.queue:
            touched[changed] = None
        for end in changed.ends:
            count = len(end.busy)
            if count > _MANY and abs(count - end.shared_among) <= 0.02 * end.shared_among:
                continue
            end.shared_among = count
            touched.update(end.busy)
        for link in touched:
            rate = link.limit
            for end in link.ends:
                rate = min(rate, _share(end, link))
            if abs(rate - link.rate) > 1e-9 * rate:
                self._set_rate(link, rate)

    def _set_rate(self, link: Link, rate: float) -> None:
        link.left -= (self.now - link.since) * link.rate
        link.rate, link.since = rate, self.now
        self._schedule(link)

    def _schedule(self, link: Link) -> None:
        link.serial += 1
        serial = link.serial
        self._at(self.now + max(0.0, link.left) / link.rate, lambda: self._arrived(link, serial))

    def _arrived(self, link: Link, serial: int) -> None:
        if serial != link.serial or link.closed:
            return
        chunk = link.queue.popleft()
        if link.queue:
            link.left, link.since = self._chunk_nbytes, self.now
            self._schedule(link)
            link.done(chunk)
            return
        # Whoever hears of this chunk may ask for the next at once: then the link stays busy and nothing is
        # reshared.
        link.left, link.since = self._chunk_nbytes, self.now
        link.done(chunk)
        if not link.queue:
            self._idle(link)


def _share(end: End, link: Link) -> float:
    """What an end gives to one of its busy links."""
    count = len(end.busy)
    if count <= 1:
        return end.rate
    if count > _MANY:
        return end.rate / count
    fair = end.rate / count
    wants = sorted(_elsewhere(other, end) for other in end.busy)
    mine = _elsewhere(link, end)
    left, remaining = end.rate, count
    for want in wants:
        fair = left / remaining
        if want >= fair:
            return min(mine, fair)
        left -= want
        remaining -= 1
    return min(mine, fair) if mine >= fair else mine


def _elsewhere(link: Link, end: End) -> float:
    """What the other ends of a link would let through."""
    rate = link.limit
    for other in link.ends:
        if other is not end:
            rate = min(rate, other.rate / max(1, len(other.busy)))
    return rate
