"""NIXL: one-sided reads over RDMA, TCP, shared memory and NVLink. The only module that imports it.

NIXL's bindings are used directly: its Python API fixes the progress thread's delay at 0, which costs a
whole core per agent. What NIXL does when things break, as tried out with 1.5.1 over UCX:
- A stopped source leaves reads pending for ever, and they land when it goes on, even after their release.
- Within one host UCX copies (CMA) inside start(), in the calling thread and without the GIL.
- Over TCP a reader that ends, or closes its agent, while a stopped source owes it data, takes that source's
process
  down when it goes on. So nothing here closes an agent to get rid of a read.
"""

from __future__ import annotations

import contextlib
import importlib
import os
import threading
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from ray_weights.errors import TransportError
from ray_weights.memory.arena import Region
from ray_weights.threads import naming
from ray_weights.transports.card import Card, check_registered
from ray_weights.transports.regions import check_pairs
from ray_weights.transports.tickets import Plan, Ticket
from ray_weights.transports.transport import (
    DONE,
    PENDING,
    PeerUnknown,
    ReadPlan,
    ReadState,
    ReadStatus,
    ReadTicket,
    TransportClosed,
    TransportUnavailable,
)

_MODULES = ("nixl_cu12", "nixl_cu13", "nixl")


class NixlSettings(BaseModel):
    """How the agent is made."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    backend: str = "UCX"
    """Name of the NIXL plugin."""
    progress_delay_us: int = Field(default=1000, ge=0)
    """How long the progress thread sleeps when idle; traffic wakes it. 0 makes it spin on a core of its
    own.
    """
    num_threads: int = Field(default=0, ge=0)
    """Threads inside the backend, 0 for its default."""


@dataclass(slots=True)
class _Peer:
    readable: dict[int, Region]  # of the newest card, by serial number
    loaded: dict[int, Region]  # all that NIXL has been told, also what the peer has deregistered since
    plans: int = 0  # not released, or in use by an abandoned read


@dataclass(eq=False, slots=True, kw_only=True)
class _Plan(Plan):
    source: _Peer
    local: int  # NIXL's handles of the prepared lists
    remote: int


@dataclass(eq=False, slots=True, kw_only=True)
class _Ticket(Ticket):
    plan: _Plan
    request: int | None = None


class NixlTransport:
    """See Transport."""

    def __init__(self, name: str, settings: NixlSettings | None = None) -> None:
        """Make an agent. Raises TransportUnavailable when NIXL or its backend is missing or does not start."""
        self.name: Final = name
        self._settings = settings or NixlSettings()
        self._nixl = nixl = _import_bindings()
        self._errors: tuple[type[Exception], ...] = _error_classes(nixl)
        config = nixl.nixlAgentConfig()
        config.useProgThread = True  # without it a source whose Python is busy serves nobody
        config.pthrDelay = self._settings.progress_delay_us
        config.syncMode = nixl.NIXL_THREAD_SYNC_STRICT  # the default is not thread-safe
        parameters = {"num_threads": str(self._settings.num_threads)} if self._settings.num_threads else {}
        backend = self._settings.backend
        try:
            self._agent: Any = nixl.nixlAgent(name, config)
            plugins = self._agent.getAvailPlugins()
            if backend not in plugins:
                raise TransportUnavailable(f"NIXL has no backend {backend!r}, only {sorted(plugins)}")
            with naming("rw-nixl"):
                self._backend = self._agent.createBackend(backend, parameters)
        except self._errors as error:
            raise TransportUnavailable(
                f"NIXL's backend {backend} did not start ({error}); where UCX_TLS is set it must contain tcp"
            ) from error
        self._lock = threading.Lock()
        self._peer_locks: defaultdict[str, threading.Lock] = defaultdict(threading.Lock)
        self._peers: dict[str, _Peer] = {}
        self._regions: dict[int, Region] = {}
        self._serial = 0
        self._card: bytes | None = None
        """Of the regions registered now."""
        self._closed = False

    def card(self) -> bytes:
        with self._lock:
            self._check_open()
            if self._card is None:
                self._card = Card("nixl", self.name, self._regions, self._agent.getLocalMD()).to_bytes()
            return self._card

    def register(self, region: Region) -> None:
        with self._lock:
            self._check_open()
            try:
                self._agent.registerMem(self._registration(region), [self._backend])
            except self._errors as error:
                raise TransportError(f"{region} could not be registered: {error}") from error
            self._card = None
            self._serial += 1
            self._regions[self._serial] = region

    def deregister(self, region: Region) -> None:
        with self._lock:
            self._check_open()
            serials = [serial for serial, known in self._regions.items() if known == region]
            if not serials:
                raise ValueError(f"{region} is not registered")
            try:
                self._agent.deregisterMem(self._registration(region), [self._backend])
            except self._errors as error:
                raise TransportError(f"{region} could not be deregistered: {error}") from error
            self._card = None
            del self._regions[serials[0]]

    def connect(self, card: bytes) -> str:
        newest = Card.parse(card, "nixl")
        name = newest.peer
        with self._lock:
            self._check_open()
            peer_lock = self._peer_locks[name]
        with peer_lock:  # two threads that add one peer abort the process
            peer = self._peers.get(name)
            if peer is not None and newest.reuses(peer.loaded):
                # NIXL would go on reading by the old registration: forget all, plans have to be made anew.
                if peer.plans:
                    raise TransportError(f"peer {name!r} has reused memory that is being read: connect later")
                self._invalidate(name)
                peer = None
            try:
                self._agent.loadRemoteMD(newest.metadata)
            except self._errors as error:
                self._peers.pop(name, None)  # NIXL has forgotten it as well
                raise PeerUnknown(f"peer {name!r} cannot be reached by its card: {error}") from error
            if peer is None:
                self._peers[name] = _Peer(newest.regions, dict(newest.regions))
            else:
                peer.readable = newest.regions
                peer.loaded.update(newest.regions)
        return name

    def disconnect(self, peer: str) -> None:
        with self._lock:
            self._check_open()
            peer_lock = self._peer_locks[peer]
        with peer_lock:
            known = self._peers.get(peer)
            if known is not None and not known.plans:
                del self._peers[peer]
                self._invalidate(peer)

    def prepare(self, peer: str, local: Sequence[Region], remote: Sequence[Region]) -> ReadPlan:
        check_pairs(local, remote)
        with self._lock:
            self._check_open()
            known = self._peers.get(peer)
            own = list(self._regions.values())
        if known is None:
            raise PeerUnknown(f"peer {peer!r} is not connected")
        check_registered(peer, local, own, remote, known.readable.values())
        theirs = self._prepare_side(peer, remote)
        ours = self._prepare_side(self._nixl.NIXL_INIT_AGENT, local)
        with self._lock:
            known.plans += 1
        return _Plan(peer=peer, size=len(local), source=known, local=ours, remote=theirs)

    def start(self, plan: ReadPlan, index: int) -> ReadTicket:
        assert isinstance(plan, _Plan)
        with self._lock:
            self._check_open()
            plan.open_ticket(index)
        ticket = _Ticket(plan=plan, index=index)
        entry = [index]
        try:
            ticket.request = self._agent.makeXferReq(
                self._nixl.NIXL_READ, plan.local, entry, plan.remote, entry, "", [self._backend]
            )
            ticket.state = self._state(self._agent.postXferReq(ticket.request, ""))
        except self._errors as error:
            ticket.state = _failed(ticket, error)
        return ticket

    def poll(self, ticket: ReadTicket) -> ReadState:
        assert isinstance(ticket, _Ticket)
        ticket.check_open()
        if ticket.state is PENDING:
            try:
                ticket.state = self._state(self._agent.getXferStatus(ticket.request))
            except self._errors as error:
                ticket.state = _failed(ticket, error)
        return ticket.state

    def release(self, ticket: ReadTicket) -> None:
        assert isinstance(ticket, _Ticket)
        ticket.check_ended()
        ticket.closed = True
        if ticket.request is not None:
            with contextlib.suppress(*self._errors):  # a failed read's: the agent drops the rest at close()
                self._agent.releaseXferReq(ticket.request)
        with self._lock:
            ticket.plan.close_ticket(abandoned=False)

    def abandon(self, ticket: ReadTicket) -> None:
        assert isinstance(ticket, _Ticket)
        ticket.check_open()
        ticket.closed = True  # NIXL keeps the request: it is never released
        with self._lock:
            ticket.plan.close_ticket(abandoned=True)

    def release_plan(self, plan: ReadPlan) -> None:
        assert isinstance(plan, _Plan)
        with self._lock:
            if plan.release() and not self._closed:
                plan.source.plans -= 1
                self._agent.releasedDlistH(plan.local)
                self._agent.releasedDlistH(plan.remote)

    def close(self) -> None:
        """See Transport. Reads still pending take a stopped source down over TCP (see above)."""
        with self._lock:
            self._closed = True
            self._peers.clear()
            self._regions.clear()
            self._agent = None  # the last reference: NIXL ends its threads and lets go of all memory

    def _prepare_side(self, agent: str, regions: Sequence[Region]) -> int:
        rows = np.array([(r.address, r.nbytes, r.device_index) for r in regions], dtype=np.uint64)
        try:
            descriptors = self._nixl.nixlXferDList(self._memory_type(regions[0]), rows)
            handle: int = self._agent.prepXferDlist(agent, descriptors, [self._backend])
        except self._errors as error:
            raise PeerUnknown(f"reads from {agent!r} could not be prepared: {error}") from error
        return handle

    def _registration(self, region: Region) -> Any:
        rows = [(region.address, region.nbytes, region.device_index, "")]
        return self._nixl.nixlRegDList(self._memory_type(region), rows)

    def _memory_type(self, region: Region) -> Any:
        return self._nixl.VRAM_SEG if region.kind == "VRAM" else self._nixl.DRAM_SEG

    def _state(self, status: Any) -> ReadState:
        if status == self._nixl.NIXL_SUCCESS:
            return DONE
        if status == self._nixl.NIXL_IN_PROG:
            return PENDING
        return ReadState(ReadStatus.FAILED, str(status))

    def _invalidate(self, peer: str) -> None:
        with contextlib.suppress(*self._errors):  # NIXL may have forgotten it already
            self._agent.invalidateRemoteMD(peer)

    def _check_open(self) -> None:
        if self._closed:
            raise TransportClosed(f"transport {self.name!r} is closed")


def _import_bindings() -> Any:
    os.environ.setdefault("UCX_RCACHE_MAX_UNRELEASED", "1024")  # its cache of registrations grows without
    reasons = []
    for module in _MODULES:
        try:
            return importlib.import_module(f"{module}._bindings")
        except ImportError as error:
            reasons.append(f"{module}: {error}")
    raise TransportUnavailable(f"NIXL is not installed (pip install nixl). {'; '.join(reasons)}")


def _error_classes(nixl: Any) -> tuple[type[Exception], ...]:
    """NIXL's errors have no base of their own."""
    classes = (each for each in vars(nixl).values() if isinstance(each, type))
    return tuple(each for each in classes if issubclass(each, Exception))


def _failed(ticket: _Ticket, error: Exception) -> ReadState:
    return ReadState(ReadStatus.FAILED, f"read from {ticket.plan.peer!r}: {error}")
