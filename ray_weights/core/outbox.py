"""Commands that the registry wants sent, and the story that they tell."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ray_weights.core.rates import Rates
from ray_weights.core.record import VersionRecord
from ray_weights.core.story import Story
from ray_weights.schemas.members import MemberInfo
from ray_weights.schemas.messages import Accepted, BecomeOrigin, Command, Receive, Refuse, Wait


@dataclass(frozen=True, slots=True)
class Outgoing:
    """A command for one member."""

    member: str
    command: Command


class Outbox:
    """Collects the commands of one event. One per event, so nothing is sent from a half-applied change."""

    def __init__(self, epoch: int, now: float, members: Mapping[str, MemberInfo], story: Story, rates: Rates) -> None:
        self.epoch = epoch
        self.now = now
        self.messages: list[Outgoing] = []
        self._members = members
        self._story = story
        self._rates = rates

    def send(self, member: str, command: Command) -> None:
        if member in self._members:
            self.messages.append(Outgoing(member, command))

    def tell(self, record: VersionRecord, member: str, what: str) -> None:
        """Add a line to the story of a replica."""
        info = self._members.get(member)
        self._story.add(self.now, record.shard, record.version, member, info.node_name if info else "?", what)

    def receive(self, record: VersionRecord, member: str) -> None:
        """Send a receiver its present upstreams."""
        assert record.seal is not None
        upstreams = record.swarm.vertex(member).upstreams
        self._order(
            Receive,
            record,
            member,
            seal=record.seal,
            upstreams=upstreams,
            addresses=tuple((u, self._members[u].actor_name) for u in dict.fromkeys(upstreams) if u in self._members),
            expected_rate=self._rates.median,
            reason=record.replicas[member].reason,
        )

    def wait(self, record: VersionRecord, member: str, reason: str) -> None:
        """Tell a member that somebody else loads or receives what it wants."""
        self._order(Wait, record, member, reason=reason, expected_rate=self._rates.median)

    def to_storage(self, record: VersionRecord, member: str, reason: str) -> None:
        """Tell a member to load from storage and be the origin."""
        chunk_nbytes = record.seal.chunk_nbytes if record.seal is not None else None
        rate = self._rates.median
        self._order(BecomeOrigin, record, member, reason=reason, expected_rate=rate, chunk_nbytes=chunk_nbytes)

    def refuse(self, record: VersionRecord, member: str, error: str, message: str, source: str | None = None) -> None:
        info = self._members.get(source) if source else None
        self.tell(record, member, f"refused: {message}")
        knows_more = (info.member, info.actor_name) if info else None
        self._order(Refuse, record, member, error=error, message=message, source=knows_more)

    def accept(self, record: VersionRecord, member: str, *, sealed: bool) -> None:
        """Say that a seal is registered, or that the member holds what it asks for."""
        self._order(Accepted, record, member, sealed=sealed)

    def _order(self, kind: type[Command], record: VersionRecord, member: str, **fields: Any) -> None:
        """Send a command about a version, with the question that it answers."""
        replica = record.replicas.get(member)
        question = replica.question if replica is not None else 0
        self.send(
            member, kind(epoch=self.epoch, shard=record.shard, version=record.version, question=question, **fields)
        )

    def node(self, member: str) -> str:
        info = self._members.get(member)
        return info.node_name if info else "a node that is gone"
