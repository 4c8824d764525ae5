"""What a receiver knows of one upstream, and how long it waits for it."""

from __future__ import annotations

from dataclasses import dataclass, field

from ray_weights.core.page import PageView


@dataclass(frozen=True, slots=True)
class ReceiverOptions:
    """Times in seconds."""

    window: int = 3
    """Reads in flight per upstream."""
    spacing: float = 0.75
    """Least time between the starts of two reads of one upstream, as a share of the time between two arrivals: below 1,
    or it could never speed up; 0 = none."""
    stall_seconds: float = 3.0
    """A read in flight without any arrival for this long (and for 8 chunk times) is given up on."""
    first_chunk_seconds: float = 10.0
    """As stall_seconds, before the first chunk of an upstream has shown how long one takes."""
    starve_seconds: float = 12.0
    """An upstream whose page shows nothing new for this long is reported."""
    report_again_seconds: float = 2.0
    """How long to wait for the coordinator's answer before the report is repeated."""
    connect_seconds: float = 10.0
    measure_chunks: int = 0
    """Arrivals over which the rate of an upstream is measured; 0 = never. It is reported when it is first known, and
    when it has changed to less than half or more than twice of that (Measured)."""
    most_patience: float = 8.0
    """Each read given up on before anything ever arrived doubles the patience for the next, up to this
    factor."""

    def stalled_after(self, chunk_seconds: float) -> float:
        """Seconds without a sign of life, of an upstream that has shown that it takes `chunk_seconds` for a chunk."""
        return max(self.stall_seconds, 8 * chunk_seconds)


@dataclass(slots=True)
class Link:
    """One upstream."""

    member: str
    since: float
    connected: bool = False
    leaving: bool = False
    """No new reads; those in flight may end."""
    page: PageView | None = None
    stripes_ready: tuple[bytes, ...] = ()
    """The page, one string per stripe."""
    page_due: float | None = None
    """When the page read that is under way was to start."""
    in_flight: set[int] = field(default_factory=set)
    """Chunks whose reads have begun and not ended."""
    news_at: float = 0.0
    """When its page last showed something new, or a chunk arrived."""
    arrived_at: float = 0.0
    arrived: int = 0
    busy_seconds: float = 0.0
    """Time with a read in flight, up to the last arrival, since the rate was looked at last."""
    looked_at: int = 0
    """`arrived` at that time."""
    told_rate: float = 0.0
    """Chunks per second, as last reported."""
    reported: bool = False
    reopen: bool = False
    """Connect anew once the last read has ended."""
    complete: bool = False
    """Its page shows every chunk."""
    _service_seconds: float = 0.0
    """Smoothed time between two arrivals while reads are in flight; a single long wait counts little."""
    _next_start_at: float = 0.0
    held_back: bool = False
    """A read could begin but for the time since the one before."""

    def saw(self, page: PageView, stripes: int) -> None:
        self.page, self.complete = page, 0 not in page.ready
        self.stripes_ready = tuple(page.ready[stripe::stripes] for stripe in range(stripes))

    def new_rate(self, measure_chunks: int) -> float | None:
        """Chunks per second while it was asked for any, if enough have arrived and it is worth a report."""
        count = self.arrived - self.looked_at
        if not 0 < measure_chunks <= count or self.busy_seconds <= 0:
            return None
        rate = count / self.busy_seconds
        self.looked_at, self.busy_seconds = self.arrived, 0.0
        if self.told_rate and 0.5 <= rate / self.told_rate <= 2:
            return None
        self.told_rate = rate
        return rate

    def started(self, chunk: int, now: float, spacing: float) -> None:
        if not self.in_flight:
            self.arrived_at = now  # the stall clock starts with the first read in flight
        self.in_flight.add(chunk)
        self._next_start_at = now + spacing * self._service_seconds

    def ended(self, chunk: int, now: float) -> None:
        """A read has ended, well or badly."""
        self.in_flight.remove(chunk)
        took = now - self.arrived_at
        self.busy_seconds += took
        self.arrived_at = now
        if not self.arrived:
            self._service_seconds = took
        else:
            self._service_seconds += 0.2 * (min(took, 4 * self._service_seconds) - self._service_seconds)

    def may_start(self, now: float, spacing: float) -> bool:
        """Whether a read may begin beside those in flight.

        Reads of one connection are answered side by side: begun together they end together, the connection idles until
        the next ones are asked for, and a child learns of a whole window at once. So they are begun one after another,
        a little closer than they are answered.
        """
        if not self.in_flight or spacing == 0:
            return True
        if not self.arrived:
            return False  # the first chunk shows how long one takes
        self.held_back = now < self._next_start_at
        return not self.held_back

    def starts_again_at(self) -> float:
        """When a read that was held back may begin; infinity while none is."""
        return self._next_start_at if self.held_back and self.in_flight else float("inf")

    def page_overdue(self, options: ReceiverOptions, chunk_seconds: float) -> float:
        """When to stop waiting for a look at its page; infinity when none is under way."""
        if self.page_due is None:
            return float("inf")
        if self.page is None:
            return self.page_due + options.first_chunk_seconds
        return self.page_due + options.stalled_after(chunk_seconds)

    def gives_up_at(self, options: ReceiverOptions, chunk_seconds: float, patience: float, owes: bool) -> float:
        """When to stop waiting for what this upstream owes; infinity when it owes nothing.

        `patience` is a factor for reads before any has arrived; `owes`: whether chunks that it serves are missing.
        """
        if self.in_flight:
            if not self.arrived:
                return self.arrived_at + patience * options.first_chunk_seconds
            return self.arrived_at + options.stalled_after(chunk_seconds)
        if self.leaving:
            return float("inf")
        if not self.connected:
            return self.since + options.connect_seconds
        if not owes:
            return float("inf")
        return min(self.news_at + options.starve_seconds, self.page_overdue(options, chunk_seconds))
