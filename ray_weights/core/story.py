"""What happened to each replica, in order: the material of `explain`. Bounded, the oldest goes first."""

from __future__ import annotations

from collections import deque

from ray_weights.schemas.keys import ShardKey
from ray_weights.schemas.status import StoryLine


class Story:
    """The last lines of each shard."""

    def __init__(self, lines_per_shard: int) -> None:
        self._limit = lines_per_shard
        self._lines: dict[ShardKey, deque[StoryLine]] = {}

    def add(self, at: float, shard: ShardKey, version: int | None, member: str, node: str, what: str) -> None:
        lines = self._lines.setdefault(shard, deque(maxlen=self._limit))
        lines.append(StoryLine(at=at, shard=shard, version=version, member=member, node=node, what=what))

    def of(self, shard: ShardKey) -> tuple[StoryLine, ...]:
        return tuple(self._lines.get(shard, ()))

    def forget(self, shard: ShardKey) -> None:
        self._lines.pop(shard, None)

    def shards(self) -> tuple[ShardKey, ...]:
        return tuple(self._lines)
