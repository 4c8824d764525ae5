"""What the demo shows while it runs: one line per phase, with its time, and bars while weights arrive."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.spinner import Spinner
from rich.table import Table
from rich.tree import Tree

from demo_support.weights import Copy, Report

MB = 1e6


@dataclass(slots=True)
class Phase:
    """A phase under way; the demo tells it what is happening."""

    title: str
    console: Console
    started: float = field(default_factory=time.monotonic)
    detail: str = ""
    copies: Sequence[Copy] = ()

    def say(self, detail: str, copies: Sequence[Copy] = ()) -> None:
        # A file or a pipe gets no live display: it gets a line whenever something has changed.
        if detail and detail != self.detail and not self.console.is_terminal:
            self.console.print(f"    {self.seconds:5.1f} s  {detail}", highlight=False)
        self.detail = detail
        self.copies = copies

    @property
    def seconds(self) -> float:
        return time.monotonic() - self.started

    def __rich__(self) -> RenderableType:
        line = Spinner("dots", f"{self.title}  [dim]{self.seconds:.0f} s  {self.detail}[/dim]")
        return Group(line, _bars(self.copies)) if self.copies else line


@dataclass(slots=True)
class Screen:
    console: Console
    seconds: dict[str, float] = field(default_factory=dict)
    """How long each finished phase took, by its title."""

    @contextmanager
    def phase(self, title: str) -> Iterator[Phase]:
        phase = Phase(title, self.console)
        # auto_refresh asks the phase again, so the seconds go on while the demo waits in a single call.
        with Live(phase, console=self.console, refresh_per_second=4, transient=True):
            yield phase
        self.seconds[title] = round(phase.seconds, 1)
        self.console.print(f"[green]✓[/green] {title}  [dim]{phase.seconds:.1f} s[/dim]", highlight=False)

    def tree(self, report: Report) -> None:
        """The way that the weights took."""
        for shard in sorted({copy.shard for copy in report.copies}):
            copies = [copy for copy in report.copies if copy.shard == shard]
            title = f"storage, read {report.storage_reads} time(s)" + (f"  (rank {shard})" if shard else "")
            root = Tree(title)
            branches = {"storage": root}
            waiting = copies
            while waiting:
                placed = [copy for copy in waiting if copy.source in branches]
                for copy in placed:
                    branches[copy.node] = branches[copy.source].add(_label(copy))
                if not placed:  # several sources at once, or one that is gone
                    for copy in waiting:
                        root.add(f"{_label(copy)}  from {copy.source}")
                    break
                waiting = [copy for copy in waiting if copy not in placed]
            self.console.print(root, highlight=False)


def _label(copy: Copy) -> str:
    label = f"{copy.node}  {copy.nbytes / MB:.0f} MB"
    if copy.source == "storage":
        return label
    label += f" in {copy.seconds:.2f} s, {copy.rate / MB:.0f} MB/s"
    if copy.chunks_from_receivers:
        label += f", {copy.chunks_from_receivers} chunks read from a replica that was still receiving"
    return label


def _bars(copies: Sequence[Copy]) -> Table:
    table = Table.grid(padding=(0, 2))
    for copy in copies:
        table.add_row(
            f"    {copy.node}",
            copy.shard,
            ProgressBar(total=max(copy.nbytes, 1), completed=copy.nbytes_verified, width=32),
            f"{copy.nbytes_verified / MB:.0f}/{copy.nbytes / MB:.0f} MB",
            f"{copy.rate / MB:.0f} MB/s" if copy.rate else "",
            f"{copy.state}, from {copy.source}",
        )
    return table
