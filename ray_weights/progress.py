"""A progress bar for people, for work that turns out to be long."""

from __future__ import annotations

import time
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TaskID, TextColumn, TransferSpeedColumn

SHOW_AFTER_S = 1.0
"""Nothing is shown for work that ends sooner."""


class ByteBar:
    """Bytes done of a total. A context manager; the bar goes away at the end. Writes to stderr."""

    def __init__(self, title: str, *, shown: bool = True) -> None:
        self._title = title
        self._shown = shown
        self._started = time.monotonic()
        self._bar: Progress | None = None
        self._task: TaskID | None = None
        self._done = 0

    def __enter__(self) -> ByteBar:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.stop()

    def set(self, done: int, total: int, state: str = "") -> None:
        """Bytes done so far; a total of 0 is not known yet."""
        self._done = done
        if not self._shown or time.monotonic() - self._started < SHOW_AFTER_S:
            return
        if self._bar is None:
            self._bar = Progress(
                TextColumn("{task.description}"),
                BarColumn(),
                DownloadColumn(),
                TransferSpeedColumn(),
                console=Console(stderr=True),
                transient=True,
            )
            self._task = self._bar.add_task(self._title)
            self._bar.start()
        assert self._task is not None
        title = f"{self._title} ({state})" if state else self._title
        self._bar.update(self._task, completed=done, total=total or None, description=title)

    def add(self, nbytes: int, total: int) -> None:
        self.set(self._done + nbytes, total)
