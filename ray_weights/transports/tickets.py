"""What plans and tickets of every transport have in common: who may still use what."""

from __future__ import annotations

from dataclasses import dataclass

from ray_weights.transports.transport import PENDING, ReadState, TransportClosed


@dataclass(eq=False, slots=True, kw_only=True)
class Plan:
    """See ReadPlan."""

    peer: str
    size: int
    open_tickets: int = 0
    abandoned: bool = False
    """A read that was given up on may still use it."""
    released: bool = False

    def __len__(self) -> int:
        return self.size

    def open_ticket(self, index: int) -> None:
        """Count a read of entry `index`; ValueError when there is none, TransportClosed after release."""
        if not 0 <= index < self.size:
            raise ValueError(f"the plan has no entry {index}, only {self.size}")
        if self.released:
            raise TransportClosed("the plan has been released")
        self.open_tickets += 1

    def close_ticket(self, *, abandoned: bool) -> None:
        self.open_tickets -= 1
        self.abandoned = self.abandoned or abandoned

    def release(self) -> bool:
        """Whether what the plan holds can be let go of now: not twice, and never after an abandoned read."""
        if self.open_tickets:
            raise TransportClosed(f"{self.open_tickets} reads of the plan are neither released nor abandoned")
        first, self.released = not self.released, True
        return first and not self.abandoned


@dataclass(eq=False, slots=True, kw_only=True)
class Ticket:
    """See ReadTicket."""

    index: int
    state: ReadState = PENDING
    closed: bool = False

    def check_open(self) -> None:
        if self.closed:
            raise TransportClosed("the ticket has been released or abandoned")

    def check_ended(self) -> None:
        self.check_open()
        if self.state is PENDING:
            raise TransportClosed("the read is pending: abandon() it to give up on it")
