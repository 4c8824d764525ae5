"""The reference transport: peers in one process, joined by a Fabric that moves bytes and breaks on demand.

What it shares with the real one: a card is a snapshot; a peer that stops leaves reads pending for ever;
when it goes on, they land, given up on or not.
"""

from __future__ import annotations

import ctypes
import threading
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final

from ray_weights.memory.arena import Region
from ray_weights.transports.card import Card, check_registered
from ray_weights.transports.regions import check_pairs, first_uncovered
from ray_weights.transports.tickets import Plan, Ticket
from ray_weights.transports.transport import (
    DONE,
    PeerUnknown,
    ReadPlan,
    ReadState,
    ReadStatus,
    ReadTicket,
    TransportClosed,
)


@dataclass(eq=False, slots=True, kw_only=True)
class _Plan(Plan):
    local: tuple[Region, ...]
    remote: tuple[Region, ...]


@dataclass(eq=False, slots=True, kw_only=True)
class _Ticket(Ticket):
    plan: _Plan
    reader: str


@dataclass(slots=True)
class _Peer:
    """One member of the fabric and what is wrong with it."""

    regions: dict[int, Region] = field(default_factory=dict)
    serial: int = 0
    frozen: bool = False
    dead: bool = False
    corrupt_every: int = 0
    reads_served: int = 0


class Fabric:
    """Joins in-memory transports. immediate: a read is done when start() returns; otherwise step() moves
    it.
    """

    def __init__(self, *, immediate: bool = True) -> None:
        self.immediate: Final = immediate
        self._lock = threading.RLock()
        self._peers: dict[str, _Peer] = {}
        self._pending: list[_Ticket] = []

    def join(self, name: str) -> InMemoryTransport:
        """A new member. ValueError when the name is taken, also by one that was killed: names are not
        reused.
        """
        with self._lock:
            if name in self._peers:
                raise ValueError(f"the fabric has had a peer {name!r}")
            self._peers[name] = _Peer()
            return InMemoryTransport(name, self)

    def step(self, reads: int | None = None) -> int:
        """Move the oldest pending reads that can move, at most `reads` of them; how many did."""
        with self._lock:
            movable = [ticket for ticket in self._pending if not self._peers[ticket.plan.peer].frozen]
            moved = movable[:reads]
            for ticket in moved:
                self._pending.remove(ticket)
                ticket.state = self._move(ticket)
            return len(moved)

    def freeze(self, peer: str) -> None:
        """Reads from this peer stay pending, as from a stopped process."""
        with self._lock:
            self._peers[peer].frozen = True

    def thaw(self, peer: str) -> None:
        """Reads from this peer go on; in immediate mode those that waited land now, abandoned ones as well."""
        with self._lock:
            self._peers[peer].frozen = False
            if self.immediate:
                self.step()

    def kill(self, peer: str) -> None:
        """Reads from this peer fail, those under way too, and its own come to nothing."""
        with self._lock:
            self._peers[peer].dead = True
            self._peers[peer].frozen = False
            self._forget_reads_of(peer)
            for ticket in [ticket for ticket in self._pending if ticket.plan.peer == peer]:
                self._pending.remove(ticket)
                ticket.state = self._move(ticket)

    def corrupt(self, peer: str, every: int) -> None:
        """Flip one bit in each `every`-th read from this peer, 1 for all; 0 stops it."""
        with self._lock:
            self._peers[peer].corrupt_every = every
            self._peers[peer].reads_served = 0

    def reads_served(self, peer: str) -> int:
        """Reads that moved bytes out of this peer since it joined or corrupt() was called."""
        with self._lock:
            return self._peers[peer].reads_served

    def _submit(self, ticket: _Ticket) -> None:
        with self._lock:
            source = self._peers[ticket.plan.peer]
            if source.dead or (self.immediate and not source.frozen):
                ticket.state = self._move(ticket)
            else:
                self._pending.append(ticket)

    def _move(self, ticket: _Ticket) -> ReadState:
        source = self._peers[ticket.plan.peer]
        local, remote = ticket.plan.local[ticket.index], ticket.plan.remote[ticket.index]
        if source.dead:
            return ReadState(ReadStatus.FAILED, f"peer {ticket.plan.peer!r} is lost")
        if first_uncovered([remote], source.regions.values()) is not None:
            # The real transport would crash the source here, or read what the memory holds by now.
            return ReadState(ReadStatus.FAILED, f"peer {ticket.plan.peer!r} has deregistered the memory")
        ctypes.memmove(local.address, remote.address, local.nbytes)
        source.reads_served += 1
        if local.nbytes and source.corrupt_every and source.reads_served % source.corrupt_every == 0:
            middle = ctypes.c_ubyte.from_address(local.address + local.nbytes // 2)
            middle.value ^= 1
        return DONE

    def _forget_reads_of(self, reader: str) -> None:
        with self._lock:
            self._pending = [ticket for ticket in self._pending if ticket.reader != reader]


class InMemoryTransport:
    """See Transport. Made by Fabric.join()."""

    def __init__(self, name: str, fabric: Fabric) -> None:
        self.name: Final = name
        self._fabric = fabric
        self._own = fabric._peers[name]
        self._cards: dict[str, Card] = {}
        self._plans: Counter[str] = Counter()
        self._closed = False

    def card(self) -> bytes:
        self._check_open()
        return Card("in-memory", self.name, self._own.regions).to_bytes()

    def register(self, region: Region) -> None:
        self._check_open()
        self._own.serial += 1
        self._own.regions[self._own.serial] = region

    def deregister(self, region: Region) -> None:
        self._check_open()
        serials = [serial for serial, known in self._own.regions.items() if known == region]
        if not serials:
            raise ValueError(f"{region} is not registered")
        del self._own.regions[serials[0]]

    def connect(self, card: bytes) -> str:
        self._check_open()
        newest = Card.parse(card, "in-memory")
        self._cards[newest.peer] = newest
        return newest.peer

    def disconnect(self, peer: str) -> None:
        self._check_open()
        if not self._plans[peer]:
            self._cards.pop(peer, None)

    def prepare(self, peer: str, local: Sequence[Region], remote: Sequence[Region]) -> ReadPlan:
        self._check_open()
        check_pairs(local, remote)
        if peer not in self._cards:
            raise PeerUnknown(f"peer {peer!r} is not connected")
        check_registered(peer, local, self._own.regions.values(), remote, self._cards[peer].regions.values())
        self._plans[peer] += 1
        return _Plan(peer=peer, size=len(local), local=tuple(local), remote=tuple(remote))

    def start(self, plan: ReadPlan, index: int) -> ReadTicket:
        self._check_open()
        assert isinstance(plan, _Plan)
        plan.open_ticket(index)
        ticket = _Ticket(plan=plan, index=index, reader=self.name)
        self._fabric._submit(ticket)
        return ticket

    def poll(self, ticket: ReadTicket) -> ReadState:
        assert isinstance(ticket, _Ticket)
        ticket.check_open()
        return ticket.state

    def release(self, ticket: ReadTicket) -> None:
        assert isinstance(ticket, _Ticket)
        ticket.check_ended()
        ticket.closed = True
        ticket.plan.close_ticket(abandoned=False)

    def abandon(self, ticket: ReadTicket) -> None:
        assert isinstance(ticket, _Ticket)
        ticket.check_open()
        ticket.closed = True
        ticket.plan.close_ticket(abandoned=True)

    def release_plan(self, plan: ReadPlan) -> None:
        assert isinstance(plan, _Plan)
        if plan.release():
            self._plans[plan.peer] -= 1

    def close(self) -> None:
        if not self._closed:
            self._closed = True
            self._fabric.kill(self.name)

    def _check_open(self) -> None:
        if self._closed:
            raise TransportClosed(f"transport {self.name!r} is closed")
