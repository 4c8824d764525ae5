"""The upstream of a receiver dies, freezes, slows down, cannot be asked, frees its memory."""

from __future__ import annotations

import threading
import time

import ray

from tests.integration.faults.conftest import SETTINGS
from tests.integration.faults.engines import Opening, Weights
from tests.integration.faults.fleet import PATIENCE, Fleet, wait_until
from tests.integration.faults.record import Recorder

WINDOW_NBYTES = SETTINGS.window * (SETTINGS.chunk_nbytes or 0)


def two_sources(fleet: Fleet, weights: Weights) -> None:
    """Hosts 0 and 1 are complete."""
    fleet.seed(0, weights)
    ray.get(fleet.get(1, weights), timeout=PATIENCE)


def receive_until(fleet: Fleet, weights: Weights, share: float) -> tuple[ray.ObjectRef, int]:
    """Host 2 receives and has this share; with the host that it reads from."""
    answer = fleet.get(2, weights)
    fleet.wait_for_share(2, weights, share)
    return answer, fleet.upstream(2, weights)


def test_a_receiver_whose_upstream_is_killed_goes_on_from_another(fleet: Fleet, recorder: Recorder):
    weights = Weights("upstream killed")
    two_sources(fleet, weights)
    answer, upstream = receive_until(fleet, weights, 0.2)
    fleet.kill(fleet.transfer_pid(upstream))
    opening: Opening = ray.get(answer, timeout=PATIENCE)
    assert opening.outcome == "arrived" and opening.stats is not None
    assert opening.stats.read_again_nbytes <= WINDOW_NBYTES
    assert len(opening.stats.upstream_nbytes) == 2
    wrong = fleet.wrong_bytes(weights, 0, 1, 2)
    assert wrong == 0
    recorder.row(
        "upstream dies",
        how="SIGKILL to its transfer actor at 20%",
        happened="the reads fail, the receiver goes on from the other source at its own counter",
        openings=[opening],
        wrong_bytes=wrong,
    )
    fleet.clean_up(weights)


def test_what_a_frozen_upstream_sends_later_damages_nothing(fleet: Fleet, recorder: Recorder):
    weights = Weights("upstream frozen")
    two_sources(fleet, weights)
    answer, upstream = receive_until(fleet, weights, 0.2)
    frozen = fleet.transfer_pid(upstream)
    fleet.freeze(frozen)
    opening: Opening = ray.get(answer, timeout=PATIENCE)
    assert opening.outcome == "arrived" and opening.stats is not None
    assert fleet.wrong_bytes(weights, 2) == 0
    fleet.thaw(frozen)
    wait_until(lambda: fleet.progress(upstream, weights), "the upstream answers again")
    wrong = fleet.wrong_bytes(weights, 0, 1, 2)
    assert wrong == 0
    assert any("stalled" in line for line in fleet.story(weights))
    # Host 2 is a source like any other, also from the arena that it moved to.
    later: Opening = ray.get(fleet.get(3, weights), timeout=PATIENCE)
    assert later.outcome == "arrived" and fleet.wrong_bytes(weights, 3) == 0
    assert opening.stats.read_again_nbytes <= WINDOW_NBYTES
    recorder.row(
        "upstream freezes",
        how=f"SIGSTOP to its transfer actor at 20%, SIGCONT later; stall_seconds {SETTINGS.stall_seconds}",
        happened="given up on after stall_seconds; the arena moves, so what lands after SIGCONT lands in memory that "
        "nobody uses",
        openings=[opening],
        wrong_bytes=wrong,
    )
    fleet.clean_up(weights)


def test_children_of_a_receiver_whose_arena_moved_follow_it(fleet: Fleet, recorder: Recorder):
    weights = Weights("upstream of a chain frozen")
    two_sources(fleet, weights)
    answer, upstream = receive_until(fleet, weights, 0.1)
    child = fleet.get(3, weights)
    frozen = fleet.transfer_pid(upstream)
    fleet.freeze(frozen)
    openings: list[Opening] = ray.get([answer, child], timeout=PATIENCE)
    fleet.thaw(frozen)
    wait_until(lambda: fleet.progress(upstream, weights), "the upstream answers again")
    wrong = fleet.wrong_bytes(weights, 0, 1, 2, 3)
    assert wrong == 0
    recorder.row(
        "upstream of a receiver with children freezes",
        how="SIGSTOP to its transfer actor at 10%, SIGCONT when all is there",
        happened="the receiver's arena moves; its children find that in its page and take new leases",
        openings=openings,
        wrong_bytes=wrong,
    )
    fleet.clean_up(weights)


def test_a_source_that_cannot_be_asked_is_passed_over(fleet: Fleet, recorder: Recorder):
    weights = Weights("source does not answer")
    two_sources(fleet, weights)
    frozen = fleet.transfer_pid(1)  # it has served nobody yet, so it is whom the next receiver is sent to
    fleet.freeze(frozen)
    openings: list[Opening] = [ray.get(fleet.get(2, weights), timeout=PATIENCE)]
    fleet.thaw(frozen)
    wrong = fleet.wrong_bytes(weights, 2)
    assert wrong == 0
    assert any("unreachable" in line for line in fleet.story(weights)), fleet.story(weights)
    recorder.row(
        "a source is frozen before it is asked",
        how="SIGSTOP to its transfer actor, then a receiver",
        happened="no answer to the handshake within 10 s: unreachable, the other source is taken",
        openings=openings,
        wrong_bytes=wrong,
    )
    fleet.clean_up(weights)


def test_a_slow_upstream_slows_nobody_for_longer_than_it_takes_to_notice(fleet: Fleet, recorder: Recorder):
    weights = Weights("upstream slow")
    fleet.seed(0, weights)
    slow = fleet.transfer_pid(1)
    ended = threading.Event()

    def stop_and_go() -> None:
        """Runs for a quarter of the time."""
        while not ended.is_set():
            fleet.freeze(slow)
            ended.wait(0.09)
            fleet.thaw(slow)
            ended.wait(0.03)

    thread = threading.Thread(target=stop_and_go)
    thread.start()
    try:
        answers = fleet.chain(weights, 1, 2, 3)
        started = time.monotonic()
        healthy_ones: list[Opening] = ray.get(answers[1:], timeout=PATIENCE)
        seconds = time.monotonic() - started
        openings = [*healthy_ones, ray.get(answers[0], timeout=PATIENCE)]
    finally:
        ended.set()
        thread.join()
    wrong = fleet.wrong_bytes(weights, 1, 2, 3)
    assert wrong == 0
    assert any("made a leaf" in line for line in fleet.story(weights)), "\n".join(fleet.story(weights))
    recorder.row(
        "upstream is slow",
        how="its transfer actor runs a quarter of the time (SIGSTOP and SIGCONT in turns)",
        happened="its children measure it; it becomes a leaf and they read from others (seconds: of those)",
        openings=openings,
        wrong_bytes=wrong,
        seconds=seconds,
    )
    fleet.clean_up(weights)


def test_a_source_that_frees_its_memory_waits_for_its_readers(fleet: Fleet, recorder: Recorder):
    weights = Weights("source drops")
    two_sources(fleet, weights)
    answer, upstream = receive_until(fleet, weights, 0.2)
    ray.get(fleet.engine(upstream).drop.remote(weights), timeout=PATIENCE)
    assert fleet.progress(upstream, weights) is None
    opening: Opening = ray.get(answer, timeout=PATIENCE)
    wrong = fleet.wrong_bytes(weights, 2)
    assert wrong == 0 and opening.outcome == "arrived"
    recorder.row(
        "upstream frees the shard",
        how="drop() on it at 20%",
        happened="its page says so; the receiver leaves, gives its lease back and only then the memory goes",
        openings=[opening],
        wrong_bytes=wrong,
    )
    fleet.clean_up(weights)
