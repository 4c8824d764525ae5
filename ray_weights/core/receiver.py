"""The receiver's state machine: which chunk to read from whom, when to look again, when to leave.

Theory of operation
    A receiver has one upstream per stripe. From each it reads, in order, the chunks of its stripes that the
    upstream's progress page shows as ready, a window of them at a time. A chunk counts once its digest is
    verified; it is then advertised to the receiver's own children. The page is read again only when fewer
    than a window of ready chunks are known, and then at a pace set by the measured time between chunks.

Two rules
    A read that ended, well or badly, leaves its place free for another read. A read that was given up on may
    still write later: the whole arena moves (Relocate), and whatever was in flight is read again into the new
    one. A receiver leaves an upstream by itself, and waits for the coordinator to name another; it repeats
    its request until it is answered.
"""

from __future__ import annotations

from collections.abc import Callable
from enum import Enum

from ray_weights.core.link import Link, ReceiverOptions
from ray_weights.core.pace import Pace
from ray_weights.core.page import PageState
from ray_weights.core.receiving import (
    Advertise,
    Arrived,
    Assigned,
    Command,
    Connect,
    Connected,
    Corrupt,
    Disconnect,
    Event,
    Finish,
    LinkFailed,
    Measured,
    PageSeen,
    ReadChunk,
    ReadFailed,
    ReadPage,
    Relocate,
    Relocated,
    Report,
    Tick,
    Verified,
    Verify,
)
from ray_weights.schemas.messages import LossKind

_DEFAULTS = ReceiverOptions()


class _Chunk(Enum):
    MISSING = "missing"
    READING = "reading"
    VERIFYING = "verifying"
    VERIFIED = "verified"


class Receiver:
    """Reads one shard. One mutator, handle()."""

    def __init__(
        self,
        chunks: int,
        now: float,
        options: ReceiverOptions = _DEFAULTS,
        verified: frozenset[int] = frozenset(),
    ) -> None:
        """`verified`: chunks that are there already, for one that resumes."""
        self.generation = 0
        self.done = False
        self.read_again = 0
        """Chunks whose read was started more than once."""
        self.from_receivers = 0
        """Chunks read from upstreams that were not complete themselves."""
        self.read_from: dict[str, int] = {}
        """Verified chunks by upstream."""
        self._options = options
        self._state = [_Chunk.VERIFIED if c in verified else _Chunk.MISSING for c in range(chunks)]
        self._missing = chunks - len(verified)
        self._source: dict[int, str] = {}
        """Upstream that a chunk is being read or was read from."""
        self._started: set[int] = set()
        self._links: dict[str, Link] = {}
        self._upstreams: tuple[str, ...] = ()
        self._next: list[int] = []
        self._relocating = False
        self._asked: Report | None = None
        self._asked_at = now
        self._patience = 1.0
        self._has_arrived = False
        self._pace = Pace()
        self._handlers: dict[type[object], Callable[..., None]] = {
            Assigned: self._assigned,
            Connected: self._connected,
            LinkFailed: self._link_failed,
            PageSeen: self._page_seen,
            Arrived: self._arrived,
            ReadFailed: self._read_failed,
            Verified: self._verified,
            Corrupt: self._corrupt,
            Relocated: self._relocated,
            Tick: self._tick,
        }

    @property
    def upstreams(self) -> tuple[str, ...]:
        return self._upstreams

    @property
    def verified_count(self) -> int:
        return len(self._state) - self._missing

    @property
    def poll_seconds(self) -> float:
        """How long to sleep between two checks of reads in flight."""
        return self._pace.poll_seconds

    @property
    def chunk_seconds(self) -> float:
        """Smoothed time between two arrivals; the simulator paces its looks by it."""
        return self._pace.chunk_seconds

    def reading_from(self, upstream: str) -> tuple[int, ...]:
        """Chunks whose reads from an upstream are in flight."""
        link = self._links.get(upstream)
        return tuple(link.in_flight) if link is not None else ()

    def verified_chunks(self) -> tuple[int, ...]:
        return tuple(c for c, s in enumerate(self._state) if s is _Chunk.VERIFIED)

    def handle(self, event: Event, now: float) -> list[Command]:
        """Apply one event; returns what to do, in order."""
        out: list[Command] = []
        if self.done:
            return out
        self._handlers[type(event)](event, now, out)
        if not self.done:
            self._advance(now, out)
        return out

    def next_wakeup(self) -> float:
        """When a Tick is due at the latest; infinity while all there is to wait for is the first
        assignment."""
        times = [min(self._gives_up_at(link), link.starts_again_at()) for link in self._links.values()]
        if self._asked is not None:
            times.append(self._asked_at + self._options.report_again_seconds)
        return min(times, default=float("inf"))

    # Events

    def _assigned(self, event: Assigned, now: float, out: list[Command]) -> None:
        # One upstream for all stripes is a chain: in order, or its children would see one stripe only at
        # first.
        distinct = tuple(dict.fromkeys(event.upstreams))
        self._upstreams = distinct if len(distinct) == 1 else event.upstreams
        self._next = list(range(len(self._upstreams)))
        self._asked = None
        for member, link in list(self._links.items()):
            if member not in distinct:
                link.leaving, link.reopen = True, False
                self._close_if_idle(link, now, out)
        for member in distinct:
            old = self._links.get(member)
            if old is not None and not old.leaving:
                old.reported = False
                if old.page is not None:
                    old.saw(old.page, len(self._upstreams))
                continue
            if old is not None:
                old.reopen = True
                self._close_if_idle(old, now, out)
            else:
                self._open(member, now, out)

    def _connected(self, event: Connected, now: float, out: list[Command]) -> None:
        link = self._links.get(event.upstream)
        if link is None or link.leaving:
            out.append(Disconnect(event.upstream))
            return
        link.connected, link.news_at = True, now

    def _link_failed(self, event: LinkFailed, now: float, out: list[Command]) -> None:
        link = self._links.get(event.upstream)
        if link is None:
            return
        link.page_due = None
        self._leave(link, event.kind, event.detail, now, out)

    def _page_seen(self, event: PageSeen, now: float, out: list[Command]) -> None:
        link = self._links.get(event.upstream)
        if link is None:
            return
        link.page_due = None
        if event.page.state is PageState.MOVED:
            # The same member serves from another arena now: end this lease and take a new one.
            link.leaving = link.reopen = True
            self._close_if_idle(link, now, out)
            return
        if event.page.state is PageState.CLOSED or len(event.page.ready) != len(self._state):
            self._leave(link, "stale", "it no longer serves this version", now, out)
            return
        if link.page is None or link.page.ready != event.page.ready:
            link.news_at = now
            self._pace.page_had_news()
        else:
            self._pace.page_was_old()
        link.saw(event.page, len(self._upstreams))

    def _arrived(self, event: Arrived, now: float, out: list[Command]) -> None:
        link = self._ended(event.chunk, event.generation, now)
        if link is None:
            return
        self._pace.chunk_arrived(now)
        self._has_arrived = True
        link.arrived += 1
        link.news_at = now
        if (rate := link.new_rate(self._options.measure_chunks)) is not None:
            out.append(Measured(link.member, rate))
        if not link.complete:
            self.from_receivers += 1
        self._state[event.chunk] = _Chunk.VERIFYING
        out.append(Verify(event.chunk, event.generation))
        self._close_if_idle(link, now, out)

    def _read_failed(self, event: ReadFailed, now: float, out: list[Command]) -> None:
        link = self._ended(event.chunk, event.generation, now)
        if link is None:
            return
        self._forget(event.chunk)
        self._leave(link, "dead", event.detail, now, out)

    def _verified(self, event: Verified, now: float, out: list[Command]) -> None:
        if event.generation != self.generation or self._state[event.chunk] is not _Chunk.VERIFYING:
            return
        self._state[event.chunk] = _Chunk.VERIFIED
        self._missing -= 1
        source = self._source[event.chunk]
        self.read_from[source] = self.read_from.get(source, 0) + 1
        out.append(Advertise(event.chunk))

    def _corrupt(self, event: Corrupt, now: float, out: list[Command]) -> None:
        if event.generation != self.generation or self._state[event.chunk] is not _Chunk.VERIFYING:
            return
        source = self._source[event.chunk]
        self._forget(event.chunk)
        left = self._links.get(source)
        detail = f"chunk {event.chunk} has another digest than the manifest"
        if left is None:
            out.append(Report(source, "corrupt", detail))
            return
        self._leave(left, "corrupt", detail, now, out)

    def _relocated(self, event: Relocated, now: float, out: list[Command]) -> None:
        if event.generation == self.generation:
            self._relocating = False

    def _tick(self, event: Tick, now: float, out: list[Command]) -> None:
        for link in list(self._links.values()):
            if now < self._gives_up_at(link):
                continue
            if link.in_flight:
                self._abandon(link, now, out)
            elif not link.connected:
                self._leave(link, "unreachable", "it did not answer", now, out)
            elif link.page_overdue(self._options, self._pace.chunk_seconds) <= now:
                self._leave(link, "stalled", "its progress page could not be read", now, out)
            else:
                link.news_at = now
                out.append(Report(link.member, "starved", f"nothing new for {self._options.starve_seconds:.0f} s"))
        if self._asked is not None and now >= self._asked_at + self._options.report_again_seconds:
            self._asked_at = now
            out.append(self._asked)

    # Parts

    def _advance(self, now: float, out: list[Command]) -> None:
        """Start what can be started: reads up to the window, a look at a page where ready chunks run
        short."""
        if self._missing == 0:
            for link in list(self._links.values()):
                out.append(Disconnect(link.member))
            self._links.clear()
            self.done = True
            out.append(Finish())
            return
        for link in self._links.values():
            link.held_back = False  # as may be found out anew below
        if self._relocating:
            return
        for stripe, member in enumerate(self._upstreams):
            current = self._links.get(member)
            if current is None or current.leaving or not current.connected:
                continue
            link = current
            short = self._fill_window(link, stripe, now, out)
            if short and not link.complete and link.page_due is None:
                link.page_due = now if link.page is None else self._pace.next_look(now)
                out.append(ReadPage(member, link.page_due))

    def _fill_window(self, link: Link, stripe: int, now: float, out: list[Command]) -> bool:
        """Start reads for one stripe; returns whether ready chunks ran out before the window was full."""
        stripes = len(self._upstreams)
        window = self._options.window if stripes == 1 else max(2, self._options.window // stripes)
        first = self._next[stripe]
        while first < len(self._state) and self._state[first] is not _Chunk.MISSING:
            first += stripes
        self._next[stripe] = first
        if first >= len(self._state):
            return False
        if link.page is None:
            return True
        ready = link.stripes_ready[stripe]
        short = False
        at = (first - stripe) // stripes
        while len(link.in_flight) < window and link.may_start(now, self._options.spacing):
            found = ready.find(1, at)
            if found < 0:
                return short or self._lacks(stripe, at)
            short = short or (found > at and self._lacks(stripe, at))
            chunk = found * stripes + stripe
            if self._state[chunk] is _Chunk.MISSING:
                self._start(chunk, link, now, out)
            at = found + 1
        return False

    def _lacks(self, stripe: int, at: int) -> bool:
        """Whether a chunk of a stripe is missing from its place `at` on."""
        stripes, state = len(self._upstreams), self._state
        first = at * stripes + stripe
        if first < len(state) and state[first] is _Chunk.MISSING:
            return True  # as nearly always
        return any(state[c] is _Chunk.MISSING for c in range(at * stripes + stripe, len(state), stripes))

    def _start(self, chunk: int, link: Link, now: float, out: list[Command]) -> None:
        self._state[chunk] = _Chunk.READING
        self._source[chunk] = link.member
        if chunk in self._started:
            self.read_again += 1
        self._started.add(chunk)
        link.started(chunk, now, self._options.spacing)
        out.append(ReadChunk(chunk, link.member, self.generation))

    def _ended(self, chunk: int, generation: int, now: float) -> Link | None:
        """A read has ended: take it off its link; None for one of an arena that was left."""
        if generation != self.generation or self._state[chunk] is not _Chunk.READING:
            return None
        link = self._links[self._source[chunk]]
        link.ended(chunk, now)
        return link

    def _forget(self, chunk: int) -> None:
        """A chunk must be read again."""
        self._state[chunk] = _Chunk.MISSING
        if self._next:
            stripe = chunk % len(self._next)
            self._next[stripe] = min(self._next[stripe], chunk)

    def _leave(self, link: Link, kind: LossKind, detail: str, now: float, out: list[Command]) -> None:
        """Stop reading from an upstream, say so once, and wait for another."""
        if not link.reported and link.member in self._upstreams:
            self._asked = Report(link.member, kind, detail)
            self._asked_at = now
            out.append(self._asked)
        link.reported = True
        link.leaving = True
        self._close_if_idle(link, now, out)

    def _open(self, member: str, now: float, out: list[Command]) -> None:
        self._links[member] = Link(member, since=now, news_at=now)
        out.append(Connect(member))

    def _close_if_idle(self, link: Link, now: float, out: list[Command]) -> None:
        if link.leaving and not link.in_flight and self._links.get(link.member) is link:
            del self._links[link.member]
            out.append(Disconnect(link.member))
            if link.reopen and link.member in self._upstreams:
                self._open(link.member, now, out)

    def _abandon(self, link: Link, now: float, out: list[Command]) -> None:
        """Reads in flight make no progress and may still write later: leave the arena with all that is in
        flight."""
        detail = f"{len(link.in_flight)} reads made no progress for {now - link.arrived_at:.1f} s"
        if not self._has_arrived:
            self._patience = min(2 * self._patience, self._options.most_patience)
        self.generation += 1
        self._relocating = True
        for chunk, state in enumerate(self._state):
            if state in (_Chunk.READING, _Chunk.VERIFYING):
                self._forget(chunk)
        for other in self._links.values():
            other.in_flight.clear()
            other.news_at = max(other.news_at, now)
        out.append(Relocate(self.generation, self.verified_chunks(), f"{link.member}: {detail}"))
        self._leave(link, "stalled", detail, now, out)
        for other in list(self._links.values()):
            self._close_if_idle(other, now, out)

    def _gives_up_at(self, link: Link) -> float:
        return link.gives_up_at(self._options, self._pace.chunk_seconds, self._patience, self._owes(link))

    def _owes(self, link: Link) -> bool:
        """Whether chunks are still missing in the stripes that this upstream serves."""
        if self._relocating:
            return False
        for stripe, member in enumerate(self._upstreams):
            if member == link.member and self._lacks(stripe, (self._next[stripe] - stripe) // len(self._upstreams)):
                return True
        return False
