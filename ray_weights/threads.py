"""Names for threads as the kernel knows them: `top -H -p PID` then tells which part of a transfer actor is busy."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

_TASKS = Path("/proc/self/task")


def name_this_thread(name: str) -> None:
    """At most 15 characters count."""
    with contextlib.suppress(OSError):
        (Path("/proc/thread-self/comm")).write_text(name[:15])


@contextlib.contextmanager
def naming(name: str) -> Iterator[None]:
    """Name the threads of this process that come into being meanwhile, for libraries that do not name theirs."""
    before = {task.name for task in _TASKS.iterdir()}
    yield
    for task in _TASKS.iterdir():
        if task.name not in before:
            with contextlib.suppress(OSError):
                (task / "comm").write_text(name[:15])
