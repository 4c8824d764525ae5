"""The origin dies: its engine or its transfer actor, while it loads or when its copy is half sent."""

from __future__ import annotations

import pytest
import ray

from ray_weights import errors
from tests.integration.faults.engines import Opening, Weights
from tests.integration.faults.fleet import PATIENCE, Fleet, wait_until
from tests.integration.faults.record import Recorder


def loading_with_waiters(fleet: Fleet, weights: Weights, *waiters: int) -> list[ray.ObjectRef]:
    """Host 0 has filled half of its arena, the others wait for it."""
    opening: Opening = ray.get(fleet.engine(0).open.remote(weights), timeout=PATIENCE)
    assert opening.outcome == "load"
    ray.get(fleet.engine(0).half_load.remote(weights), timeout=PATIENCE)
    answers = []
    for index in waiters:
        answers.append(fleet.get(index, weights))
        wait_until(lambda i=index: fleet.state(i, weights) == "waiting", f"host {index} waits")
    return answers


def storage_reads(fleet: Fleet, weights: Weights) -> int:
    version = fleet.version(weights)
    assert version is not None
    return version.storage_reads


def test_when_the_engine_of_the_origin_dies_the_next_in_line_loads(fleet: Fleet, recorder: Recorder):
    weights = Weights("origin engine dies")
    answers = loading_with_waiters(fleet, weights, 1, 2)
    fleet.kill(ray.get(fleet.engine(0).pid.remote(), timeout=PATIENCE))
    openings: list[Opening] = ray.get(answers, timeout=PATIENCE)
    assert [o.outcome for o in openings] == ["load", "arrived"]
    wrong = fleet.wrong_bytes(weights, 1, 2)
    assert wrong == 0 and storage_reads(fleet, weights) == 2
    fleet.renew_engine(0)
    recorder.row(
        "origin's engine dies while it loads",
        how="SIGKILL to the engine with half of the arena filled",
        happened="its transfer actor sees it end (pidfd); the next in line loads, the others wait for that",
        openings=openings,
        wrong_bytes=wrong,
    )
    fleet.clean_up(weights)


def test_when_the_transfer_actor_of_the_origin_dies_the_next_in_line_loads(fleet: Fleet, recorder: Recorder):
    weights = Weights("origin actor dies")
    answers = loading_with_waiters(fleet, weights, 1, 2)
    fleet.kill(fleet.transfer_pid(0))
    openings: list[Opening] = ray.get(answers, timeout=PATIENCE)
    assert [o.outcome for o in openings] == ["load", "arrived"]
    with pytest.raises(errors.SourceLost):  # it may keep what it loaded, but nobody will read it from there
        ray.get(fleet.engine(0).load.remote(weights), timeout=PATIENCE)
    wrong = fleet.wrong_bytes(weights, 1, 2)
    assert wrong == 0 and storage_reads(fleet, weights) == 2
    recorder.row(
        "origin's transfer actor dies while it loads",
        how="SIGKILL with half of the arena filled",
        happened="the next in line loads; the first engine's seal is refused with SourceLost",
        openings=openings,
        wrong_bytes=wrong,
    )
    fleet.clean_up(weights)


def test_when_the_only_copy_is_lost_half_sent_somebody_loads_again(fleet: Fleet, recorder: Recorder):
    weights = Weights("only copy lost")
    fleet.seed(0, weights)
    answers = fleet.chain(weights, 1, 2)
    fleet.wait_for_share(1, weights, 0.4)
    engine = ray.get(fleet.engine(0).pid.remote(), timeout=PATIENCE)
    actor = fleet.transfer_pid(0)
    fleet.kill(engine)  # or the restarted transfer actor would find the arena in its hands
    fleet.kill(actor)
    openings: list[Opening] = ray.get(answers, timeout=PATIENCE)
    assert sorted(o.outcome for o in openings) == ["arrived", "load"]
    wrong = fleet.wrong_bytes(weights, 1, 2)
    assert wrong == 0
    fleet.renew_engine(0)
    recorder.row(
        "the only copy is lost half sent",
        how="SIGKILL to the source's engine and transfer actor at 40%",
        happened="the receiver next in line reads storage, the other goes on from it at its own counter",
        openings=openings,
        wrong_bytes=wrong,
    )
    fleet.clean_up(weights)
