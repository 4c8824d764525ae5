"""Transfer actors as the coordinator knows them, and what they hold."""

from __future__ import annotations

from pydantic import Field

from ray_weights.schemas.base import Frozen
from ray_weights.schemas.keys import ShardKey


class MemberInfo(Frozen):
    """One incarnation of one transfer actor."""

    member: str
    """Unique for each start of the actor: messages of an earlier incarnation are refused."""
    actor_name: str
    node_id: str
    node_name: str
    """Address of the node, for people."""
    device: str
    """"cpu" or "cuda:<uuid>"."""
    labels: tuple[tuple[str, str], ...] = ()
    """Locality labels from outermost to innermost, for example (("rack", "r1"),)."""
    pid: int = 0


class Seal(Frozen):
    """What a complete shard is: enough to tell whether two copies are the same, without any byte of them."""

    layout_digest: str
    manifest_digest: str
    nbytes: int = Field(ge=0)
    chunk_nbytes: int = Field(gt=0)
    chunks: int = Field(ge=0)


class Holding(Frozen):
    """A complete, verified shard in a member's arena; what a member reports when it joins."""

    shard: ShardKey
    version: int
    seal: Seal
    rate: float = 0.0
    """Bytes per second at which it was received; 0 when it came from storage."""


class Receiving(Frozen):
    """A transfer under way; what a member reports when it joins a restarted coordinator."""

    shard: ShardKey
    version: int
    seal: Seal
    upstreams: tuple[str, ...]
    """Member read from, one per stripe."""
    may_load: bool = True
    """Whether the member can read storage, should every source be lost."""


class Loading(Frozen):
    """An arena that a member's engine fills from storage; what a member reports when it joins."""

    shard: ShardKey
    version: int
    layout_digest: str


class ReceiveStats(Frozen):
    """Measured by a receiver over one transfer."""

    nbytes: int
    seconds: float
    first_chunk_seconds: float = 0.0
    """Until the first chunk was there and verified: connecting, and the upstream's own first chunk."""
    read_again_nbytes: int = 0
    """Bytes read a second time because of a fault."""
    chunks_from_receivers: int = 0
    """Chunks read from members that were themselves still receiving: pipelining at work."""
    upstream_nbytes: tuple[tuple[str, int], ...] = ()
    """Verified bytes by member read from."""

    @property
    def rate(self) -> float:
        """Bytes per second."""
        return self.nbytes / self.seconds if self.seconds > 0 else 0.0
