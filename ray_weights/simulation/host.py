"""A simulated member: carries out the commands of its real Receiver."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING

from ray_weights.core import receiving as r
from ray_weights.core.pace import Pace
from ray_weights.core.page import PageState, PageView
from ray_weights.core.receiver import Receiver
from ray_weights.schemas.members import MemberInfo
from ray_weights.simulation.network import End, Link

if TYPE_CHECKING:
    from ray_weights.simulation.engine import Simulation


class Host:
    """One member of the simulated cluster."""

    def __init__(
        self, simulation: Simulation, info: MemberInfo, nic: tuple[End, End], *, source: bool, slow: bool
    ) -> None:
        """`nic`: egress and ingress."""
        self.info = info
        self.nic = nic
        self.source = source
        self.slow = slow
        self.alive = True
        self.arrived_at = 0.0
        self.finished_at: float | None = None
        self.sent = 0.0
        self.read_again = 0
        self._simulation = simulation
        self._receiver: Receiver | None = None
        chunks = simulation.scenario.chunks
        self._ready = bytearray(b"\1" * chunks if source else chunks)
        self._news = 1 if source else 0
        """Counts what was advertised."""
        self._watchers: dict[Host, None] = {}
        """Readers that look at this page in vain."""
        self._links: dict[str, Link] = {}
        self._seen: dict[str, int] = {}
        self._looking: dict[str, tuple[float, float]] = {}
        """Upstream -> (when the looking began, when the next look is due)."""
        self._callers: list[tuple[Host, int]] = []
        """Readers that asked for a lease before there was anything to lease."""
        self._connects: dict[str, int] = {}
        self._tick_at = float("inf")
        self._connect_serial = 0
        self._digests_free = 0.0
        self._carry_out = {
            r.Connect: self._connect,
            r.Disconnect: self._disconnect,
            r.ReadPage: self._read_page,
            r.ReadChunk: self._read_chunk,
            r.Verify: self._verify,
            r.Advertise: self._advertise,
            r.Report: self._report,
            r.Measured: self._measured,
            r.Finish: self._finish,
        }

    @property
    def seconds(self) -> float:
        assert self.finished_at is not None
        return self.finished_at - self.arrived_at

    def assign(self, upstreams: tuple[str, ...]) -> None:
        if not self.alive or self.finished_at is not None:
            return
        if self._receiver is None:
            s = self._simulation
            self._receiver = Receiver(s.scenario.chunks, s.now, s.receiver_options)
            for reader, serial in self._callers:
                self._grant(reader, serial)
        self._handle(r.Assigned(upstreams))

    def die(self) -> None:
        self.alive = False
        for link in self._links.values():
            self._simulation.network.close(link)
        for other in self._simulation.hosts.values():
            from_here = other._links.get(self.info.member)
            if from_here is not None:
                self._simulation.network.close(from_here)

    def upstream_died(self, member: str) -> None:
        if member in self._links or member in self._connects:
            receiver = self._receiver
            if receiver is None or receiver.done or not self.alive:
                return
            for chunk in receiver.reading_from(member):
                self._handle(r.ReadFailed(chunk, receiver.generation, "connection reset"))
            self._handle(r.LinkFailed(member, "dead", "connection reset"))

    def _handle(self, event: r.Event) -> None:
        receiver = self._receiver
        if receiver is None or receiver.done or not self.alive:
            return
        for command in receiver.handle(event, self._simulation.now):
            self._carry_out[type(command)](command)  # type: ignore[operator]
        if not receiver.done:
            self._arm(receiver)

    def _arm(self, receiver: Receiver) -> None:
        """One timer, moved forward only: a later one is set when it has fired to find that nothing is due."""
        at = receiver.next_wakeup()
        if at < self._tick_at:
            self._tick_at = at
            self._simulation.at(at, functools.partial(self._ring, at))

    def _ring(self, at: float) -> None:
        if at != self._tick_at:
            return  # an earlier one has taken its place
        self._tick_at = float("inf")
        receiver = self._receiver
        if receiver is None or receiver.done or not self.alive:
            return
        if receiver.next_wakeup() <= self._simulation.now:
            self._handle(r.Tick())
        else:
            self._arm(receiver)

    # Leases

    def _connect(self, command: r.Connect) -> None:
        self._connect_serial += 1
        serial = self._connect_serial
        self._connects[command.upstream] = serial
        upstream = self._simulation.hosts[command.upstream]
        later = self._simulation.now + self._simulation.scenario.connect_seconds
        self._simulation.at(later, functools.partial(upstream._asked, self, serial))

    def _asked(self, reader: Host, serial: int) -> None:
        if not self.alive:
            return  # the reader learns of the death by itself
        if self.source or self._receiver is not None:
            self._grant(reader, serial)
        else:
            self._callers.append((reader, serial))

    def _grant(self, reader: Host, serial: int) -> None:
        me = self.info.member
        if reader._connects.get(me) != serial:
            return
        s = self._simulation
        ends, limit = s.path(self, reader)
        reader._links[me] = Link(ends, limit, s.scenario.latency, functools.partial(reader._arrived, self))
        reader._seen[me] = -1
        reader._handle(r.Connected(me))

    def _disconnect(self, command: r.Disconnect) -> None:
        self._connects.pop(command.upstream, None)
        self._looking.pop(command.upstream, None)
        link = self._links.pop(command.upstream, None)
        if link is not None:
            self._simulation.network.close(link)
        self._simulation.hosts[command.upstream]._watchers.pop(self, None)

    # Pages: looks that would show nothing new are counted, not made

    def _read_page(self, command: r.ReadPage) -> None:
        upstream = self._simulation.hosts[command.upstream]
        now = self._simulation.now
        if upstream._news > self._seen[command.upstream]:
            self._look(upstream, command.at)
        else:
            self._looking[command.upstream] = (now, command.at)
            upstream._watchers[self] = None

    def _news_at(self, upstream: Host) -> None:
        """The upstream advertised something: the next look by the pace of the real machine shows it."""
        assert self._receiver is not None
        _, at = self._looking.pop(upstream.info.member)
        pace = Pace()
        pace.chunk_seconds = self._receiver.chunk_seconds
        while at < self._simulation.now:
            pace.page_was_old()
            at = pace.next_look(at)
        self._look(upstream, at)

    def _look(self, upstream: Host, at: float) -> None:
        s = self._simulation
        link = self._links[upstream.info.member]
        s.at(max(at, s.now) + s.scenario.page_seconds, functools.partial(self._saw, upstream, link))

    def _saw(self, upstream: Host, link: Link) -> None:
        member = upstream.info.member
        if not upstream.alive or self._links.get(member) is not link:
            return
        self._seen[member] = upstream._news
        self._handle(r.PageSeen(member, PageView(PageState.SERVING, bytes(upstream._ready))))

    # Chunks

    def _read_chunk(self, command: r.ReadChunk) -> None:
        link = self._links[command.upstream]
        if link.closed:
            return  # its source is dead; the failure follows
        self._simulation.network.send(link, command.chunk)

    def _arrived(self, upstream: Host, chunk: int) -> None:
        s = self._simulation
        upstream.sent += s.scenario.chunk_nbytes
        s.tiers[s.tier(upstream, self)] += s.scenario.chunk_nbytes
        assert self._receiver is not None
        self._handle(r.Arrived(chunk, self._receiver.generation))

    def _verify(self, command: r.Verify) -> None:
        s = self._simulation
        self._digests_free = max(s.now, self._digests_free) + s.scenario.chunk_nbytes / s.scenario.digest_rate
        s.at(self._digests_free, functools.partial(self._handle, r.Verified(command.chunk, command.generation)))

    def _advertise(self, command: r.Advertise) -> None:
        self._ready[command.chunk] = 1
        self._news += 1
        watchers, self._watchers = self._watchers, {}
        for watcher in watchers:
            watcher._news_at(self)

    def _finish(self, command: r.Finish) -> None:
        assert self._receiver is not None
        s = self._simulation
        self.finished_at = s.now
        self.read_again = self._receiver.read_again
        seconds = self.seconds
        s.call(lambda now: s.coordination.completed(self.info.member, seconds, now))

    # Words to the coordinator

    def _report(self, command: r.Report) -> None:
        s = self._simulation
        s.call(lambda now: s.coordination.lost(self.info.member, command.upstream, command.kind, now))

    def _measured(self, command: r.Measured) -> None:
        s = self._simulation
        rate = command.chunks_per_second * s.scenario.chunk_nbytes
        s.call(lambda now: s.coordination.measured(self.info.member, command.upstream, rate, now))
