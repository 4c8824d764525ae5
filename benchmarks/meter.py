"""What a case costs beside time: bytes on the links, CPU of the machine and of single processes."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import psutil

from benchmarks.network import LinkBytes, Network


@dataclass(frozen=True, slots=True)
class Used:
    """Between two looks at the meter."""

    seconds: float
    cpu_busy: float
    """Share of all cores."""
    links: dict[str, LinkBytes]
    cpu_seconds: dict[str, float]
    """By the names given for the processes; those that ended meanwhile are missing."""
    thread_seconds: dict[str, dict[str, float]]
    """The same by the names of their threads; "" for threads that ended meanwhile."""


class Meter:
    """Starts when it is made."""

    def __init__(self, network: Network | None, processes: Mapping[str, int]) -> None:
        """`processes`: name -> process id."""
        self._network = network
        self._processes = dict(processes)
        self._links = network.counters() if network else {}
        self._cpu = {name: _cpu_seconds(pid) for name, pid in self._processes.items()}
        self._threads = {name: _thread_seconds(pid) for name, pid in self._processes.items()}
        self._busy, self._all = _machine_ticks()
        self._at = time.monotonic()

    def read(self) -> Used:
        now = time.monotonic()
        busy, whole = _machine_ticks()
        links = self._network.counters() if self._network else {}
        cpu: dict[str, float] = {}
        threads: dict[str, dict[str, float]] = {}
        for name, pid in self._processes.items():
            before, after = self._cpu[name], _cpu_seconds(pid)
            if before is not None and after is not None:
                cpu[name] = after - before
                threads[name] = _since(self._threads[name], _thread_seconds(pid), cpu[name])
        return Used(
            seconds=now - self._at,
            cpu_busy=(busy - self._busy) / max(1, whole - self._all),
            links={
                name: LinkBytes(at.sent - self._links[name].sent, at.received - self._links[name].received)
                for name, at in links.items()
            },
            cpu_seconds=cpu,
            thread_seconds=threads,
        )


def _cpu_seconds(pid: int) -> float | None:
    try:
        times = psutil.Process(pid).cpu_times()
    except psutil.NoSuchProcess:
        return None
    return times.user + times.system


def _thread_seconds(pid: int) -> dict[int, tuple[str, float]]:
    """CPU seconds of each thread by its id, with its name."""
    found = {}
    with contextlib.suppress(psutil.NoSuchProcess):
        for thread in psutil.Process(pid).threads():
            with contextlib.suppress(OSError):  # ended just now
                name = Path(f"/proc/{pid}/task/{thread.id}/comm").read_text().strip()
                found[thread.id] = (name, thread.user_time + thread.system_time)
    return found


def _since(before: dict[int, tuple[str, float]], after: dict[int, tuple[str, float]], whole: float) -> dict[str, float]:
    by_name: dict[str, float] = {}
    for thread, (name, seconds) in after.items():
        by_name[name] = by_name.get(name, 0.0) + seconds - before.get(thread, ("", 0.0))[1]
    by_name[""] = max(0.0, whole - sum(by_name.values()))
    return by_name


def _machine_ticks() -> tuple[int, int]:
    """(busy, all) ticks of all cores since boot."""
    user, nice, system, idle, iowait, irq, softirq, steal = (
        int(n) for n in Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:9]
    )
    busy = user + nice + system + irq + softirq + steal
    return busy, busy + idle + iowait
