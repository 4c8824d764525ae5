"""What every transport promises. Runs on each of them."""

from __future__ import annotations

import os
import pickle

import pytest

from ray_weights.memory.arena import Region
from ray_weights.transports.transport import (
    PeerUnknown,
    ReadStatus,
    Transport,
    TransportClosed,
)
from tests.integration.transports.reading import MakeTransport, chunks, empty_arena, filled_arena, read, wait

NBYTES = 1 << 20
CHUNK = 64 << 10


def connected(make: MakeTransport, *regions: tuple[Region, Region]) -> tuple[Transport, Transport]:
    """A source and a reader that knows it; each pair is (the source's region, the reader's)."""
    source, reader = make("source"), make("reader")
    for theirs, mine in regions:
        source.register(theirs)
        reader.register(mine)
    reader.connect(source.card())
    return source, reader


def test_every_chunk_of_a_plan_arrives_in_its_place(make: MakeTransport) -> None:
    there, here = filled_arena(NBYTES + 5), empty_arena(NBYTES + 5)
    source, reader = connected(make, (there.data, here.data))
    plan = reader.prepare(source.name, chunks(here.data, CHUNK), chunks(there.data, CHUNK))
    assert (plan.peer, len(plan)) == (source.name, 17)
    for index in reversed(range(len(plan))):
        assert read(reader, plan, index).status is ReadStatus.DONE
    assert here.view(0, NBYTES + 5) == there.view(0, NBYTES + 5)


def test_a_read_fills_nothing_but_its_own_region(make: MakeTransport) -> None:
    there, here = filled_arena(NBYTES), empty_arena(NBYTES)
    source, reader = connected(make, (there.data, here.data))
    plan = reader.prepare(source.name, [here.data.part(4096, 1000)], [there.data.part(123, 1000)])
    assert read(reader, plan, 0).status is ReadStatus.DONE
    assert here.view(4096, 1000) == there.view(123, 1000)
    assert not any(here.view(0, 4096))
    assert not any(here.view(5096, NBYTES - 5096))


def test_reads_may_be_under_way_side_by_side_and_end_in_any_order(make: MakeTransport) -> None:
    there, here = filled_arena(NBYTES), empty_arena(NBYTES)
    source, reader = connected(make, (there.data, here.data))
    plan = reader.prepare(source.name, chunks(here.data, CHUNK), chunks(there.data, CHUNK))
    tickets = [reader.start(plan, index) for index in range(len(plan))]
    for ticket in reversed(tickets):
        assert wait(reader, ticket).status is ReadStatus.DONE
    for ticket in tickets:
        reader.release(ticket)
    assert here.view(0, NBYTES) == there.view(0, NBYTES)


def test_a_read_sees_what_the_source_has_written_meanwhile(make: MakeTransport) -> None:
    there, here = filled_arena(NBYTES), empty_arena(NBYTES)
    source, reader = connected(make, (there.tail_region, here.tail_region))
    plan = reader.prepare(source.name, [here.tail_region], [there.tail_region])
    for text in (b"one", b"two"):
        there.tail[:3] = text
        assert read(reader, plan, 0).status is ReadStatus.DONE
        assert here.tail[:3] == text


def test_a_receiver_is_a_source_for_others(make: MakeTransport) -> None:
    first, second, third = filled_arena(NBYTES), empty_arena(NBYTES), empty_arena(NBYTES)
    origin, middle = connected(make, (first.data, second.data))
    last = make("last")
    last.register(third.data)
    last.connect(middle.card())
    near = middle.prepare(origin.name, chunks(second.data, CHUNK), chunks(first.data, CHUNK))
    far = last.prepare(middle.name, chunks(third.data, CHUNK), chunks(second.data, CHUNK))
    for index in range(len(near)):
        assert read(middle, near, index).status is ReadStatus.DONE
        assert read(last, far, index).status is ReadStatus.DONE
    assert third.view(0, NBYTES) == first.view(0, NBYTES)


def test_a_plan_may_have_thousands_of_entries(make: MakeTransport) -> None:
    there, here = filled_arena(NBYTES), empty_arena(NBYTES)
    source, reader = connected(make, (there.data, here.data))
    plan = reader.prepare(source.name, chunks(here.data, 256), chunks(there.data, 256))
    assert len(plan) == 4096
    assert read(reader, plan, 4095).status is ReadStatus.DONE
    assert here.view(NBYTES - 256, 256) == there.view(NBYTES - 256, 256)


def test_a_newer_card_adds_memory_and_leaves_plans_as_they_were(make: MakeTransport) -> None:
    there, here = filled_arena(NBYTES), empty_arena(NBYTES)
    source, reader = connected(make, (there.data, here.data))
    early = reader.prepare(source.name, [here.data], [there.data])
    source.register(there.tail_region)
    reader.register(here.tail_region)
    with pytest.raises(PeerUnknown):
        reader.prepare(source.name, [here.tail_region], [there.tail_region])
    assert reader.connect(source.card()) == source.name
    assert reader.connect(source.card()) == source.name
    late = reader.prepare(source.name, [here.tail_region], [there.tail_region])
    there.tail[:5] = b"later"
    assert read(reader, late, 0).status is ReadStatus.DONE
    assert read(reader, early, 0).status is ReadStatus.DONE
    assert (bytes(here.tail[:5]), here.view(0, NBYTES)) == (b"later", there.view(0, NBYTES))


def test_memory_that_was_taken_back_is_in_no_newer_card(make: MakeTransport) -> None:
    there, here = filled_arena(NBYTES), empty_arena(NBYTES)
    source, reader = connected(make, (there.data, here.data))
    source.deregister(there.data)
    reader.connect(source.card())
    with pytest.raises(PeerUnknown):
        reader.prepare(source.name, [here.data], [there.data])


def test_an_address_that_was_registered_anew_can_be_read_by_a_newer_card(make: MakeTransport) -> None:
    there, here = filled_arena(NBYTES), empty_arena(NBYTES)
    source, reader = connected(make, (there.data, here.data))
    reader.release_plan(reader.prepare(source.name, [here.data], [there.data]))
    source.deregister(there.data)
    source.register(there.data.part(0, CHUNK))
    reader.connect(source.card())
    plan = reader.prepare(source.name, [here.data.part(0, CHUNK)], [there.data.part(0, CHUNK)])
    assert read(reader, plan, 0).status is ReadStatus.DONE
    assert here.view(0, CHUNK) == there.view(0, CHUNK)


def test_a_peer_can_be_forgotten_and_met_again(make: MakeTransport) -> None:
    there, here = filled_arena(NBYTES), empty_arena(NBYTES)
    source, reader = connected(make, (there.data, here.data))
    for _ in range(2):
        reader.disconnect(source.name)
    with pytest.raises(PeerUnknown):
        reader.prepare(source.name, [here.data], [there.data])
    reader.connect(source.card())
    plan = reader.prepare(source.name, [here.data], [there.data])
    assert read(reader, plan, 0).status is ReadStatus.DONE


def test_a_peer_stays_connected_while_a_plan_of_it_is_in_use(make: MakeTransport) -> None:
    there, here = filled_arena(NBYTES), empty_arena(NBYTES)
    source, reader = connected(make, (there.data, here.data))
    one = reader.prepare(source.name, [here.data], [there.data])
    other = reader.prepare(source.name, [here.data], [there.data])
    reader.release_plan(one)
    reader.disconnect(source.name)
    assert read(reader, other, 0).status is ReadStatus.DONE
    reader.release_plan(other)
    reader.disconnect(source.name)
    with pytest.raises(PeerUnknown):
        reader.prepare(source.name, [here.data], [there.data])


def test_two_peers_may_read_from_each_other(make: MakeTransport) -> None:
    one, other = filled_arena(NBYTES), filled_arena(NBYTES)
    left, right = connected(make, (one.data, other.data))
    left.connect(right.card())
    half = NBYTES // 2
    forth = right.prepare(left.name, [other.data.part(0, half)], [one.data.part(0, half)])
    back = left.prepare(right.name, [one.data.part(half, half)], [other.data.part(half, half)])
    assert read(right, forth, 0).status is ReadStatus.DONE
    assert read(left, back, 0).status is ReadStatus.DONE
    assert one.view(0, NBYTES) == other.view(0, NBYTES)


@pytest.mark.parametrize(
    "card", [b"", b"junk", b"{}\n", b'{"transport": 1, "peer": "x", "regions": {}}\n', os.urandom(64)]
)
def test_what_is_no_card_is_refused(make: MakeTransport, card: bytes) -> None:
    with pytest.raises(PeerUnknown):
        make("reader").connect(card)


def test_a_truncated_card_is_refused(make: MakeTransport) -> None:
    source, reader = make("source"), make("reader")
    card = source.card()
    with pytest.raises(PeerUnknown):
        reader.connect(card[: len(card) // 3])


def test_regions_that_do_not_match_are_refused(make: MakeTransport) -> None:
    there, here = filled_arena(NBYTES), empty_arena(NBYTES)
    source, reader = connected(make, (there.data, here.data))
    short, whole, outside = here.data.part(0, 10), there.data, Region(here.data.address + NBYTES, 10)
    with pytest.raises(ValueError, match="10 local bytes"):
        reader.prepare(source.name, [short], [whole])
    with pytest.raises(ValueError, match="2 local regions"):
        reader.prepare(source.name, [short, short], [whole])
    with pytest.raises(ValueError, match="not registered"):
        reader.prepare(source.name, [outside], [whole.part(0, 10)])
    with pytest.raises(PeerUnknown, match="remote region 1"):
        reader.prepare(source.name, [short, short], [whole.part(0, 10), Region(whole.address - 5, 10)])


def test_an_entry_that_the_plan_does_not_have_cannot_be_read(make: MakeTransport) -> None:
    there, here = filled_arena(NBYTES), empty_arena(NBYTES)
    source, reader = connected(make, (there.data, here.data))
    plan = reader.prepare(source.name, [here.data], [there.data])
    for index in (-1, 1):
        with pytest.raises(ValueError, match="no entry"):
            reader.start(plan, index)


def test_what_was_released_cannot_be_used(make: MakeTransport) -> None:
    there, here = filled_arena(NBYTES), empty_arena(NBYTES)
    source, reader = connected(make, (there.data, here.data))
    plan = reader.prepare(source.name, [here.data], [there.data])
    ticket = reader.start(plan, 0)
    wait(reader, ticket)
    with pytest.raises(TransportClosed, match="1 reads"):
        reader.release_plan(plan)
    reader.release(ticket)
    with pytest.raises(TransportClosed):
        reader.poll(ticket)
    reader.release_plan(plan)
    reader.release_plan(plan)
    with pytest.raises(TransportClosed):
        reader.start(plan, 0)


def test_a_closed_transport_refuses_everything(make: MakeTransport) -> None:
    reader = make("reader")
    reader.close()
    reader.close()
    with pytest.raises(TransportClosed):
        reader.card()


def test_memory_that_was_never_registered_cannot_be_taken_back(make: MakeTransport) -> None:
    with pytest.raises(ValueError, match="not registered"):
        make("reader").deregister(Region(4096, 10))


def test_errors_survive_the_way_to_another_actor(make: MakeTransport) -> None:
    with pytest.raises(PeerUnknown) as caught:
        make("reader").connect(b"junk")
    copy = pickle.loads(pickle.dumps(caught.value))
    assert (type(copy), str(copy)) == (PeerUnknown, str(caught.value))
