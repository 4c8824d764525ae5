"""The interface to one-sided reads: the reader's side does all the work, the source's code does not run.

Life of a read: a peer's `card` arrives by other means -> connect(card) -> prepare(peer, local, remote),
once per upstream -> start(plan, index) -> poll(ticket) until it is no longer pending -> release(ticket).

Two rules come from how the hardware behaves:
- A source may deregister and free memory only when nobody reads it any more: a late read of freed memory
can take
  the source's process down.
- A read that is given up on may still write into its local region, minutes later. abandon() it, and never
use that
  region again.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Protocol

from ray_weights.errors import TransportError
from ray_weights.memory.arena import Region


class TransportUnavailable(TransportError):
    """This transport does not work here at all. The caller uses another one, or tells the user what is
    missing.
    """


class PeerUnknown(TransportError):
    """The card is no card, the peer is not connected, or it has not registered the memory asked for.

    The caller asks for a newer card and connects again, or takes another upstream.
    """


class TransportClosed(TransportError):
    """The transport, plan or ticket is no longer open: an error in the caller."""


class ReadStatus(Enum):
    PENDING = "pending"
    DONE = "done"
    FAILED = "failed"


@dataclass(frozen=True, slots=True)
class ReadState:
    status: ReadStatus
    reason: str = ""
    """Why it failed, for a person."""


PENDING = ReadState(ReadStatus.PENDING)
DONE = ReadState(ReadStatus.DONE)


class ReadPlan(Protocol):
    """Pairs of regions, checked and prepared once: the i-th local one is filled from the i-th remote one."""

    @property
    def peer(self) -> str: ...

    def __len__(self) -> int: ...


class ReadTicket(Protocol):
    """One read under way."""

    @property
    def index(self) -> int:
        """Which pair of its plan it fills."""
        ...


class Transport(Protocol):
    """Reads the memory of connected peers. Methods may be called from any thread, one ticket from one at a
    time.

    start() may copy the data itself before it returns (NIXL within one host does); it releases the GIL
    meanwhile.
    """

    @property
    def name(self) -> str:
        """This side's name among its peers; unique to one incarnation of the process."""
        ...

    def card(self) -> bytes:
        """What a peer needs to connect and to read all memory registered at this time."""
        ...

    def register(self, region: Region) -> None:
        """Let this transport read into the region, and peers with a card from now on read it."""
        ...

    def deregister(self, region: Region) -> None:
        """Take a registered region back. PeerUnknown does not follow: peers may still hold older cards."""
        ...

    def connect(self, card: bytes) -> str:
        """Make a peer's memory readable; its name. A newer card of the same peer replaces the older one.

        Raises PeerUnknown when it is no card of this transport.
        """
        ...

    def disconnect(self, peer: str) -> None:
        """Forget a peer, unless a plan of it has not been released or was abandoned: then nothing happens.
        Idempotent.
        """
        ...

    def prepare(self, peer: str, local: Sequence[Region], remote: Sequence[Region]) -> ReadPlan:
        """Check and prepare pairs of regions of equal size, up to thousands of them.

        Raises PeerUnknown when the peer is not connected or has not registered a remote region, ValueError
        when the two sides do not match.
        """
        ...

    def start(self, plan: ReadPlan, index: int) -> ReadTicket:
        """Begin to fill local[index] from remote[index]. What goes wrong with the peer is told by poll()."""
        ...

    def poll(self, ticket: ReadTicket) -> ReadState:
        """How the read is doing. Does not block. DONE and FAILED are final."""
        ...

    def release(self, ticket: ReadTicket) -> None:
        """Forget a read that is DONE or FAILED. TransportClosed while it is pending: see abandon()."""
        ...

    def abandon(self, ticket: ReadTicket) -> None:
        """Give up on a pending read. Its local region may still be written to until close(): never reuse
        it.

        The transport keeps what the read needs, including the plan, which the caller releases all the same.
        """
        ...

    def release_plan(self, plan: ReadPlan) -> None:
        """Forget a plan. TransportClosed while reads of it are neither released nor abandoned. Idempotent."""
        ...

    def close(self) -> None:
        """End everything; afterwards no read of this transport writes anywhere. Idempotent."""
        ...
