"""Keys that a person may have meant."""

from __future__ import annotations

import difflib
from collections.abc import Sequence

from ray_weights.schemas.keys import ShardKey


def closest_keys(wanted: ShardKey, known: Sequence[ShardKey], count: int = 3) -> tuple[ShardKey, ...]:
    """Known keys by likeness: fewest differing fields first, then the likest name."""

    def unlikeness(key: ShardKey) -> tuple[float, int]:
        name = difflib.SequenceMatcher(None, wanted.model.model, key.model.model).ratio()
        return (-round(name, 2), len(wanted.model.differing_fields(key.model)) + (wanted.rank != key.rank))

    return tuple(sorted(known, key=unlikeness)[:count])


def explain_difference(wanted: ShardKey, other: ShardKey) -> str:
    """Which fields keep two keys apart; "" when they are equal."""
    parts = [
        f"{f} is {getattr(wanted.model, f)!r} here and {getattr(other.model, f)!r} there"
        for f in wanted.model.differing_fields(other.model)
    ]
    if wanted.rank != other.rank:
        parts.append(f"rank is {wanted.rank!r} here and {other.rank!r} there")
    return "; ".join(parts)


def unknown_key_message(
    wanted: ShardKey, version: int | None, versions: Sequence[int], closest: Sequence[ShardKey]
) -> str:
    """Say that a key is not known, and what is."""
    if versions:
        return f"{wanted} has no version {version}; there are {', '.join(str(v) for v in sorted(versions))}"
    if not closest:
        return f"nobody has published {wanted}, and no other key is known either"
    lines = "; ".join(f"{k} ({explain_difference(wanted, k)})" for k in closest)
    return f"nobody has published {wanted}. The closest known: {lines}"
