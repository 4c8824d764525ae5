"""Draws the doctor's report."""

from __future__ import annotations

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from ray_weights.cli import units
from ray_weights.doctor.findings import Level, Report

_MARK: dict[Level, tuple[str, str]] = {
    "ok": ("✓ ok", "green"),
    "warning": ("! warning", "yellow"),
    "problem": ("✗ problem", "bold red"),
}


def render_report(report: Report) -> RenderableType:
    """One line per finding, what to do below it, and the count."""
    table = Table.grid(padding=(0, 2))
    table.add_column(no_wrap=True)
    table.add_column(no_wrap=True, style="bold")
    table.add_column()
    for f in report.findings:
        mark, style = _MARK[f.level]
        told = Text(f.found)
        if f.advice:
            told.append(f"\n→ {f.advice}", style="cyan")
        table.add_row(Text(mark, style=style), f.area, told)
    problems, warnings = report.count("problem"), report.count("warning")
    end = f"{units.counted(problems, 'problem')}, {units.counted(warnings, 'warning')}"
    return Group(table, Text(end, style="bold red" if problems else "bold"))
