"""Bytes change in the memory of a source."""

from __future__ import annotations

import ray

from tests.integration.faults.engines import Opening, Weights
from tests.integration.faults.fleet import PATIENCE, Fleet, wait_until
from tests.integration.faults.record import Recorder


def test_a_bad_chunk_is_read_elsewhere_and_its_source_freed(fleet: Fleet, recorder: Recorder):
    weights = Weights("one source corrupt")
    fleet.seed(0, weights)
    ray.get(fleet.get(1, weights), timeout=PATIENCE)
    answer = fleet.get(2, weights)
    fleet.wait_for_share(2, weights, 0.1)
    bad = fleet.upstream(2, weights)
    fleet.flip_bytes(bad, weights, at=weights.nbytes - 5, count=3)
    opening: Opening = ray.get(answer, timeout=PATIENCE)
    assert opening.outcome == "arrived"
    wait_until(lambda: fleet.state(bad, weights) == "", "the bad source is gone")
    story = fleet.story(weights)
    assert any("quarantined" in line for line in story) and any("1 bad chunks" in line for line in story), story
    wrong = fleet.wrong_bytes(weights, 2)
    assert wrong == 0
    recorder.row(
        "a source has wrong bytes in memory",
        how="3 bytes of its last chunk overwritten through /proc/PID/mem; another source is whole",
        happened="the digest tells; the chunk is read elsewhere, the source quarantined, found bad by itself and freed",
        openings=[opening],
        wrong_bytes=wrong,
    )
    fleet.clean_up(weights)


def test_when_the_only_source_is_bad_storage_is_read_again(fleet: Fleet, recorder: Recorder):
    weights = Weights("only source corrupt")
    fleet.seed(0, weights)
    fleet.flip_bytes(0, weights, at=weights.nbytes // 2, count=1)
    openings: list[Opening] = ray.get([fleet.get(i, weights) for i in (1, 2)], timeout=PATIENCE)
    assert sorted(o.outcome for o in openings) == ["arrived", "load"]
    wrong = fleet.wrong_bytes(weights, 1, 2)
    assert wrong == 0
    recorder.row(
        "the only source has a wrong byte in memory",
        how="1 byte in the middle overwritten through /proc/PID/mem",
        happened="the source is freed, the receiver next in line reads storage, the other goes on from it",
        openings=openings,
        wrong_bytes=wrong,
    )
    fleet.clean_up(weights)
