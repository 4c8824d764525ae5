"""What transfer actors and the coordinator say to each other.

Events go from a member to the coordinator, commands from the coordinator to a member. Each carries the epoch
that its sender believes in; the receiver refuses another one. None carries weight bytes, and a receiver sends
O(1) of them per transfer.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, TypeAdapter

from ray_weights.schemas.base import Frozen
from ray_weights.schemas.keys import ShardKey
from ray_weights.schemas.members import Holding, Loading, MemberInfo, ReceiveStats, Receiving, Seal

LossKind = Literal["dead", "unreachable", "stalled", "starved", "corrupt", "stale"]


class _Event(Frozen):
    epoch: int
    member: str


class Join(_Event):
    """A member is there, with everything that it holds, receives and loads. The first event of every epoch."""

    type: Literal["join"] = "join"
    info: MemberInfo
    holdings: tuple[Holding, ...] = ()
    receiving: tuple[Receiving, ...] = ()
    loading: tuple[Loading, ...] = ()


class Open(_Event):
    """A member wants a shard."""

    type: Literal["open"] = "open"
    shard: ShardKey
    version: int | None = None
    """None: the newest there is, or version 1 when there is none."""
    layout_digest: str = ""
    """"" accepts the layout of the source."""
    may_load: bool = False
    """Whether the member can read storage, and so become the origin."""
    filling: bool = False
    """Whether it loads from storage already: it goes before those that only ask."""
    question: int = 0
    """Counts the member's questions for the newest version: commands say which of them they answer."""


class Sealed(_Event):
    """A member filled a shard from storage, or a caller published it."""

    type: Literal["sealed"] = "sealed"
    shard: ShardKey
    version: int
    seal: Seal
    seconds: float = 0.0
    from_storage: bool = True
    chunking: str = ""
    """Why the chunks have the size that they have."""


class OriginError(_Event):
    """The origin could not load. The next in line is promoted."""

    type: Literal["origin_error"] = "origin_error"
    shard: ShardKey
    version: int
    error: str
    hopeless: bool = False
    """No other member would do better (the model cannot be captured): whoever waits is released at once."""


class Measured(_Event):
    """How fast a receiver reads from one upstream while it has something to read. Once per upstream."""

    type: Literal["measured"] = "measured"
    shard: ShardKey
    version: int
    upstream: str
    rate: float
    """Bytes per second."""


class Completed(_Event):
    """Every chunk is there and verified: the member is now a complete source."""

    type: Literal["completed"] = "completed"
    shard: ShardKey
    version: int
    stats: ReceiveStats


class UpstreamLost(_Event):
    """A receiver cannot go on with one of its upstreams and wants another."""

    type: Literal["upstream_lost"] = "upstream_lost"
    shard: ShardKey
    version: int
    upstream: str
    kind: LossKind
    detail: str = ""
    chunks_verified: int = 0


class GaveUp(_Event):
    """A receiver or waiter ends without the weights."""

    type: Literal["gave_up"] = "gave_up"
    shard: ShardKey
    version: int | None = None
    reason: str
    read_storage: bool = False
    """Whether it reads storage itself now, outside the single flight."""
    leaves: bool = True
    """False where others on the same member still want it: then it is for the record only."""


class Dropped(_Event):
    """A member freed a shard."""

    type: Literal["dropped"] = "dropped"
    shard: ShardKey
    version: int


class Reverified(_Event):
    """A quarantined member read its own arena again and compared every digest."""

    type: Literal["reverified"] = "reverified"
    shard: ShardKey
    version: int
    bad_chunks: int


Event = Annotated[
    Join | Open | Sealed | OriginError | Measured | Completed | UpstreamLost | GaveUp | Dropped | Reverified,
    Field(discriminator="type"),
]


class _Command(Frozen):
    epoch: int
    shard: ShardKey
    question: int = 0
    """The last Open.question without a version that this version is the answer to."""


class BecomeOrigin(_Command):
    """Load from storage, seal, and be a source."""

    type: Literal["become_origin"] = "become_origin"
    version: int
    reason: str
    expected_rate: float = 0.0
    """Bytes per second, the median of what members have been seen to do; 0 when nothing was measured."""
    chunk_nbytes: int | None = None
    """Size of a chunk where this version was sealed before: cut otherwise, equal bytes would have another digest."""


class Wait(_Command):
    """Someone else is loading this shard; another command follows."""

    type: Literal["wait"] = "wait"
    version: int
    reason: str
    expected_rate: float = 0.0
    """As in BecomeOrigin."""


class Receive(_Command):
    """Read the shard from these members. Sent again with other upstreams to re-parent."""

    type: Literal["receive"] = "receive"
    version: int
    seal: Seal
    upstreams: tuple[str, ...]
    """One member per stripe."""
    addresses: tuple[tuple[str, str], ...]
    """(member, actor name) of each upstream."""
    expected_rate: float = 0.0
    """Bytes per second that others of this version get; 0 when unknown."""
    reason: str


class Accepted(_Command):
    """What was sealed is registered; or, after Open, the version asked for is one that the member has said it holds."""

    type: Literal["accepted"] = "accepted"
    version: int
    sealed: bool
    """Which of the two."""


class Refuse(_Command):
    """The request cannot be met; the error type is one of ray_weights.errors."""

    type: Literal["refuse"] = "refuse"
    version: int | None = None
    error: str
    message: str
    source: tuple[str, str] | None = None
    """(member, actor name) of a source that knows more, for example which tensor differs."""


class Reverify(_Command):
    """Someone got a bad chunk from here: check every chunk of the own arena."""

    type: Literal["reverify"] = "reverify"
    version: int


Command = Annotated[
    BecomeOrigin | Wait | Receive | Accepted | Refuse | Reverify,
    Field(discriminator="type"),
]

EVENT: TypeAdapter[Event] = TypeAdapter(Event)
COMMAND: TypeAdapter[Command] = TypeAdapter(Command)
