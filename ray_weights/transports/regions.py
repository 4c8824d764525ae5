"""Checks that every transport makes before it touches memory."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from ray_weights.memory.arena import Region


def check_pairs(local: Sequence[Region], remote: Sequence[Region]) -> None:
    """ValueError unless both sides have equally many regions, at least one, of equal sizes and one kind
    each.
    """
    if len(local) != len(remote) or not local:
        raise ValueError(f"{len(local)} local regions for {len(remote)} remote ones")
    for index, (mine, theirs) in enumerate(zip(local, remote, strict=True)):
        if mine.nbytes != theirs.nbytes or mine.nbytes == 0:
            raise ValueError(f"pair {index}: {mine.nbytes} local bytes for {theirs.nbytes} remote ones")
        if mine.kind != local[0].kind or theirs.kind != remote[0].kind:
            raise ValueError(f"pair {index} is of another kind of memory than pair 0: prepare them apart")


def first_uncovered(parts: Sequence[Region], regions: Iterable[Region]) -> int | None:
    """The index of the first part that lies in none of the regions, None when all are covered."""
    candidates = list(regions)
    latest = candidates[0] if candidates else None
    for index, part in enumerate(parts):
        # Neighbours usually lie in one region: try the last one that fitted first.
        if latest is not None and covers(latest, part):
            continue
        latest = next((region for region in candidates if covers(region, part)), None)
        if latest is None:
            return index
    return None


def covers(region: Region, part: Region) -> bool:
    return (
        region.address <= part.address
        and part.address + part.nbytes <= region.address + region.nbytes
        and region.device_index == part.device_index
        and region.kind == part.kind
    )


def overlap(one: Region, other: Region) -> bool:
    return (
        one.address < other.address + other.nbytes
        and other.address < one.address + one.nbytes
        and one.device_index == other.device_index
        and one.kind == other.kind
    )
