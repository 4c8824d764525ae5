"""The coordinator dies or freezes. Transfers go on, and a new epoch knows everything again."""

from __future__ import annotations

import time

import pytest
import ray

from ray_weights import errors
from ray_weights.core.manifest import Manifest
from tests.integration.faults.engines import MiB, Opening, Weights
from tests.integration.faults.fleet import PATIENCE, Fleet, wait_until
from tests.integration.faults.record import Recorder


def test_transfers_go_on_while_the_coordinator_restarts(fleet: Fleet, recorder: Recorder):
    weights = Weights("coordinator dies")
    fleet.seed(0, weights)
    answers = fleet.chain(weights, 1, 2)
    fleet.wait_for_share(1, weights, 0.2)
    epoch = fleet.status().epoch
    fleet.kill(fleet.coordinator_pid())
    openings: list[Opening] = ray.get(answers, timeout=PATIENCE)
    assert all(o.outcome == "arrived" for o in openings)
    assert all(o.stats and o.stats.read_again_nbytes == 0 for o in openings)
    later: Opening = ray.get(fleet.get(3, weights), timeout=PATIENCE)
    assert later.outcome == "arrived"
    assert fleet.status().epoch > epoch
    wrong = fleet.wrong_bytes(weights, 1, 2, 3)
    assert wrong == 0
    for index in range(4):
        wait_until(lambda i=index: fleet.state(i, weights) == "ready", f"host {index} is known as a source")
    recorder.row(
        "coordinator dies in mid-transfer",
        how="SIGKILL at 20%",
        happened="transfers go on; a new epoch is built from what the members say; a later receiver is served",
        openings=openings,
        wrong_bytes=wrong,
    )
    fleet.clean_up(weights)


def test_a_question_asked_while_the_coordinator_is_dead_is_answered_by_the_next(fleet: Fleet, recorder: Recorder):
    weights = Weights("coordinator is dead")
    fleet.seed(0, weights)
    fleet.kill(fleet.coordinator_pid())
    openings: list[Opening] = ray.get([fleet.get(i, weights) for i in (1, 2)], timeout=PATIENCE)
    assert all(o.outcome == "arrived" for o in openings)  # nobody reads storage again
    wrong = fleet.wrong_bytes(weights, 1, 2)
    assert wrong == 0
    recorder.row(
        "coordinator dies before receivers ask",
        how="SIGKILL, then two receivers at once",
        happened="they wait until the new epoch has heard the members; storage is not read again",
        openings=openings,
        wrong_bytes=wrong,
    )
    fleet.clean_up(weights)


def test_a_new_epoch_does_not_make_a_second_origin(fleet: Fleet, recorder: Recorder):
    weights = Weights("coordinator dies while loading")
    first: Opening = ray.get(fleet.engine(0).open.remote(weights), timeout=PATIENCE)
    assert first.outcome == "load"
    answer = fleet.get(1, weights)
    wait_until(lambda: fleet.state(1, weights) == "waiting", "host 1 waits")
    started = time.monotonic()
    fleet.kill(fleet.coordinator_pid())
    wait_until(lambda: fleet.state(0, weights) == "loading", "the new epoch knows who loads")
    waited = time.monotonic() - started
    ray.get(fleet.engine(0).load.remote(weights), timeout=PATIENCE)
    opening: Opening = ray.get(answer, timeout=PATIENCE)
    assert opening.outcome == "arrived"
    wrong = fleet.wrong_bytes(weights, 0, 1)
    assert wrong == 0
    recorder.row(
        "coordinator dies while the origin loads",
        how="SIGKILL with one waiter",
        happened=f"after {waited:.1f} s the new epoch knows who loads; nobody else becomes the origin",
        openings=[opening],
        wrong_bytes=wrong,
        seconds=waited,
    )
    fleet.clean_up(weights)


def test_a_sealed_shard_that_was_not_confirmed_is_offered_to_the_next_epoch(fleet: Fleet, recorder: Recorder):
    weights = Weights("coordinator dies at the seal")
    first: Opening = ray.get(fleet.engine(0).open.remote(weights), timeout=PATIENCE)
    assert first.outcome == "load"
    coordinator = fleet.coordinator_pid()
    fleet.freeze(coordinator)
    sealed = fleet.engine(0).load.remote(weights)
    wait_until(lambda: (p := fleet.progress(0, weights)) is not None and p.state == "ready", "host 0 has sealed it")
    confirmed, _ = ray.wait([sealed], timeout=0.5)
    assert not confirmed, "nobody has confirmed it"
    started = time.monotonic()
    fleet.kill(coordinator)
    ray.get(sealed, timeout=PATIENCE)
    waited = time.monotonic() - started
    opening: Opening = ray.get(fleet.get(1, weights), timeout=PATIENCE)
    assert opening.outcome == "arrived"
    wrong = fleet.wrong_bytes(weights, 1)
    assert wrong == 0
    recorder.row(
        "coordinator dies before it has confirmed a sealed shard",
        how="SIGSTOP while the origin loads, SIGKILL once its shard is sealed",
        happened=f"the seal is offered to the new epoch, and confirmed after {waited:.1f} s; storage is not read again",
        openings=[opening],
        wrong_bytes=wrong,
        seconds=waited,
    )
    fleet.clean_up(weights)


def test_a_frozen_coordinator_stops_no_transfer_and_no_deadline(fleet: Fleet, recorder: Recorder):
    weights = Weights("coordinator frozen")
    fleet.seed(0, weights)
    answer = fleet.get(1, weights)
    fleet.wait_for_share(1, weights, 0.1)
    pid = fleet.coordinator_pid()
    fleet.freeze(pid)
    opening: Opening = ray.get(answer, timeout=PATIENCE)
    started = time.monotonic()
    with pytest.raises((errors.CoordinatorUnavailable, errors.DeadlineExceeded)):
        ray.get(fleet.engine(2).open.remote(weights, timeout=4.0), timeout=PATIENCE)
    assert time.monotonic() - started < 10
    fleet.thaw(pid)
    later: Opening = ray.get(fleet.get(2, weights), timeout=PATIENCE)
    assert later.outcome == "arrived"
    wrong = fleet.wrong_bytes(weights, 1, 2)
    assert wrong == 0
    recorder.row(
        "coordinator freezes",
        how="SIGSTOP at 10%, SIGCONT later",
        happened="the transfer goes on; who asks meanwhile gets a typed error within its deadline, and is served later",
        openings=[opening],
        wrong_bytes=wrong,
    )
    fleet.clean_up(weights)


def test_a_child_that_asks_its_parent_before_the_coordinators_word_is_there_waits_for_it(fleet: Fleet):
    weights = Weights("early child", 4 * MiB)
    fleet.seed(0, weights)
    coordinator = fleet.coordinator_pid()
    fleet.freeze(coordinator)
    opening = fleet.get(1, weights)
    wait_until(lambda: (p := fleet.progress(1, weights)) is not None and p.state == "asked", "host 1 has asked")
    asked = fleet.transfer(1).manifest_of.remote(weights.key.model_dump_json().encode(), 1)
    early, _ = ray.wait([asked], timeout=1.0)
    assert not early, "it was sent away"
    fleet.thaw(coordinator)
    manifest = Manifest.from_bytes(ray.get(asked, timeout=PATIENCE))
    assert manifest.nbytes == weights.nbytes
    assert ray.get(opening, timeout=PATIENCE).outcome == "arrived"
    fleet.clean_up(weights)
