"""A receiver with children dies, an engine dies, a transfer actor dies under its engine, a whole node dies."""

from __future__ import annotations

import time

import ray

from tests.integration.faults.conftest import SETTINGS
from tests.integration.faults.engines import Opening, Weights
from tests.integration.faults.fleet import PATIENCE, Fleet, wait_until
from tests.integration.faults.record import Recorder

WINDOW_NBYTES = SETTINGS.window * (SETTINGS.chunk_nbytes or 0)


def test_children_of_a_receiver_that_dies_go_on_from_somebody_else(fleet: Fleet, recorder: Recorder):
    weights = Weights("receiver with children dies")
    fleet.seed(0, weights)
    answers = fleet.chain(weights, 1, 2, 3)
    fleet.wait_for_share(1, weights, 0.3)
    fleet.kill(fleet.transfer_pid(1))
    again: Opening = ray.get(answers[0], timeout=PATIENCE)
    assert again.outcome == "arrived"
    openings: list[Opening] = ray.get(answers[1:], timeout=PATIENCE)
    assert all(o.stats and o.stats.read_again_nbytes <= WINDOW_NBYTES for o in openings)
    wrong = fleet.wrong_bytes(weights, 1, 2, 3)
    assert wrong == 0
    for index in (0, 2, 3):
        wait_until(lambda i=index: not children(fleet, i, weights), f"no lease is left on host {index}")
    recorder.row(
        "receiver dies with children below it",
        how="SIGKILL to its transfer actor at 30%",
        happened="its children move to its upstream; its engine asks the restarted actor and receives from the start",
        openings=openings,
        wrong_bytes=wrong,
    )
    fleet.clean_up(weights)


def children(fleet: Fleet, index: int, weights: Weights) -> tuple[str, ...]:
    """Readers that hold a lease on a host's arena."""
    p = fleet.progress(index, weights)
    assert p is not None
    return p.children


def test_an_arena_serves_on_when_its_engine_dies(fleet: Fleet, recorder: Recorder):
    weights = Weights("serving engine dies")
    fleet.seed(0, weights)
    answer = fleet.get(1, weights)
    fleet.wait_for_share(1, weights, 0.2)
    fleet.kill(ray.get(fleet.engine(0).pid.remote(), timeout=PATIENCE))
    opening: Opening = ray.get(answer, timeout=PATIENCE)
    assert opening.stats is not None and opening.stats.read_again_nbytes == 0
    fleet.renew_engine(0)
    started = time.monotonic()
    back: Opening = ray.get(fleet.get(0, weights), timeout=PATIENCE)
    mapped_again = time.monotonic() - started
    assert back.outcome == "arrived" and back.stats is None  # mapped again, nothing moved
    wrong = fleet.wrong_bytes(weights, 0, 1)
    assert wrong == 0
    recorder.row(
        "engine dies while its arena serves others",
        how="SIGKILL to the source's engine at 20%",
        happened=f"the receiver notices nothing; a new engine maps the arena again in {mapped_again:.1f} s",
        openings=[opening],
        wrong_bytes=wrong,
    )
    fleet.clean_up(weights)


def test_a_restarted_transfer_actor_takes_up_the_arena_that_its_engine_holds(fleet: Fleet, recorder: Recorder):
    weights = Weights("transfer actor dies")
    fleet.seed(0, weights)
    before = fleet.transfer_pid(0)
    started = time.monotonic()
    fleet.kill(before)
    assert fleet.wrong_bytes(weights, 0) == 0  # the engine serves on
    wait_until(
        lambda: (m := fleet.member(0)) is not None and m.pid != before and fleet.state(0, weights) == "ready",
        "the shard is a source again",
    )
    outage = time.monotonic() - started
    opening: Opening = ray.get(fleet.get(1, weights), timeout=PATIENCE)
    assert opening.outcome == "arrived" and opening.stats is not None, "\n".join(fleet.story(weights))
    wrong = fleet.wrong_bytes(weights, 0, 1)
    assert wrong == 0
    recorder.row(
        "transfer actor dies under an engine",
        how="SIGKILL to the only source's transfer actor, nobody receiving",
        happened=f"the engine serves on; the restarted actor checks the memfd and is a source again after {outage:.1f} "
        "s; storage is not read again",
        openings=[opening],
        wrong_bytes=wrong,
    )
    fleet.clean_up(weights)


def test_receivers_outlive_the_node_that_they_read_from(fleet: Fleet, recorder: Recorder):
    weights = Weights("node dies")
    fleet.seed(0, weights)
    # Where the coordinator dies with the node, its children wait until Ray has noticed and restarted it.
    coordinator = fleet.coordinator_pid()
    victim = next(i for i in (3, 2) if coordinator not in fleet.processes(i))
    answers = fleet.chain(weights, victim, 1, 5 - victim)
    fleet.wait_for_share(victim, weights, 0.3)
    fleet.kill_node(victim)
    openings: list[Opening] = ray.get(answers[1:], timeout=PATIENCE)
    assert all(o.outcome == "arrived" for o in openings)
    wrong = fleet.wrong_bytes(weights, 0, 1, 5 - victim)
    assert wrong == 0
    wait_until(lambda: fleet.member(victim) is None, "the coordinator has forgotten the member")
    fleet.replace_node(victim)
    later: Opening = ray.get(fleet.get(victim, weights), timeout=PATIENCE)
    assert later.outcome == "arrived" and fleet.wrong_bytes(weights, victim) == 0
    recorder.row(
        "a node dies",
        how="SIGKILL to its raylet and every process of it at 30%, with two receivers below it",
        happened="its children move to its upstream; a new node receives as any other",
        openings=openings,
        wrong_bytes=wrong,
    )
    fleet.clean_up(weights)
