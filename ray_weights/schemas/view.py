"""What `ray-weights status` and `explain` show, and print with --json."""

from __future__ import annotations

from ray_weights.schemas.base import Frozen
from ray_weights.schemas.keys import ModelKey, ShardKey
from ray_weights.schemas.status import CoordinatorStatus, ReplicaStatus, StoryLine, TransferProgress, VersionStatus


class ActorView(Frozen):
    """What one transfer actor says of itself."""

    actor_name: str
    problem: str = ""
    """Why it did not answer; "" when it did."""
    progress: tuple[TransferProgress, ...] = ()
    """Every shard in it."""


class ClusterView(Frozen):
    """The coordinator's record and what the transfer actors said at about the same time."""

    taken_at: float
    """Seconds since the epoch of the clock (time.time())."""
    coordinator: CoordinatorStatus | None
    coordinator_problem: str = ""
    """Why there is no record; "" when there is one."""
    actors: tuple[ActorView, ...]


class ReplicaStory(Frozen):
    """Everything that happened to one member with one version of one shard."""

    member: str
    node: str
    version: int | None
    status: ReplicaStatus | None
    """As it is now; None when the member no longer has it."""
    lines: tuple[StoryLine, ...]


class ShardExplanation(Frozen):
    shard: ShardKey
    versions: tuple[VersionStatus, ...]
    """Those that somebody holds, loads or receives now."""
    replicas: tuple[ReplicaStory, ...]
    """In the order in which they asked."""


class KeyDifference(Frozen):
    """Why two keys of what seems to be one model do not share weights."""

    first: ModelKey
    second: ModelKey
    fields: tuple[str, ...]
    difference: str


class Explanation(Frozen):
    """Answer to `explain`."""

    query: str
    shards: tuple[ShardExplanation, ...]
    differences: tuple[KeyDifference, ...]
