"""What a receiver is told, and what it wants done: the words of the machine in receiver.py."""

from __future__ import annotations

from dataclasses import dataclass

from ray_weights.core.page import PageView
from ray_weights.schemas.messages import LossKind

# Events


@dataclass(frozen=True, slots=True)
class Assigned:
    """The coordinator named the upstreams, one per stripe."""

    upstreams: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Connected:
    """The upstream granted a lease; its memory can be read."""

    upstream: str


@dataclass(frozen=True, slots=True)
class LinkFailed:
    """Connecting, reading a page or a chunk failed, or the page says something else than it should."""

    upstream: str
    kind: LossKind
    detail: str


@dataclass(frozen=True, slots=True)
class PageSeen:
    """A progress page was read."""

    upstream: str
    page: PageView


@dataclass(frozen=True, slots=True)
class Arrived:
    """The bytes of a chunk are in the arena, not yet verified."""

    chunk: int
    generation: int


@dataclass(frozen=True, slots=True)
class ReadFailed:
    """A read ended with an error: nothing will be written any more."""

    chunk: int
    generation: int
    detail: str


@dataclass(frozen=True, slots=True)
class Verified:
    """The digest of a chunk is the manifest's."""

    chunk: int
    generation: int


@dataclass(frozen=True, slots=True)
class Corrupt:
    """The digest of a chunk is not the manifest's."""

    chunk: int
    generation: int


@dataclass(frozen=True, slots=True)
class Relocated:
    """Verified chunks were copied to a new arena."""

    generation: int


@dataclass(frozen=True, slots=True)
class Tick:
    """Time has passed."""


Event = Assigned | Connected | LinkFailed | PageSeen | Arrived | ReadFailed | Verified | Corrupt | Relocated | Tick

# Commands


@dataclass(frozen=True, slots=True)
class Connect:
    upstream: str


@dataclass(frozen=True, slots=True)
class Disconnect:
    """Give the lease back. Where the arena has moved, only once the reads that were given up on have ended:
    the source may free the memory as soon as it has the lease."""

    upstream: str


@dataclass(frozen=True, slots=True)
class ReadPage:
    upstream: str
    at: float
    """Not before this time."""


@dataclass(frozen=True, slots=True)
class ReadChunk:
    chunk: int
    upstream: str
    generation: int


@dataclass(frozen=True, slots=True)
class Verify:
    chunk: int
    generation: int


@dataclass(frozen=True, slots=True)
class Advertise:
    """Mark the chunk ready in the own progress page."""

    chunk: int


@dataclass(frozen=True, slots=True)
class Report:
    """Tell the coordinator that an upstream was left."""

    upstream: str
    kind: LossKind
    detail: str


@dataclass(frozen=True, slots=True)
class Measured:
    """Tell the coordinator how fast an upstream gives chunks while it is asked for any. Only with
    measure_chunks set."""

    upstream: str
    chunks_per_second: float


@dataclass(frozen=True, slots=True)
class Relocate:
    """Move the verified chunks to a new arena; the old one is never used again."""

    generation: int
    verified: tuple[int, ...]
    detail: str


@dataclass(frozen=True, slots=True)
class Finish:
    """Every chunk is verified."""


Command = Connect | Disconnect | ReadPage | ReadChunk | Verify | Advertise | Report | Measured | Relocate | Finish
