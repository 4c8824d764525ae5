"""What the doctor says."""

from __future__ import annotations

from typing import Literal

from ray_weights.schemas.base import Frozen

Level = Literal["ok", "warning", "problem"]


class Finding(Frozen):
    """One thing looked at: how it is, and what to do about it."""

    area: str
    """For example "nixl", "memory", "ray"."""
    level: Level
    found: str
    advice: str = ""
    """What to do; "" where nothing needs to be done."""


class Report(Frozen):
    """Answer to `doctor`."""

    findings: tuple[Finding, ...]

    def count(self, level: Level) -> int:
        return sum(f.level == level for f in self.findings)


def ok(area: str, found: str) -> Finding:
    return Finding(area=area, level="ok", found=found)


def warning(area: str, found: str, advice: str) -> Finding:
    return Finding(area=area, level="warning", found=found, advice=advice)


def problem(area: str, found: str, advice: str) -> Finding:
    return Finding(area=area, level="problem", found=found, advice=advice)
