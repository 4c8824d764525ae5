"""What a new epoch of the coordinator does not know yet: members still to join, transfers whose parents have
not joined."""

from __future__ import annotations

from ray_weights.schemas.keys import ShardKey
from ray_weights.schemas.members import Receiving
from ray_weights.schemas.messages import Open


class Recovery:
    """Holds back what cannot be answered until the members that were known have been heard, or time is up."""

    def __init__(self, expected: frozenset[str], until: float) -> None:
        self.until = until
        self.queued: list[Open] = []
        self._expected = set(expected)
        self._unplaced: dict[tuple[str, ShardKey, int], Receiving] = {}

    def under_way(self, now: float) -> bool:
        return bool(self._expected) and now < self.until

    def pending(self) -> bool:
        return bool(self.queued or self._unplaced)

    def heard(self, actor_name: str) -> None:
        """A member has joined, or will not any more."""
        self._expected.discard(actor_name)

    def queue(self, request: Open) -> None:
        """Keep a request for later; the same one again replaces it."""
        self.queued = [q for q in self.queued if (q.member, q.shard, q.version) != _identity(request)]
        self.queued.append(request)

    def add(self, member: str, receiving: Receiving) -> None:
        self._unplaced[(member, receiving.shard, receiving.version)] = receiving

    def take(self, member: str, shard: ShardKey, version: int) -> Receiving | None:
        return self._unplaced.pop((member, shard, version), None)

    def versions(self) -> list[tuple[ShardKey, int]]:
        """What there are transfers of, in order of joining."""
        return list(dict.fromkeys((shard, version) for _, shard, version in self._unplaced))

    def of(self, shard: ShardKey, version: int) -> list[tuple[str, Receiving]]:
        """Members and their transfers of one version, in order of joining."""
        return [(m, r) for (m, s, v), r in self._unplaced.items() if (s, v) == (shard, version)]

    def forget(self, member: str, shard: ShardKey | None = None, version: int | None = None) -> None:
        """Drop what is kept for a member, all of it or of one shard, one version."""

        def concerned(other: str, its_shard: ShardKey, its_version: int | None) -> bool:
            return other == member and shard in (None, its_shard) and version in (None, its_version)

        self._unplaced = {k: v for k, v in self._unplaced.items() if not concerned(*k)}
        self.queued = [q for q in self.queued if not concerned(*_identity(q))]


def _identity(request: Open) -> tuple[str, ShardKey, int | None]:
    return request.member, request.shard, request.version
