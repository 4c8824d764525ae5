"""The receiver's machine: what it reads, from whom, and when it leaves."""

from __future__ import annotations

import math

import pytest

from ray_weights.core import receiving as r
from ray_weights.core.link import ReceiverOptions
from ray_weights.core.page import PageState, PageView
from ray_weights.core.receiver import Receiver
from ray_weights.schemas.messages import LossKind

OPTIONS = ReceiverOptions(window=3, spacing=0)


class Bench:
    """A receiver at a clock of its own; keeps what it asked for."""

    def __init__(self, chunks: int = 8, options: ReceiverOptions = OPTIONS, verified: frozenset[int] = frozenset()):
        self.now = 0.0
        self.chunks = chunks
        self.receiver = Receiver(chunks, self.now, options, verified)
        self.log: list[r.Command] = []

    def tell(self, event: r.Event) -> list[r.Command]:
        out = self.receiver.handle(event, self.now)
        self.log += out
        return out

    def assign(self, *upstreams: str) -> list[r.Command]:
        return self.tell(r.Assigned(upstreams))

    def connect(self, *upstreams: str, ready: str | None = None) -> list[r.Command]:
        """Assign, connect, and show each upstream's page: all ready, or "1101..."."""
        self.assign(*upstreams)
        out: list[r.Command] = []
        for upstream in dict.fromkeys(upstreams):
            self.tell(r.Connected(upstream))
            out += self.page(upstream, ready)
        return out

    def page(self, upstream: str, ready: str | None = None, state: PageState = PageState.SERVING) -> list[r.Command]:
        shown = bytes(int(x) for x in ready.ljust(self.chunks, "0")) if ready is not None else b"\1" * self.chunks
        return self.tell(r.PageSeen(upstream, PageView(state, shown)))

    def arrive(self, chunk: int) -> list[r.Command]:
        self.now += 0.01
        return self.tell(r.Arrived(chunk, self.receiver.generation))

    def verify(self, *chunks: int) -> list[r.Command]:
        out: list[r.Command] = []
        for chunk in chunks:
            out += self.arrive(chunk)
            out += self.tell(r.Verified(chunk, self.receiver.generation))
        return out

    def wait(self, seconds: float) -> list[r.Command]:
        self.now += seconds
        return self.tell(r.Tick())

    def reads(self, out: list[r.Command] | None = None) -> list[int]:
        return [c.chunk for c in (self.log if out is None else out) if isinstance(c, r.ReadChunk)]

    def reports(self, out: list[r.Command] | None = None) -> list[tuple[str, LossKind]]:
        return [(c.upstream, c.kind) for c in (self.log if out is None else out) if isinstance(c, r.Report)]


def kinds(out: list[r.Command]) -> list[type[object]]:
    return [type(c) for c in out]


# Reading


def test_it_connects_to_the_upstream_it_is_assigned() -> None:
    assert Bench().assign("a") == [r.Connect("a")]


def test_it_looks_at_the_page_before_it_reads() -> None:
    b = Bench()
    b.assign("a")
    assert b.tell(r.Connected("a")) == [r.ReadPage("a", 0.0)]


def test_it_reads_in_order_a_window_at_a_time() -> None:
    b = Bench()
    assert b.reads(b.connect("a")) == [0, 1, 2]
    assert b.reads(b.arrive(0)) == [3]
    assert b.reads(b.arrive(2)) == [4]


def test_a_chunk_is_advertised_only_once_it_is_verified() -> None:
    b = Bench()
    b.connect("a")
    assert r.Advertise(0) not in b.arrive(0)
    assert b.tell(r.Verified(0, 0))[0] == r.Advertise(0)


def test_it_finishes_when_every_chunk_is_verified() -> None:
    b = Bench(chunks=3)
    b.connect("a")
    assert b.verify(0, 1, 2)[-2:] == [r.Disconnect("a"), r.Finish()]
    assert b.receiver.done and b.receiver.handle(r.Tick(), 99.0) == []


def test_an_empty_shard_finishes_at_once() -> None:
    assert r.Finish() in Bench(chunks=0).assign("a")


def test_the_page_is_not_read_again_while_enough_ready_chunks_are_known() -> None:
    b = Bench()
    assert r.ReadPage not in kinds(b.connect("a", ready="1111"))


def test_the_page_is_read_again_when_ready_chunks_run_short() -> None:
    b = Bench()
    out = b.connect("a", ready="11")
    assert b.reads(out) == [0, 1]
    look = out[-1]
    assert isinstance(look, r.ReadPage) and look.at > b.now


def test_only_one_page_read_is_under_way_at_a_time() -> None:
    b = Bench()
    b.connect("a", ready="11")
    assert r.ReadPage not in kinds(b.arrive(0))


def test_the_page_of_a_complete_upstream_is_never_read_again() -> None:
    b = Bench(chunks=4)
    b.connect("a")
    assert r.ReadPage not in kinds(b.verify(0, 1, 2))


def test_a_hole_in_the_page_is_read_around_and_filled_later() -> None:
    b = Bench()
    assert b.reads(b.connect("a", ready="10110000")) == [0, 2, 3]
    b.verify(0, 2)
    assert b.reads(b.page("a", "11111000")) == [1, 4]


def test_with_two_stripes_each_upstream_serves_its_own_chunks() -> None:
    b = Bench()
    b.connect("a", "b")
    sources = {c.chunk: c.upstream for c in b.log if isinstance(c, r.ReadChunk)}
    assert sources == {0: "a", 2: "a", 1: "b", 3: "b"}


def test_one_upstream_for_both_stripes_is_read_in_order() -> None:
    b = Bench()
    assert b.reads(b.connect("a", "a")) == [0, 1, 2]


def test_it_counts_what_came_from_members_that_were_receiving_themselves() -> None:
    b = Bench(chunks=4)
    b.connect("a", ready="11")
    b.verify(0, 1)
    b.page("a")
    b.verify(2, 3)
    assert b.receiver.from_receivers == 2
    assert b.receiver.read_from == {"a": 4}


# Bad chunks and failed reads


def test_a_corrupt_chunk_is_reported_and_read_elsewhere() -> None:
    b = Bench(chunks=2)
    b.connect("a")
    b.arrive(0)
    out = b.tell(r.Corrupt(0, 0))
    assert b.reports(out) == [("a", "corrupt")]
    b.verify(1)
    out = b.connect("b")
    assert b.reads(out) == [0]
    assert b.receiver.read_again == 1


def test_nothing_more_is_read_from_an_upstream_that_sent_a_corrupt_chunk() -> None:
    b = Bench()
    b.connect("a")
    b.arrive(0)
    out = b.tell(r.Corrupt(0, 0)) + b.verify(1, 2)
    assert r.Disconnect("a") not in out
    out += b.verify(3)
    assert b.reads(out) == [] and r.Disconnect("a") in out


def test_a_failed_read_is_reported_as_a_dead_upstream() -> None:
    b = Bench()
    b.connect("a")
    assert b.reports(b.tell(r.ReadFailed(0, 0, "gone"))) == [("a", "dead")]


def test_several_failed_reads_of_one_upstream_are_one_report() -> None:
    b = Bench()
    b.connect("a")
    for chunk in (0, 1, 2):
        b.tell(r.ReadFailed(chunk, 0, "gone"))
    assert b.reports() == [("a", "dead")]


def test_after_a_failure_it_resumes_at_its_own_counter() -> None:
    b = Bench()
    b.connect("a")
    b.verify(0, 1)
    for chunk in (2, 3, 4):
        b.tell(r.ReadFailed(chunk, 0, "gone"))
    assert b.reads(b.connect("b")) == [2, 3, 4]
    assert b.receiver.read_again == 3


def test_an_unanswered_report_is_repeated() -> None:
    b = Bench()
    b.connect("a")
    for chunk in (0, 1, 2):
        b.tell(r.ReadFailed(chunk, 0, "gone"))
    assert b.reports(b.wait(2.1)) == [("a", "dead")]
    b.assign("b")
    assert b.reports(b.wait(2.1)) == []


@pytest.mark.parametrize("kind", ["unreachable", "stale", "dead"])
def test_a_link_that_fails_is_left_and_reported(kind: LossKind) -> None:
    b = Bench()
    b.assign("a")
    out = b.tell(r.LinkFailed("a", kind, "no route"))
    assert out == [r.Report("a", kind, "no route"), r.Disconnect("a")]


# Stalls


def test_reads_that_make_no_progress_are_given_up_on_with_their_arena() -> None:
    b = Bench()
    b.connect("a")
    b.verify(0)
    out = b.wait(60)
    moved = out[0]
    assert isinstance(moved, r.Relocate) and moved.generation == 1 and moved.verified == (0,)
    assert b.reports(out) == [("a", "stalled")]


def test_whatever_a_given_up_read_still_says_is_ignored() -> None:
    b = Bench()
    b.connect("a")
    b.wait(60)
    for event in (r.Arrived(0, 0), r.ReadFailed(1, 0, "late"), r.Verified(2, 0), r.Corrupt(2, 0)):
        assert b.tell(event) == []
    assert b.receiver.verified_count == 0


def test_nothing_is_read_until_the_arena_has_moved() -> None:
    b = Bench()
    b.connect("a")
    b.wait(60)
    assert b.reads(b.connect("b")) == []
    assert b.reads(b.tell(r.Relocated(1))) == [0, 1, 2]


def test_what_was_in_flight_elsewhere_is_read_again_into_the_new_arena() -> None:
    b = Bench()
    b.connect("a", "b")
    b.arrive(0)
    b.wait(0.5)
    for chunk in (1, 3, 5):
        b.arrive(chunk)
    b.wait(60)
    b.assign("c", "b")
    out = b.tell(r.Relocated(b.receiver.generation))
    assert all(c.generation == 1 for c in out if isinstance(c, r.ReadChunk))


def test_a_read_is_waited_for_longer_after_each_stall_before_anything_ever_arrived() -> None:
    b = Bench()
    b.connect("a")
    first = b.receiver.next_wakeup() - b.now
    b.wait(first)
    b.tell(r.Relocated(1))
    b.connect("b")
    assert b.receiver.next_wakeup() - b.now == pytest.approx(2 * first)


def test_an_upstream_with_nothing_new_is_reported_and_kept_meanwhile() -> None:
    b = Bench()
    b.connect("a", ready="1")
    b.verify(0)
    for _ in range(5):
        b.page("a", "1")
        b.wait(2)
    b.page("a", "1")
    out = b.wait(2)
    assert b.reports(out) == [("a", "starved")]
    assert r.Disconnect("a") not in out
    assert b.reads(b.page("a", "11")) == [1]


def test_an_upstream_that_owes_nothing_any_more_is_not_reported() -> None:
    b = Bench(chunks=4)
    b.connect("a", "b", ready="1010")
    b.verify(0, 2)
    for _ in range(20):
        b.wait(2)
        b.page("b", "1010")
    assert ("a", "starved") not in b.reports()
    assert ("b", "starved") in b.reports()


def test_a_page_that_cannot_be_read_is_a_stall() -> None:
    b = Bench()
    b.assign("a")
    b.tell(r.Connected("a"))
    assert b.reports(b.wait(11)) == [("a", "stalled")]


def test_a_page_that_could_be_read_before_stalls_sooner() -> None:
    b = Bench()
    b.connect("a", ready="11")
    b.verify(0, 1)
    assert b.reports(b.wait(OPTIONS.stall_seconds + 0.1)) == [("a", "stalled")]


def test_an_upstream_that_never_grants_a_lease_is_unreachable() -> None:
    b = Bench()
    b.assign("a")
    assert b.reports(b.wait(10.1)) == [("a", "unreachable")]


# Moving


def test_a_page_that_moved_takes_a_new_lease_with_the_same_member() -> None:
    b = Bench()
    b.connect("a", ready="1")
    b.verify(0)
    assert b.page("a", state=PageState.MOVED) == [r.Disconnect("a"), r.Connect("a")]


def test_a_moved_upstream_is_reopened_only_when_its_reads_have_ended() -> None:
    b = Bench()
    b.connect("a", ready="11")
    assert b.page("a", "11", state=PageState.MOVED) == []
    assert r.Disconnect("a") not in b.verify(0)
    assert b.verify(1)[:3].count(r.Disconnect("a")) == 1 and b.log[-1] != r.Disconnect("a")
    assert r.Connect("a") in b.log[1:]


@pytest.mark.parametrize("page", [PageView(PageState.CLOSED, b"\1" * 8), PageView(PageState.SERVING, b"\1" * 7)])
def test_a_page_that_is_closed_or_of_another_size_is_stale(page: PageView) -> None:
    b = Bench()
    b.connect("a", ready="1")
    assert b.reports(b.tell(r.PageSeen("a", page))) == [("a", "stale")]


def test_a_new_assignment_lets_the_reads_in_flight_end() -> None:
    b = Bench()
    b.connect("a")
    out = b.assign("b")
    assert r.Disconnect("a") not in out and r.Connect("b") in out
    b.tell(r.Connected("b"))
    assert b.reads(b.page("b")) == [3, 4, 5]
    b.verify(0, 1)
    assert r.Disconnect("a") in b.verify(2)
    assert b.receiver.read_again == 0


def test_an_assignment_repeated_changes_nothing() -> None:
    b = Bench()
    b.connect("a")
    assert b.assign("a") == []


def test_an_upstream_assigned_again_while_its_reads_drain_is_opened_again() -> None:
    b = Bench()
    b.connect("a")
    b.assign("b")
    b.assign("a")
    out = b.verify(0, 1, 2)
    assert out.count(r.Disconnect("a")) == 1 and out.count(r.Connect("a")) == 1


def test_an_upstream_that_was_dropped_for_good_is_not_opened_again() -> None:
    b = Bench()
    b.connect("a")
    b.assign("b")
    b.assign("a")
    b.assign("b")
    assert r.Connect("a") not in b.verify(0, 1, 2)


def test_a_lease_that_comes_too_late_is_given_back() -> None:
    b = Bench()
    b.assign("a")
    b.assign("b")
    assert b.tell(r.Connected("a")) == [r.Disconnect("a")]


def test_one_stripe_changes_to_two_and_back() -> None:
    b = Bench()
    b.connect("a")
    b.assign("a", "b")
    b.tell(r.Connected("b"))
    assert b.reads(b.page("b")) == [3, 5]
    b.assign("b")
    b.verify(*[c for c in (0, 1, 2, 3, 5)])
    assert sorted(set(b.reads())) == list(range(8))


def test_one_that_resumes_reads_only_what_is_missing() -> None:
    b = Bench(verified=frozenset({0, 1, 4}))
    assert b.reads(b.connect("a")) == [2, 3, 5]
    assert b.receiver.verified_chunks() == (0, 1, 4)


# Waking up


def test_before_the_first_assignment_there_is_nothing_to_wake_for() -> None:
    assert Bench().receiver.next_wakeup() == math.inf


def test_it_never_asks_to_be_woken_in_the_past_for_ever() -> None:
    b = Bench()
    b.connect("a", ready="1")
    b.verify(0)
    for _ in range(50):
        at = b.receiver.next_wakeup()
        assert at > b.now
        b.wait(at - b.now)


@pytest.mark.parametrize("after", ["assigned", "connected", "reading", "starving", "asking"])
def test_whatever_never_happens_it_wakes_up_and_says_so(after: str) -> None:
    b = Bench()
    b.assign("a")
    if after != "assigned":
        b.tell(r.Connected("a"))
    if after == "reading":
        b.page("a")
    if after == "starving":
        b.page("a", "0")
    if after == "asking":
        b.tell(r.LinkFailed("a", "dead", ""))
    before = len(b.reports())
    at = b.receiver.next_wakeup()
    assert at < math.inf
    assert len(b.reports() + b.reports(b.wait(at - b.now))) > before


# Spacing


def test_the_first_read_of_an_upstream_is_alone_and_the_next_ones_begin_one_after_another() -> None:
    b = Bench(options=ReceiverOptions(window=3, spacing=0.5))
    assert b.reads(b.connect("a")) == [0]
    b.now += 0.09
    assert b.reads(b.arrive(0)) == [1], "it took 0.1 s"
    assert b.receiver.next_wakeup() == pytest.approx(b.now + 0.05)
    assert b.reads(b.wait(0.02)) == []
    assert b.reads(b.wait(0.031)) == [2]
    assert b.reads(b.wait(0.051)) == [3]
    assert b.reads(b.wait(0.051)) == [], "the window is full"
    assert b.receiver.next_wakeup() > b.now + 1


def test_a_read_that_was_held_back_is_forgotten_when_its_upstream_is_left() -> None:
    b = Bench(options=ReceiverOptions(window=3, spacing=0.5))
    b.connect("a")
    b.now += 0.09
    b.arrive(0)
    assert b.receiver.next_wakeup() < b.now + 0.1
    b.assign("b")
    assert b.receiver.next_wakeup() > b.now + 1, "or it would be woken for nothing until the last read has ended"


def test_one_long_wait_hardly_slows_the_reads_after_it() -> None:
    b = Bench(options=ReceiverOptions(window=2, spacing=0.5))
    b.connect("a")
    b.now += 0.09
    b.arrive(0)
    b.now += 10.0
    b.arrive(1)
    assert b.receiver.next_wakeup() - b.now < 0.1


# Measuring


def test_a_flow_is_measured_only_while_it_is_busy() -> None:
    b = Bench(options=ReceiverOptions(window=1, measure_chunks=2))
    b.connect("a", ready="1")
    b.now += 0.09
    b.arrive(0)
    b.now += 5.0
    b.page("a")
    b.now += 0.09
    out = b.arrive(1)
    measured = [c for c in out if isinstance(c, r.Measured)]
    assert len(measured) == 1 and measured[0].chunks_per_second == pytest.approx(10.0)
    assert r.Measured not in kinds(b.arrive(2))


def test_a_flow_is_measured_again_when_it_has_become_much_slower() -> None:
    b = Bench(options=ReceiverOptions(window=1, measure_chunks=2))
    b.connect("a")
    told = []
    for chunk, seconds in enumerate((0.09, 0.09, 0.14, 0.14, 0.39, 0.39)):
        b.now += seconds
        told += [c.chunks_per_second for c in b.arrive(chunk) if isinstance(c, r.Measured)]
    assert told == [pytest.approx(10.0), pytest.approx(2.5)]


def test_nothing_is_measured_unless_asked_for() -> None:
    b = Bench()
    b.connect("a")
    b.verify(*range(7))
    assert r.Measured not in kinds(b.log)
