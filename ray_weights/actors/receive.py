"""Carries out the commands of one Receiver: the reads, the digests, the progress page.

Runs on the data plane's thread. What needs Ray (leases, reports) is asked of the actor through Wishes.
"""

from __future__ import annotations

import heapq
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ray_weights.actors.shard_arena import ShardArena, page_token
from ray_weights.actors.upstream_link import UpstreamLink, after
from ray_weights.core import receiving as machine
from ray_weights.core.link import ReceiverOptions
from ray_weights.core.manifest import Manifest
from ray_weights.core.page import PageIdentity, PageState, parse_page
from ray_weights.core.receiver import Receiver
from ray_weights.errors import TransportError
from ray_weights.schemas.keys import ShardKey
from ray_weights.schemas.leases import Lease
from ray_weights.schemas.members import ReceiveStats
from ray_weights.schemas.messages import LossKind
from ray_weights.transports.transport import ReadStatus, ReadTicket

if TYPE_CHECKING:
    from ray_weights.actors.plane import DataPlane


@dataclass(frozen=True, slots=True)
class Wishes:
    """What a receive asks of its actor. Called on the data plane's thread; each returns at once."""

    connect: Callable[[str], None]
    """Get a lease from this member, then call connected() or link_failed()."""
    disconnect: Callable[[str, Future[None] | None], None]
    """Give the lease back, where a future is given not before it is done."""
    report: Callable[[machine.Report, int], None]
    """Tell the coordinator; with the number of verified chunks."""
    measured: Callable[[str, float], None]
    """Tell the coordinator how many bytes per second come from an upstream while it is asked for any."""
    left: Callable[[ShardArena], None]
    """This arena was moved out of, or given up, and no read can write into it any more."""
    finished: Callable[[ReceiveStats], None]
    failed: Callable[[Exception], None]


class Receive:
    """One shard on its way into an arena of this process."""

    def __init__(
        self,
        plane: DataPlane,
        shard: ShardKey,
        version: int,
        manifest: Manifest,
        arena: ShardArena,
        move_arena: Callable[[ShardArena, tuple[int, ...]], ShardArena],
        wishes: Wishes,
        options: ReceiverOptions,
        rate: float = 0.0,
    ) -> None:
        """
        Args:
            move_arena: (old arena, verified chunks) -> a new arena with copies of these chunks; `old` is never used
                again.
            rate: bytes per second to read at most; 0 for no limit.
        """
        self.name = f"{shard} v{version}"
        self.manifest = manifest
        self.arena = arena
        self.machine = Receiver(manifest.chunks, time.monotonic(), options)
        self._plane = plane
        self._transport = plane.transport
        self._digest = manifest.digest()
        self._version = version
        self._move_arena = move_arena
        self._wishes = wishes
        self._links: dict[str, UpstreamLink] = {}
        self._tickets: dict[ReadTicket, tuple[int, int, UpstreamLink]] = {}
        """Chunk reads in flight -> (chunk, generation, whose it is)."""
        self._late: list[Future[None]] = []
        """Reads that were given up on and may still write into the present arena."""
        self._verifying = 0
        self._ended = False
        """Finished, failed or cancelled: nobody is told anything more."""
        self._page_reads: list[tuple[float, str]] = []
        """(due, upstream), a heap."""
        self._seconds_per_chunk = manifest.chunk_nbytes / rate if rate > 0 else 0.0
        self._paced: deque[machine.ReadChunk] = deque()
        """Reads that wait until the rate allows them."""
        self._next_read_at = 0.0
        self._started = time.monotonic()
        self._first_chunk_seconds = 0.0

    # On the data plane's thread

    def start(self, upstreams: tuple[str, ...]) -> None:
        self._plane.add(self)
        self.handle(machine.Assigned(upstreams))

    def handle(self, event: machine.Event) -> None:
        for command in self.machine.handle(event, time.monotonic()):
            self._carry_out(command)

    def connected(self, upstream: str, lease: Lease) -> None:
        """A lease was granted: prepare the descriptors of every chunk and of the page, once."""
        if self.machine.done:
            self._wishes.disconnect(upstream, None)
            return
        try:
            link = UpstreamLink.open(self._transport, lease, self.manifest, self.arena.data)
        except TransportError as e:
            self.link_failed(upstream, "unreachable", str(e))
            return
        old = self._links.pop(upstream, None)
        if old is not None:
            self._close(old)
        self._links[upstream] = link
        self.handle(machine.Connected(upstream))

    def link_failed(self, upstream: str, kind: LossKind, detail: str) -> None:
        if self.machine.done:
            self._wishes.disconnect(upstream, None)  # it may have been granted after all
            return
        self.handle(machine.LinkFailed(upstream, kind, detail))

    def step(self, now: float) -> float | None:
        """Collect what has ended, start what is due; returns when to be called next."""
        self._collect_chunks()
        self._collect_pages()
        while self._page_reads and self._page_reads[0][0] <= now:
            self._start_page_read(heapq.heappop(self._page_reads)[1])
        while self._paced and self._next_read_at <= now:
            self._next_read_at = max(self._next_read_at, now - self._seconds_per_chunk) + self._seconds_per_chunk
            self._read_chunk(self._paced.popleft())
        if now >= self.machine.next_wakeup():
            self.handle(machine.Tick())
        if self.machine.done:
            return None
        due = self.machine.next_wakeup()
        if self._page_reads:
            due = min(due, self._page_reads[0][0])
        if self._paced:
            due = min(due, self._next_read_at)
        if self._tickets or any(link.page_ticket is not None for link in self._links.values()):
            due = min(due, now + self.machine.poll_seconds)
        return due

    def cancel(self) -> bool:
        """Stop, once. Returns whether the arena may be used again: not if a read might still write into it.

        An arena that is not clean is told of by Wishes.left when it is.
        """
        self._stop()
        if self._late:
            after(self._late, lambda: self._wishes.left(self.arena))
        return not self._late

    def failed(self, error: Exception) -> None:
        """End with an error; cancel() follows."""
        if not self._ended:
            self._stop()
            self._wishes.failed(error)

    def _stop(self) -> None:
        self._ended = True
        self._plane.remove(self)
        self._give_up_tickets()
        for upstream in list(self._links):
            self._disconnect(upstream)
        self.machine.done = True

    def account(self) -> str:
        """What it is doing, for a person."""
        reading = ", ".join(f"{len(self.machine.reading_from(u))} from {u}" for u in self._links) or "nothing"
        return f"{len(self._tickets)} reads in flight ({reading}), {self._verifying} chunks being verified"

    # Commands

    def _carry_out(self, command: machine.Command) -> None:
        match command:
            case machine.Connect(upstream):
                self._wishes.connect(upstream)
            case machine.Disconnect(upstream):
                self._disconnect(upstream)
            case machine.ReadPage(upstream, at):
                heapq.heappush(self._page_reads, (at, upstream))
            case machine.ReadChunk() if self._seconds_per_chunk:
                self._paced.append(command)
            case machine.ReadChunk():
                self._read_chunk(command)
            case machine.Verify(chunk, generation):
                self._verify(chunk, generation)
            case machine.Advertise(chunk):
                self.arena.advertise(chunk)
                self._first_chunk_seconds = self._first_chunk_seconds or time.monotonic() - self._started
            case machine.Report():
                self._wishes.report(command, self.machine.verified_count)
            case machine.Measured(upstream, chunks_per_second):
                self._wishes.measured(upstream, chunks_per_second * self.manifest.chunk_nbytes)
            case machine.Relocate(generation, verified, _):
                self._relocate(generation, verified)
            case machine.Finish():
                self._finish()

    def _read_chunk(self, read: machine.ReadChunk) -> None:
        chunk, generation = read.chunk, read.generation
        link = self._links.get(read.upstream)
        if generation != self.machine.generation or link is None:
            return  # it was paced, and the arena has moved meanwhile
        try:
            ticket = self._transport.start(link.chunks, chunk)
        except TransportError as e:
            detail = str(e)
            self._plane.post(lambda: self.handle(machine.ReadFailed(chunk, generation, detail)))
            return
        self._tickets[ticket] = (chunk, generation, link)

    def _collect_chunks(self) -> None:
        for ticket, (chunk, generation, _) in list(self._tickets.items()):
            if ticket not in self._tickets:
                continue  # given up on while this loop ran
            state = self._transport.poll(ticket)
            if state.status is ReadStatus.PENDING:
                continue
            del self._tickets[ticket]
            self._transport.release(ticket)
            if state.status is ReadStatus.DONE:
                self.handle(machine.Arrived(chunk, generation))
            else:
                self.handle(machine.ReadFailed(chunk, generation, state.reason))

    def _verify(self, chunk: int, generation: int) -> None:
        """Compute the digest on another thread; a chunk counts only once it is right."""
        arena, expected, algorithm = self.arena, self.manifest.digests[chunk], self.manifest.digest_algorithm

        def check() -> None:
            try:
                right = arena.digest(chunk, algorithm) == expected
            except Exception as e:  # nobody waits for this thread: the receive ends with the error
                error = e
                self._plane.post(lambda: self.failed(error))
                return
            event = machine.Verified(chunk, generation) if right else machine.Corrupt(chunk, generation)
            self._plane.post(lambda: self._verified(event))

        self._verifying += 1
        self._plane.verifiers.submit(check)

    def _verified(self, event: machine.Event) -> None:
        self._verifying -= 1
        self.handle(event)

    def _start_page_read(self, upstream: str) -> None:
        link = self._links.get(upstream)
        if link is None or link.page_ticket is not None:
            return
        try:
            link.page_ticket = self._transport.start(link.page, 0)
        except TransportError as e:
            self.link_failed(upstream, "unreachable", str(e))

    def _collect_pages(self) -> None:
        for upstream, link in list(self._links.items()):
            ticket = link.page_ticket
            if ticket is None:
                continue
            state = self._transport.poll(ticket)
            if state.status is ReadStatus.PENDING:
                continue
            link.page_ticket = None
            self._transport.release(ticket)
            if state.status is ReadStatus.FAILED:
                self.link_failed(upstream, "dead", state.reason)
                continue
            identity = PageIdentity(self._version, self._digest, page_token(link.lease.arena_id))
            page = parse_page(link.page_copy.view(), identity)
            if isinstance(page, str):
                self.link_failed(upstream, "stale", page)
            else:
                self.handle(machine.PageSeen(upstream, page))

    def _relocate(self, generation: int, verified: tuple[int, ...]) -> None:
        self._give_up_tickets()
        old, self.arena = self.arena, self._move_arena(self.arena, verified)
        late, self._late = self._late, []
        after(late, lambda: self._wishes.left(old))
        for upstream, link in self._links.items():
            try:
                link.plan_anew(self._transport, self.manifest, self.arena.data)
            except TransportError as e:  # gone as well; its old plan is released, so no read of it can start
                self._plane.post(lambda u=upstream, why=str(e): self.link_failed(u, "dead", why))  # type: ignore[misc]
        self._plane.post(lambda: self.handle(machine.Relocated(generation)))

    def _give_up_tickets(self) -> None:
        for ticket, (_, _, link) in self._tickets.items():
            ended = self._plane.give_up([ticket])
            self._late.append(ended)
            link.late.append(ended)
        self._tickets.clear()

    def _finish(self) -> None:
        self._plane.remove(self)
        now = time.monotonic()
        chunk_nbytes = self.manifest.chunk_nbytes
        self.arena.write_page(PageState.SERVING)
        self._ended = True
        self._wishes.finished(
            ReceiveStats(
                nbytes=self.manifest.nbytes,
                seconds=now - self._started,
                first_chunk_seconds=self._first_chunk_seconds,
                read_again_nbytes=min(self.machine.read_again * chunk_nbytes, self.manifest.nbytes),
                chunks_from_receivers=self.machine.from_receivers,
                upstream_nbytes=tuple(
                    (member, min(n * chunk_nbytes, self.manifest.nbytes))
                    for member, n in self.machine.read_from.items()
                ),
            )
        )

    def _disconnect(self, upstream: str) -> None:
        """Leave an upstream. While it may still read its memory for us, it must not free it: the lease lasts."""
        link = self._links.pop(upstream, None)
        self._wishes.disconnect(upstream, self._close(link) if link is not None else None)

    def _close(self, link: UpstreamLink) -> Future[None]:
        """Done when no read of it is under way any more."""
        if link.page_ticket is not None:
            link.late.append(self._plane.give_up([link.page_ticket]))
            link.page_ticket = None
        ended: Future[None] = Future()

        def close() -> None:
            ended.set_result(None)
            link.close(self._transport)

        after(link.late, close)
        return ended
