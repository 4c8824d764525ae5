"""Arenas and reads as the tests of transports use them."""

from __future__ import annotations

import os
import random
import time
import uuid
from collections.abc import Callable

from ray_weights.memory.arena import Region
from ray_weights.memory.host import HostArena
from ray_weights.transports.transport import ReadPlan, ReadState, ReadStatus, ReadTicket, Transport

MakeTransport = Callable[[str], Transport]

READ_TIMEOUT_S = 60.0


def wait(transport: Transport, ticket: ReadTicket) -> ReadState:
    """Poll until the read has ended."""
    deadline = time.monotonic() + READ_TIMEOUT_S
    while (state := transport.poll(ticket)).status is ReadStatus.PENDING:
        assert time.monotonic() < deadline, "the read neither ended nor failed"
        os.sched_yield()
    return state


def read(transport: Transport, plan: ReadPlan, index: int) -> ReadState:
    """One read from start to release."""
    ticket = transport.start(plan, index)
    state = wait(transport, ticket)
    transport.release(ticket)
    return state


def chunks(region: Region, nbytes: int) -> list[Region]:
    """The region in parts of `nbytes`, the last one shorter."""
    return [region.part(at, min(nbytes, region.nbytes - at)) for at in range(0, region.nbytes, nbytes)]


def filled_arena(nbytes: int, tail_nbytes: int = 4096) -> HostArena:
    arena = HostArena.create(f"test:{uuid.uuid4().hex}", nbytes, tail_nbytes)
    arena.view(0, nbytes)[:] = os.urandom(nbytes)
    return arena


def empty_arena(nbytes: int, tail_nbytes: int = 4096) -> HostArena:
    return HostArena.create(f"test:{uuid.uuid4().hex}", nbytes, tail_nbytes)


def pattern(nbytes: int) -> bytes:
    """Bytes that two processes make alike, in which every megabyte differs."""
    return random.Random(7).randbytes(nbytes)
