"""How often to look at an upstream's progress page: often enough that a chunk is not left lying, seldom
enough to cost nothing. Learned from the time between chunks."""

from __future__ import annotations

SHORTEST = 0.0002
LONGEST = 0.02


class Pace:
    """Seconds between looks, a fraction of the time between chunks, longer while nothing new is seen."""

    def __init__(self) -> None:
        self.chunk_seconds = 0.004
        """Smoothed time between two arrivals."""
        self._last: float | None = None
        self._idle_looks = 0

    def chunk_arrived(self, now: float) -> None:
        if self._last is not None:
            self.chunk_seconds += 0.2 * (now - self._last - self.chunk_seconds)
        self._last = now

    def page_had_news(self) -> None:
        self._idle_looks = 0

    def page_was_old(self) -> None:
        self._idle_looks += 1

    def next_look(self, now: float) -> float:
        """When to read the page next: an eighth of a chunk time, doubling after 16 looks in vain."""
        step = self.chunk_seconds / 8 * float(1 << min(6, self._idle_looks // 16))
        return now + min(max(step, SHORTEST), LONGEST)

    @property
    def poll_seconds(self) -> float:
        """How long to sleep between two checks of reads in flight: a sixteenth of a chunk time."""
        return min(max(self.chunk_seconds / 16, 0.00005), 0.002)
