"""Numbers as people read them."""

from __future__ import annotations


def nbytes(count: float) -> str:
    """Decimal units, as links and disks are sold: 312.4 MB."""
    value = float(count)
    for unit in ("B", "kB", "MB", "GB"):
        if abs(value) < 1000:
            return f"{value:.0f} B" if unit == "B" else f"{value:.1f} {unit}"
        value /= 1000
    return f"{value:.1f} TB"


def rate(bytes_per_second: float) -> str:
    return f"{nbytes(bytes_per_second)}/s"


def seconds(value: float) -> str:
    """1.8 s, 3 min 12 s, 2 h 5 min, 4 d 3 h."""
    if value < 60:
        return f"{value:.1f} s"
    whole = int(value)
    for limit, big, small, names in (
        (3600, 60, 1, ("min", "s")),
        (86400, 3600, 60, ("h", "min")),
    ):
        if whole < limit:
            return f"{whole // big} {names[0]} {whole % big // small} {names[1]}"
    return f"{whole // 86400} d {whole % 86400 // 3600} h"


def times(count: int) -> str:
    """never, once, twice, 3 times."""
    return {0: "never", 1: "once", 2: "twice"}.get(count, f"{count} times")


def counted(count: int, noun: str) -> str:
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"
