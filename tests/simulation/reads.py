"""The leases that one receive has on its upstreams, and its one-sided reads of their memory."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ray_weights.core import receiving as r
from ray_weights.core.page import parse_page
from ray_weights.schemas import messages as m
from tests.simulation.arenas import Arena

if TYPE_CHECKING:
    from tests.simulation.member import Member


@dataclass(slots=True)
class Link:
    """A lease that was granted."""

    upstream: str
    lease: str
    arena: Arena
    reads: int = 0
    """One-sided reads that have not ended, given up on or not."""
    left: bool = False


class Reads:
    """Of one member."""

    def __init__(self, member: Member) -> None:
        self._member = member
        self._world = member.world
        self._links: dict[str, Link] = {}
        self._wanted: dict[str, int] = {}
        """Upstream -> serial of the newest connect."""
        self._connects = 0

    @property
    def upstreams(self) -> tuple[str, ...]:
        """Those that it has a lease of."""
        return tuple(self._links)

    def connect(self, upstream: str) -> None:
        self._connects += 1
        serial, receiver = self._connects, self._member.receiver
        lease = f"{self._member.name}/{serial}"
        self._wanted[upstream] = serial
        world = self._world

        def asked() -> None:
            peer = world.members.get(upstream)
            if peer is None:
                world.after(0.03, lambda: answer(None, "dead"))
                return

            def granted(arena: Arena | None) -> None:
                world.after(0.0005, lambda: answer(arena, "stale"))

            peer.soon(lambda: peer.grant(self._member.name, lease, granted, world.now) if self._member.alive else None)

        def answer(arena: Arena | None, kind: m.LossKind) -> None:
            self._member.soon(lambda: answered(arena, kind))

        def answered(arena: Arena | None, kind: m.LossKind) -> None:
            if self._member.receiver is not receiver or self._wanted.get(upstream) != serial:
                self._release(upstream, lease)  # granted too late
            elif arena is None:
                self._member.handle(r.LinkFailed(upstream, kind, "no lease"))
            else:
                self._links[upstream] = Link(upstream, lease, arena)
                self._member.handle(r.Connected(upstream))

        world.after(0.0005, asked)

    def disconnect_all(self) -> None:
        for upstream in list(self._links):
            self.disconnect(upstream)
        self._wanted.clear()

    def disconnect(self, upstream: str) -> None:
        self._wanted.pop(upstream, None)
        link = self._links.pop(upstream, None)
        if link is not None:
            link.left = True
            self._release_if_idle(link)

    def _release_if_idle(self, link: Link) -> None:
        """A read that was given up on still touches the source's memory: the lease outlives it."""
        if link.left and not link.reads:
            self._release(link.upstream, link.lease)

    def _release(self, upstream: str, lease: str) -> None:
        def there() -> None:
            peer = self._world.members.get(upstream)
            if peer is not None:
                peer.soon(lambda: peer.arenas.end_lease(lease))

        self._world.after(0.0005, there)

    def read_page(self, upstream: str) -> None:
        link, receiver = self._links.get(upstream), self._member.receiver
        if link is None:
            return

        def done() -> None:
            if self._member.receiver is not receiver or self._links.get(upstream) is not link:
                return
            page = parse_page(bytes(link.arena.page), link.arena.identity)
            if isinstance(page, str):
                self._member.handle(r.LinkFailed(upstream, "stale", page))
            else:
                self._member.handle(r.PageSeen(upstream, page))

        def failed() -> None:
            if self._member.receiver is receiver and self._links.get(upstream) is link:
                self._member.handle(r.LinkFailed(upstream, "dead", "connection reset"))

        self._one_sided(upstream, 0.0003, link, done, failed)

    def read_chunk(self, chunk: int, upstream: str, generation: int) -> None:
        member, link = self._member, self._links.get(upstream)
        receiver, mine = member.receiver, member.arena
        assert link is not None and mine is not None, "a read without a lease"
        broken = self._world.chance(self._world.faults.corrupt)

        def done() -> None:
            # The bytes land in the memory that the read was started for, whatever has become of it.
            mine.contents[chunk] = "broken" if broken else link.arena.contents[chunk]
            member.soon(lambda: member.receiver is receiver and member.handle(r.Arrived(chunk, generation)))

        def failed() -> None:
            mine.contents[chunk] = "half"
            if member.receiver is receiver:
                member.handle(r.ReadFailed(chunk, generation, "connection reset"))

        if self._world.chance(self._world.faults.read_error):
            member.after(0.01, failed)
            return
        usual = self._world.faults.chunk_seconds * self._world.rng.uniform(0.5, 1.5)
        seconds = usual / min(member.speed, self._speed_of(upstream))
        self._one_sided(upstream, seconds, link, done, failed)

    def _speed_of(self, upstream: str) -> float:
        peer = self._world.members.get(upstream)
        return peer.speed if peer else 1.0

    def _one_sided(
        self, upstream: str, seconds: float, link: Link, done: Callable[[], None], failed: Callable[[], None]
    ) -> None:
        """A read without any code running at the source: it needs its process alive and not frozen."""
        world = self._world
        link.reads += 1

        def end() -> None:
            if not self._member.alive:
                return
            peer = world.members.get(upstream)
            if peer is None:
                link.reads -= 1
                self._member.after(0.03, failed)
                return
            if peer.frozen:
                world.at(peer._frozen_until + 0.001, end)
                return
            world.require(
                not link.arena.freed, f"{self._member.name} reads memory that {upstream} has freed under its lease"
            )
            link.reads -= 1
            done()
            self._member.soon(lambda: self._release_if_idle(link))

        world.after(seconds, end)
