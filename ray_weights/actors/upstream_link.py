"""What a receive holds of one upstream: the lease, and descriptors of every chunk and of the progress page."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field

from ray_weights.core.manifest import Manifest, chunk_span
from ray_weights.core.page import page_nbytes
from ray_weights.errors import TransportError
from ray_weights.memory.arena import MemoryKind, Region
from ray_weights.memory.scratch import Scratch
from ray_weights.schemas.leases import Lease
from ray_weights.transports.transport import ReadPlan, ReadTicket, Transport


@dataclass(slots=True)
class UpstreamLink:
    """On the data plane's thread, as all that touches the transport."""

    peer: str
    lease: Lease
    chunks: ReadPlan
    page: ReadPlan
    page_copy: Scratch
    page_ticket: ReadTicket | None = None
    late: list[Future[None]] = field(default_factory=list)
    """Reads that were given up on: until all have ended, the lease must last."""
    old_plans: list[ReadPlan] = field(default_factory=list)

    @classmethod
    def open(cls, transport: Transport, lease: Lease, manifest: Manifest, into: Region) -> UpstreamLink:
        """Prepare to read an arena into `into`. Raises TransportError; nothing is left then."""
        peer = transport.connect(lease.card)
        nbytes = page_nbytes(manifest.chunks)
        page_copy = Scratch(nbytes)
        transport.register(page_copy.region)
        plans: list[ReadPlan] = []
        try:
            plans.append(transport.prepare(peer, [page_copy.region], [Region(lease.page_address, nbytes)]))
            plans.append(chunk_plan(transport, peer, lease, manifest, into))
        except TransportError:
            for plan in plans:
                transport.release_plan(plan)
            transport.deregister(page_copy.region)
            page_copy.close()
            transport.disconnect(peer)
            raise
        return cls(peer, lease, chunks=plans[1], page=plans[0], page_copy=page_copy)

    def plan_anew(self, transport: Transport, manifest: Manifest, into: Region) -> None:
        """Read into another arena from now on. Raises TransportError; no chunk can be read then."""
        self.old_plans.append(self.chunks)
        self.chunks = chunk_plan(transport, self.peer, self.lease, manifest, into)

    def close(self, transport: Transport) -> None:
        """Release what belongs to it. Only when no read is under way."""
        for plan in (self.page, self.chunks, *self.old_plans):
            transport.release_plan(plan)
        transport.deregister(self.page_copy.region)
        self.page_copy.close()
        transport.disconnect(self.peer)


def chunk_plan(transport: Transport, peer: str, lease: Lease, manifest: Manifest, into: Region) -> ReadPlan:
    """One descriptor per chunk."""
    spans = [chunk_span(c, manifest.nbytes, manifest.chunk_nbytes) for c in range(manifest.chunks)]
    kind: MemoryKind = "VRAM" if lease.memory_kind == "VRAM" else "DRAM"
    remote = [Region(lease.data_address + offset, n, lease.device_index, kind) for offset, n in spans]
    return transport.prepare(peer, [into.part(offset, n) for offset, n in spans], remote)


def after(all_of: Sequence[Future[None]], then: Callable[[], None]) -> None:
    """Do `then` when all are done, on the thread that does the last one; at once when they are."""
    left = [f for f in all_of if not f.done()]
    if not left:
        then()
    else:
        left[0].add_done_callback(lambda _: after(left, then))
