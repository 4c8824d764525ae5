"""What `status` and `explain` show."""

from __future__ import annotations

from typing import Literal

from ray_weights.schemas.base import Frozen
from ray_weights.schemas.keys import ShardKey
from ray_weights.schemas.members import MemberInfo, ReceiveStats, Seal

ReplicaState = Literal["loading", "waiting", "receiving", "ready", "quarantined"]


class StoryLine(Frozen):
    """One thing that happened to a replica, in the words that `explain` prints."""

    at: float
    """Seconds since the epoch of the clock (time.time())."""
    shard: ShardKey
    version: int | None
    member: str
    node: str
    what: str


class ReplicaStatus(Frozen):
    """One member's copy of one shard version."""

    member: str
    node: str
    state: ReplicaState
    upstreams: tuple[str, ...] = ()
    """Member read from per stripe, now or when it was received; empty for one that came from storage."""
    depth: int = 0
    from_storage: bool = False
    stats: ReceiveStats | None = None
    reason: str = ""


class VersionStatus(Frozen):
    version: int
    seal: Seal | None
    storage_reads: int
    """How often storage was read for this version, inside and outside the single flight."""
    replicas: tuple[ReplicaStatus, ...]


class ShardStatus(Frozen):
    shard: ShardKey
    versions: tuple[VersionStatus, ...]


class CoordinatorStatus(Frozen):
    epoch: int
    started_at: float
    calls: int
    members: tuple[MemberInfo, ...]
    shards: tuple[ShardStatus, ...]


class TransferProgress(Frozen):
    """Progress of one shard in one transfer actor; read from the actor, not from the coordinator."""

    shard: ShardKey
    version: int | None
    state: str
    chunks: int
    chunks_verified: int
    nbytes: int
    nbytes_verified: int
    rate: float
    seconds: float
    upstreams: tuple[str, ...]
    children: tuple[str, ...]
    detail: str = ""
