"""Finds and ends the processes of one run, and only those.

A process belongs to a run when its environment carries the run's mark, when it is in a session that the run started,
or when it descends from such a process. One sign alone misses some: processes that set their own title (Ray's workers,
vLLM's engines) overwrite the environment that /proc shows, and Ray gives a job's entrypoint a session of its own.
"""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

MARK = "RAY_WEIGHTS_LOCAL_CLUSTER"
"""Environment variable whose value is the run that a process belongs to."""


@dataclass(frozen=True, slots=True)
class Process:
    """One incarnation of a process id: ids are used again, the pair of id and start time is not."""

    pid: int
    started_ticks: int
    parent: int
    session: int
    command: str

    def same_as(self, other: Process) -> bool:
        return (self.pid, self.started_ticks) == (other.pid, other.started_ticks)


def processes_of_run(run: str, sessions: Iterable[int], known: Iterable[Process] = ()) -> list[Process]:
    """Every living process of the run. `known` are earlier finds, still members though they lost their parent."""
    ours = set(sessions)
    earlier = {(process.pid, process.started_ticks) for process in known}
    alive = {process.pid: process for process in _all_processes()}
    members = {
        pid
        for pid, process in alive.items()
        if process.session in ours or (pid, process.started_ticks) in earlier or _environment_has(pid, run)
    }
    growing = True
    while growing:
        children = {pid for pid, process in alive.items() if process.parent in members} - members
        members |= children
        growing = bool(children)
    members.discard(os.getpid())
    return sorted((alive[pid] for pid in members), key=lambda process: process.started_ticks)


def send(process: Process, signal_number: signal.Signals) -> None:
    """Signals this incarnation of the process, or nobody."""
    with suppress(ProcessLookupError):
        handle = os.pidfd_open(process.pid)
        try:
            now = _read(process.pid)
            if now is not None and now.same_as(process):
                signal.pidfd_send_signal(handle, signal_number)
        finally:
            os.close(handle)


def shared_memory_of(processes: Iterable[Process]) -> set[Path]:
    """The files in /dev/shm that these processes have mapped.

    Compared by inode, not by name: glibc maps a semaphore under a temporary name before it gets its own.
    """
    names = {}
    for entry in os.scandir("/dev/shm"):
        names[str(entry.inode())] = Path(entry.path)
    found = set()
    for process in processes:
        with suppress(OSError):
            for line in Path(f"/proc/{process.pid}/maps").read_text().splitlines():
                if "/dev/shm/" in line:
                    inode = line.split(maxsplit=5)[4]
                    if inode in names:
                        found.add(names[inode])
    return found


def run_to_completion(
    command: Sequence[str], *, env: Mapping[str, str], timeout_s: float, cwd: Path | None = None
) -> str:
    """Runs a command in a session of its own and returns what it printed.

    Interrupted, or not done in time, it is killed together with its children.
    """
    process = subprocess.Popen(
        command,
        cwd=cwd,
        env=dict(env),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    try:
        printed, _ = process.communicate(timeout=timeout_s)
    except BaseException as error:
        # Before wait(): until it is reaped, nothing else can get this process group's id.
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        if isinstance(error, subprocess.TimeoutExpired):
            raise TimeoutError(f"{' '.join(command)} was not done after {timeout_s:.0f} s") from error
        raise
    if process.returncode != 0:
        raise RuntimeError(f"{' '.join(command)} failed with exit status {process.returncode}:\n{printed[-4000:]}")
    return printed


def wait_until_gone(run: str, sessions: Sequence[int], known: list[Process], timeout_s: float) -> list[Process]:
    """Waits for the run's processes to end; returns those still alive at the deadline."""
    deadline = time.monotonic() + timeout_s
    while remaining := processes_of_run(run, sessions, known):
        if time.monotonic() >= deadline:
            break
        time.sleep(0.1)
    return remaining


def _all_processes() -> list[Process]:
    found = (_read(int(entry)) for entry in os.listdir("/proc") if entry.isdigit())
    return [process for process in found if process is not None]


def _read(pid: int) -> Process | None:
    """None where the process is gone, or dead and only waiting for its parent to notice."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
        command = Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()
    except OSError:
        return None
    # The second field is a name in parentheses that may hold anything, also parentheses and spaces.
    state, parent, _group, session, *rest = stat.rpartition(")")[2].split()
    if state in "ZX":
        return None
    return Process(pid=pid, parent=int(parent), session=int(session), started_ticks=int(rest[15]), command=command)


def _environment_has(pid: int, run: str) -> bool:
    try:
        return f"{MARK}={run}".encode() in Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
    except OSError:
        return False
