"""What `up`, `down` and `drop` did; printed as it is with --json."""

from __future__ import annotations

from ray_weights.config import ServiceSettings
from ray_weights.schemas.base import Frozen
from ray_weights.schemas.keys import ShardKey


class Started(Frozen):
    """Answer to `up`."""

    already_running: bool
    address: str
    epoch: int
    settings: ServiceSettings


class Ended(Frozen):
    """Answer to `down`."""

    coordinator: bool
    """Whether one was running."""
    actors: tuple[str, ...]
    """Names of the transfer actors that were ended."""
    shards: int
    """Shard versions that they held."""
    nbytes: int
    """Bytes of these, as far as the actors still said."""


class DroppedReplica(Frozen):
    shard: ShardKey
    version: int
    member: str
    node: str
    nbytes: int
    problem: str = ""
    """Why it was not freed; "" when it is on its way out."""


class DropResult(Frozen):
    """Answer to `drop`."""

    query: str
    dropped: tuple[DroppedReplica, ...]
    failed: tuple[DroppedReplica, ...]
    """Should have been freed; each says why it was not."""
    busy: tuple[DroppedReplica, ...]
    """Left alone: not complete yet."""
