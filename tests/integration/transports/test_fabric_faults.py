"""What can be made to go wrong on the in-memory fabric."""

from __future__ import annotations

import pytest

from ray_weights.memory.host import HostArena
from ray_weights.transports.memory import Fabric, InMemoryTransport
from ray_weights.transports.transport import ReadPlan, ReadStatus, TransportClosed
from tests.integration.transports.reading import chunks, empty_arena, filled_arena

NBYTES = 64 << 10
CHUNK = 16 << 10


class Pair:
    """A source and a reader with a plan of four chunks."""

    def __init__(self, *, immediate: bool) -> None:
        self.fabric = Fabric(immediate=immediate)
        self.source, self.reader = self.fabric.join("source"), self.fabric.join("reader")
        self.there, self.here = filled_arena(NBYTES), empty_arena(NBYTES)
        self.source.register(self.there.data)
        self.reader.register(self.here.data)
        self.reader.connect(self.source.card())
        self.plan = plan_of(self.reader, self.source, self.here, self.there)

    def arrived(self, chunk: int) -> bool:
        return self.here.view(chunk * CHUNK, CHUNK) == self.there.view(chunk * CHUNK, CHUNK)


def plan_of(reader: InMemoryTransport, source: InMemoryTransport, here: HostArena, there: HostArena) -> ReadPlan:
    return reader.prepare(source.name, chunks(here.data, CHUNK), chunks(there.data, CHUNK))


def test_nothing_moves_before_the_fabric_steps() -> None:
    pair = Pair(immediate=False)
    tickets = [pair.reader.start(pair.plan, index) for index in (2, 0, 1)]
    assert [pair.reader.poll(ticket).status for ticket in tickets] == [ReadStatus.PENDING] * 3
    assert pair.fabric.step(1) == 1
    assert [pair.arrived(chunk) for chunk in range(3)] == [False, False, True]
    assert pair.fabric.step() == 2
    assert [pair.reader.poll(ticket).status for ticket in tickets] == [ReadStatus.DONE] * 3


@pytest.mark.parametrize("immediate", [True, False])
def test_a_read_from_a_frozen_peer_lands_after_the_thaw_even_when_it_was_given_up(immediate: bool) -> None:
    pair = Pair(immediate=immediate)
    pair.fabric.freeze("source")
    ticket = pair.reader.start(pair.plan, 0)
    assert pair.fabric.step() == 0
    assert pair.reader.poll(ticket).status is ReadStatus.PENDING
    pair.reader.abandon(ticket)
    pair.reader.release_plan(pair.plan)
    pair.reader.disconnect("source")
    pair.fabric.thaw("source")
    pair.fabric.step()
    assert pair.arrived(0)


def test_a_closed_reader_is_written_to_no_more() -> None:
    pair = Pair(immediate=True)
    pair.fabric.freeze("source")
    pair.reader.abandon(pair.reader.start(pair.plan, 0))
    pair.reader.close()
    pair.fabric.thaw("source")
    assert not any(pair.here.view(0, NBYTES))


def test_reads_from_a_killed_peer_fail_also_those_under_way() -> None:
    pair = Pair(immediate=False)
    early = pair.reader.start(pair.plan, 0)
    pair.fabric.kill("source")
    late = pair.reader.start(pair.plan, 1)
    for ticket in (early, late):
        state = pair.reader.poll(ticket)
        assert (state.status, state.reason) == (ReadStatus.FAILED, "peer 'source' is lost")
        pair.reader.release(ticket)
    assert not any(pair.here.view(0, NBYTES))


def test_every_nth_read_from_a_corrupting_peer_differs_in_one_bit() -> None:
    pair = Pair(immediate=True)
    pair.fabric.corrupt("source", every=3)
    for chunk in range(4):
        pair.reader.start(pair.plan, chunk)
    assert [pair.arrived(chunk) for chunk in range(4)] == [True, True, False, True]
    pair.fabric.corrupt("source", every=0)
    pair.reader.start(pair.plan, 2)
    assert pair.arrived(2)


def test_a_stale_read_of_memory_that_was_taken_back_fails() -> None:
    pair = Pair(immediate=True)
    pair.source.deregister(pair.there.data)
    state = pair.reader.poll(pair.reader.start(pair.plan, 0))
    assert (state.status, "deregistered" in state.reason) == (ReadStatus.FAILED, True)


def test_a_pending_read_can_be_abandoned_but_not_released() -> None:
    pair = Pair(immediate=False)
    ticket = pair.reader.start(pair.plan, 0)
    with pytest.raises(TransportClosed, match="pending"):
        pair.reader.release(ticket)
    with pytest.raises(TransportClosed, match="1 reads"):
        pair.reader.release_plan(pair.plan)
    pair.reader.abandon(ticket)
    pair.reader.release_plan(pair.plan)


def test_names_are_not_used_twice() -> None:
    fabric = Fabric()
    fabric.join("one").close()
    with pytest.raises(ValueError, match="one"):
        fabric.join("one")
