"""Every version of every shard that the registry knows of."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from ray_weights.core.record import VersionRecord
from ray_weights.errors import LimitReached
from ray_weights.schemas.keys import ShardKey
from ray_weights.schemas.members import Seal


class Records:
    """Bounded: a shard is forgotten when nobody has or wants it, a version of one that lives on later."""

    def __init__(self, max_shards: int, max_dead_versions: int) -> None:
        """`max_dead_versions`: per shard, how many that nobody holds keep their seal."""
        self._max_shards = max_shards
        self._max_dead_versions = max_dead_versions
        self._records: dict[ShardKey, dict[int, VersionRecord]] = {}

    def __iter__(self) -> Iterator[VersionRecord]:
        """Safe against changes meanwhile."""
        return iter([r for versions in self._records.values() for r in versions.values()])

    def shards(self) -> tuple[ShardKey, ...]:
        return tuple(self._records)

    def versions(self, shard: ShardKey) -> Mapping[int, VersionRecord]:
        return dict(self._records.get(shard, {}))

    def known(self, shard: ShardKey, version: int) -> VersionRecord | None:
        return self._records.get(shard, {}).get(version)

    def made(self, shard: ShardKey, version: int) -> VersionRecord:
        """The record of a version, a new one if need be. Raises LimitReached."""
        self.check_room({shard})
        return self._records.setdefault(shard, {}).setdefault(version, VersionRecord(shard, version))

    def check_room(self, shards: set[ShardKey]) -> None:
        """Raises LimitReached if these, as far as they are new, are too many."""
        new = sum(1 for shard in shards if shard not in self._records)
        if new and len(self._records) + new > self._max_shards:
            raise LimitReached(f"{len(self._records)} shards are known; max_shards is the limit")

    def prune(self, record: VersionRecord) -> None:
        """Forget a version that nobody has or wants, but for its seal, which guards against a reused number."""
        if record.alive():
            return
        versions = self._records.get(record.shard, {})
        dead = [v for v, r in versions.items() if not r.alive()]
        if len(dead) == len(versions):
            self._records.pop(record.shard, None)
            return
        for version in sorted(dead)[: -self._max_dead_versions]:
            del versions[version]


def differs(record: VersionRecord, seal: Seal) -> bool:
    """Whether a version is known with other bytes."""
    return record.seal is not None and record.seal.manifest_digest != seal.manifest_digest


def conflict(record: VersionRecord) -> str:
    """What to say then."""
    return (
        f"{record.shard} v{record.version} exists with other bytes (manifest "
        f"{record.seal.manifest_digest[:12] if record.seal else '?'}); publish under another version number"
    )
