"""Lines in vLLM's log that say what a replica is waiting for."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Protocol

from ray_weights.schemas.members import ReceiveStats
from ray_weights.schemas.status import TransferProgress


class Log(Protocol):
    """The part of logging.Logger that is used here."""

    def info(self, msg: str, *args: object) -> None: ...

    def warning(self, msg: str, *args: object) -> None: ...


class ProgressLog:
    """Logs progress every few seconds, not at every call."""

    def __init__(self, log: Log, *, every_s: float = 5.0, clock: Callable[[], float] = time.monotonic) -> None:
        self._log = log
        self._every_s = every_s
        self._clock = clock
        self._next = clock() + every_s

    def __call__(self, progress: TransferProgress) -> None:
        now = self._clock()
        if now >= self._next:
            self._next = now + self._every_s
            self._log.info("ray_weights: %s", progress_line(progress))


def progress_line(p: TransferProgress) -> str:
    """One line for people, for example "receiving, 1.2 of 3.4 GB (36 %), 410 MB/s, 3 s so far"."""
    parts = [p.state]
    if p.nbytes:
        share = 100 * p.nbytes_verified // p.nbytes
        parts.append(f"{size(p.nbytes_verified)} of {size(p.nbytes)} ({share} %)")
    if p.rate:
        parts.append(f"{size(p.rate)}/s")
    parts.append(f"{p.seconds:.0f} s so far")
    if p.detail:
        parts.append(p.detail)
    return ", ".join(parts)


def received_line(nbytes: int, stats: ReceiveStats | None) -> str:
    """Where a complete shard came from, and how fast."""
    if stats is None:
        return f"{size(nbytes)} were on this node already"
    came_from = ", ".join(name for name, _ in stats.upstream_nbytes) or "another replica"
    line = f"received {size(stats.nbytes)} from {came_from} in {stats.seconds:.2f} s ({size(stats.rate)}/s)"
    return f"{line}; {size(stats.read_again_nbytes)} were read again" if stats.read_again_nbytes else line


def size(nbytes: float) -> str:
    """For people, in powers of ten: "309 MB"."""
    for unit, factor in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if nbytes >= factor:
            value = nbytes / factor
            return f"{value:.0f} {unit}" if value >= 100 else f"{value:.1f} {unit}"
    return f"{nbytes:.0f} B"
