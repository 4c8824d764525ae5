"""Leases that a transfer actor has granted (others read its arenas) and holds (it reads others')."""

from __future__ import annotations

import time
from dataclasses import dataclass

from ray_weights.errors import LimitReached


@dataclass(frozen=True, slots=True)
class Granted:
    """The right of a reader to one arena."""

    lease: str
    reader: str
    reader_actor: str
    arena_id: str
    since: float


class LeaseBook:
    """A lease ends by the reader's word or its death, never by the clock: until then its arena must stay."""

    def __init__(self, limit: int = 4096) -> None:
        self._limit = limit
        self._granted: dict[str, Granted] = {}
        self._held: set[str] = set()

    def grant(self, lease: str, reader: str, reader_actor: str, arena_id: str) -> None:
        """Raises LimitReached when too many are out."""
        if len(self._granted) >= self._limit:
            raise LimitReached(f"{self._limit} leases are granted on this transfer actor")
        self._granted[lease] = Granted(lease, reader, reader_actor, arena_id, time.monotonic())

    def end(self, lease: str) -> None:
        self._granted.pop(lease, None)

    def of_arena(self, arena_id: str) -> tuple[Granted, ...]:
        return tuple(g for g in self._granted.values() if g.arena_id == arena_id)

    def older_than(self, seconds: float) -> tuple[Granted, ...]:
        """Granted leases that have lasted this long."""
        now = time.monotonic()
        return tuple(g for g in self._granted.values() if now - g.since >= seconds)

    def counts(self) -> tuple[int, int]:
        """How many are granted and held."""
        return len(self._granted), len(self._held)

    def hold(self, lease: str) -> None:
        self._held.add(lease)

    def give_back(self, lease: str) -> None:
        self._held.discard(lease)

    def holds(self, lease: str) -> bool:
        """Asked by a source that wants to free its arena."""
        return lease in self._held
