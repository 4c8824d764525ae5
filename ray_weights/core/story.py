"""What happened to each replica, in order: the material of `explain`. Bounded, the oldest goes first."""

from __future__ import annotations

from collections import deque

from ray_weights.schemas.keys import ShardKey
from ray_weights.schemas.status import StoryLine


class Story:
    """The last lines of each shard, of those shards that something has happened to last."""

    def __init__(self, lines_per_shard: int, shards: int) -> None:
        self._limit = lines_per_shard
        self._shards = shards
        self._lines: dict[ShardKey, deque[StoryLine]] = {}

    def add(self, at: float, shard: ShardKey, version: int | None, member: str, node: str, what: str) -> None:
        lines = self._lines.pop(shard, None) or deque(maxlen=self._limit)
        self._lines[shard] = lines  # the last one now
        if len(self._lines) > self._shards:
            del self._lines[next(iter(self._lines))]
        lines.append(StoryLine(at=at, shard=shard, version=version, member=member, node=node, what=what))

    def of(self, shard: ShardKey) -> tuple[StoryLine, ...]:
        return tuple(self._lines.get(shard, ()))

    def shards(self) -> tuple[ShardKey, ...]:
        return tuple(self._lines)
