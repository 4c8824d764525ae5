"""How much memory this process may still take: asked before an arena is made, so that nothing is killed for
it.

Two limits count, the smaller decides: what the machine has (MemAvailable) and what the control group of
this process and each group around it allow. Page cache that can be dropped is not counted as used.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from ray_weights.errors import ArenaTooLarge

_V1_UNLIMITED = 1 << 60
"""cgroup v1 writes "no limit" as a huge page-aligned number."""


@dataclass(frozen=True, slots=True)
class Headroom:
    available_bytes: int
    limit_bytes: int
    source: str
    """The file that set the limit."""


@dataclass(frozen=True, slots=True)
class GroupTexts:
    """The files of one control group as read."""

    source: str
    limit: str
    usage: str
    stat: str


def memory_headroom(root: Path = Path("/")) -> Headroom:
    """Read the limits of this process. `root` is where /proc and /sys are found."""
    meminfo = (root / "proc/meminfo").read_text()
    return headroom_from(meminfo, _read_groups(root))


def headroom_from(meminfo: str, groups: Iterable[GroupTexts]) -> Headroom:
    """The tightest of the machine's memory and the groups' limits."""
    fields = _fields(meminfo)
    found = [Headroom(fields["MemAvailable:"] * 1024, fields["MemTotal:"] * 1024, "/proc/meminfo")]
    for group in groups:
        limit = group.limit.strip()
        if limit == "max" or int(limit) >= _V1_UNLIMITED:
            continue
        stat = _fields(group.stat)
        droppable = stat.get("total_inactive_file", stat.get("inactive_file", 0))
        used = max(int(group.usage) - droppable, 0)
        found.append(Headroom(max(int(limit) - used, 0), int(limit), group.source))
    return min(found, key=lambda headroom: headroom.available_bytes)


def check_fits(nbytes: int, headroom: Headroom | None = None) -> None:
    """Raise ArenaTooLarge unless `nbytes` more fit. Reads this process's limits when no headroom is given."""
    room = headroom or memory_headroom()
    if nbytes > room.available_bytes:
        raise ArenaTooLarge(
            f"an arena needs {nbytes:,} bytes but only {room.available_bytes:,} are available "
            f"(limit {room.limit_bytes:,} bytes, from {room.source}): give the node or container "
            "more memory, or free some"
        )


def _read_groups(root: Path) -> list[GroupTexts]:
    """The memory groups of this process from its own up to the top, v1 or v2."""
    try:
        lines = (root / "proc/self/cgroup").read_text().splitlines()
    except OSError:
        return []
    groups: list[GroupTexts] = []
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers == "":
            mount, limit, usage = root / "sys/fs/cgroup", "memory.max", "memory.current"
        elif "memory" in controllers.split(","):
            mount, limit, usage = (
                root / "sys/fs/cgroup/memory",
                "memory.limit_in_bytes",
                "memory.usage_in_bytes",
            )
        else:
            continue
        own = mount / path.strip("/")
        # A container often sees its own group as the top, under a path that only exists outside: go up to
        # the top.
        for group in [own, *own.parents]:
            try:
                source = group / limit
                groups.append(
                    GroupTexts(
                        str(source),
                        source.read_text(),
                        (group / usage).read_text(),
                        (group / "memory.stat").read_text(),
                    )
                )
            except OSError:
                pass  # the top group has no limit file, and the path may not exist in here
            if group == mount:
                break
    return groups


def _fields(text: str) -> dict[str, int]:
    """`name value [unit]` per line."""
    return {words[0]: int(words[1]) for words in map(str.split, text.splitlines()) if len(words) >= 2}
