"""What a case costs beside time: bytes on the links, CPU of the machine and of single processes."""

from __future__ import annotations

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


class Meter:
    """Starts when it is made."""

    def __init__(self, network: Network | None, processes: Mapping[str, int]) -> None:
        """`processes`: name -> process id."""
        self._network = network
        self._processes = dict(processes)
        self._links = network.counters() if network else {}
        self._cpu = {name: _cpu_seconds(pid) for name, pid in self._processes.items()}
        self._busy, self._all = _machine_ticks()
        self._at = time.monotonic()

    def read(self) -> Used:
        now = time.monotonic()
        busy, whole = _machine_ticks()
        links = self._network.counters() if self._network else {}
        cpu = {}
        for name, pid in self._processes.items():
            before, after = self._cpu[name], _cpu_seconds(pid)
            if before is not None and after is not None:
                cpu[name] = after - before
        return Used(
            seconds=now - self._at,
            cpu_busy=(busy - self._busy) / max(1, whole - self._all),
            links={
                name: LinkBytes(at.sent - self._links[name].sent, at.received - self._links[name].received)
                for name, at in links.items()
            },
            cpu_seconds=cpu,
        )


def _cpu_seconds(pid: int) -> float | None:
    try:
        times = psutil.Process(pid).cpu_times()
    except psutil.NoSuchProcess:
        return None
    return times.user + times.system


def _machine_ticks() -> tuple[int, int]:
    """(busy, all) ticks of all cores since boot."""
    user, nice, system, idle, iowait, irq, softirq, steal = (
        int(n) for n in Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:9]
    )
    busy = user + nice + system + irq + softirq + steal
    return busy, busy + idle + iowait
