"""What the processes of a cluster are, do and hold."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

import psutil


def is_alive(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def processes_in(directory: Path) -> list[tuple[str, str]]:
    """(command line, state) of the processes of the cluster that writes to this directory, this one apart."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if process.pid != os.getpid() and process.environ().get("RAY_TMPDIR") == str(directory):
                found.append((" ".join(process.cmdline()), process.status()))
    return [(command, state) for command, state in found if state != psutil.STATUS_ZOMBIE]


def arenas_of(node_ids: tuple[str, ...]) -> list[str]:
    """ "pid arena-id size" of every arena of these nodes that some process holds."""
    found = []
    for pid in psutil.pids():
        try:
            links = list(Path(f"/proc/{pid}/fd").iterdir())
        except OSError:
            continue
        for link in links:
            with contextlib.suppress(OSError):
                target = os.readlink(link)
                if any(target.startswith(f"/memfd:ray_weights:{n[:12]}") for n in node_ids):
                    found.append(f"{pid} {target.split(':')[2].split()[0]} {link.stat().st_size}")
    return found
