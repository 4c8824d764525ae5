"""What transfer actors say to each other and to the engines on their node."""

from __future__ import annotations

from pydantic import Field

from ray_weights.schemas.base import Frozen
from ray_weights.schemas.keys import ShardKey


class LeaseRequest(Frozen):
    """A receiver asks for the right to read an arena."""

    reader: str
    reader_actor: str
    lease: str
    """Made up by the reader, so that giving it back works even where the answer was lost."""
    shard: ShardKey
    version: int
    manifest_digest: str


class Lease(Frozen):
    """The right to read an arena until the reader gives it back or dies."""

    arena_id: str
    card: bytes
    """The transport's metadata of the source, with all memory that it has registered."""
    data_address: int
    page_address: int
    device_index: int = 0
    memory_kind: str = Field(pattern="^(DRAM|VRAM)$")


class OpenRequest(Frozen):
    """An engine or a Python caller asks its transfer actor for a shard."""

    shard: ShardKey
    version: int | None = None
    layout: bytes = b""
    """The layout as JSON; empty to accept the source's."""
    may_load: bool = False
    timeout: float = Field(gt=0)
    """Seconds."""
    pid: int = Field(gt=0)
    """Process that asks: should it die while it fills the arena, the next in line loads."""


class Opened(Frozen):
    """The answer: an arena to fill, or one that is complete."""

    outcome: str = Field(pattern="^(load|arrived)$")
    version: int
    handle: bytes
    """An ArenaHandle as JSON."""
    manifest: bytes = b""
    reason: str
    stats: bytes = b""
    """ReceiveStats as JSON; empty where nothing was moved."""


class SealRequest(Frozen):
    """The arena is filled: compute its digests and offer it."""

    shard: ShardKey
    version: int
    arena_id: str
    """The one that was filled: another process of this device may be filling one for the same version."""
    attributes: tuple[tuple[str, str], ...] = ()
    seconds: float = 0.0
    from_storage: bool = True
