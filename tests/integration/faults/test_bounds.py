"""Deadlines, memory that is not there, tables that are full, tokens that are wrong."""

from __future__ import annotations

import os
import subprocess
import sys
import time

import pytest
import ray

from ray_weights import errors
from tests.integration.faults.conftest import SETTINGS
from tests.integration.faults.engines import MiB, Opening, Weights
from tests.integration.faults.fleet import PATIENCE, Fleet, wait_until
from tests.integration.faults.record import Recorder

GRACE = 10.0
"""On a machine that does much else at the same time."""


def test_a_deadline_passes_with_the_only_source_frozen(fleet: Fleet, recorder: Recorder):
    weights = Weights("deadline")
    fleet.seed(0, weights)
    answer = fleet.engine(1).open.remote(weights, timeout=8.0)
    started = time.monotonic()
    fleet.wait_for_share(1, weights, 0.1)
    frozen = fleet.transfer_pid(0)
    fleet.freeze(frozen)
    with pytest.raises(errors.DeadlineExceeded, match="chunks are here"):
        ray.get(answer, timeout=PATIENCE)
    taken = time.monotonic() - started
    assert taken < 8.0 + GRACE
    story = wait_until(
        lambda: (s := fleet.story(weights)) and any("gave up" in line for line in s) and s, "the story has an end"
    )
    words = ["asked for it", "assigned to", "stalled", "gave up"]
    at = [next(i for i, line in enumerate(story) if word in line) for word in words]
    assert at == sorted(at), story
    fleet.thaw(frozen)
    wait_until(lambda: (p := fleet.progress(0, weights)) is not None and not p.children, "the lease has ended")
    wrong = fleet.wrong_bytes(weights, 0)
    recorder.row(
        "the only source freezes until the deadline",
        how="SIGSTOP to its transfer actor at 10%, deadline 8 s",
        happened=f"DeadlineExceeded after {taken:.1f} s; `explain` tells the story in order",
        openings=[],
        wrong_bytes=wrong,
        seconds=max(taken - 8.0, 0.001),
    )
    fleet.clean_up(weights)


def test_a_deadline_passes_while_the_origin_hangs(fleet: Fleet):
    weights = Weights("origin hangs")
    first: Opening = ray.get(fleet.engine(0).open.remote(weights), timeout=PATIENCE)
    assert first.outcome == "load"
    started = time.monotonic()
    with pytest.raises(errors.DeadlineExceeded, match="is loading it"):
        ray.get(fleet.engine(1).open.remote(weights, timeout=2.0), timeout=PATIENCE)
    assert time.monotonic() - started < 2.0 + GRACE
    ray.get(fleet.engine(0).load.remote(weights), timeout=PATIENCE)
    fleet.clean_up(weights)


def test_an_arena_that_does_not_fit_is_refused_before_anything_is_touched(fleet: Fleet, recorder: Recorder):
    small = Weights("stays", 4 * MiB)
    fleet.seed(0, small)
    huge = Weights("too large", 1 << 44)
    started = time.monotonic()
    with pytest.raises(errors.ArenaTooLarge):
        ray.get(fleet.engine(0).open.remote(huge), timeout=PATIENCE)
    taken = time.monotonic() - started
    assert fleet.state(0, small) == "ready", "a shard was freed in vain"
    assert fleet.version(huge) is None
    recorder.row(
        "a shard does not fit into the node",
        how="a layout of 16 TiB is opened",
        happened="ArenaTooLarge at once; nothing is made, nothing is freed for it",
        openings=[],
        wrong_bytes=fleet.wrong_bytes(small, 0),
        seconds=taken,
    )
    fleet.clean_up(small)


def test_a_full_table_refuses(fleet: Fleet, recorder: Recorder):
    many = [Weights(f"one of many {i}", MiB) for i in range(SETTINGS.max_arenas + 1)]
    for weights in many[:-1]:
        opening: Opening = ray.get(fleet.engine(3).open.remote(weights), timeout=PATIENCE)
        assert opening.outcome == "load"
    started = time.monotonic()
    with pytest.raises(errors.LimitReached, match="max_arenas"):
        ray.get(fleet.engine(3).open.remote(many[-1]), timeout=PATIENCE)
    taken = time.monotonic() - started
    for weights in many[:-1]:
        ray.get(fleet.engine(3).load.remote(weights), timeout=PATIENCE)
    # Shards that nobody reads make room.
    assert ray.get(fleet.get(3, many[-1]), timeout=PATIENCE).outcome == "load"
    recorder.row(
        "a table is full",
        how=f"{len(many)} shards are being filled where max_arenas is {SETTINGS.max_arenas}",
        happened="LimitReached at once; when the others are complete, the least recently used one makes room",
        openings=[],
        wrong_bytes=fleet.wrong_bytes(many[-1], 3),
        seconds=taken,
    )
    fleet.clean_up(*many)


@pytest.mark.parametrize("token", ["", "another token, 0123456789012345678901"])
def test_without_the_token_nobody_gets_in(fleet: Fleet, token: str):
    code = (
        "import time\n"
        "from ray_weights.actors.connect import connect\n"
        "from ray_weights.errors import CoordinatorUnavailable\n"
        "try:\n"
        "    connect(time.monotonic() + 30)\n"
        "except CoordinatorUnavailable as e:\n"
        "    print('refused:', e)\n"
    )
    environment = {k: v for k, v in os.environ.items() if k != "RAY_AUTH_TOKEN_PATH"}
    environment |= {"RAY_ADDRESS": fleet.cluster.address}
    environment |= {"RAY_AUTH_TOKEN": token} if token else {"RAY_AUTH_MODE": "disabled"}
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=PATIENCE
    )
    assert done.stdout.startswith("refused:"), done.stdout + done.stderr[-2000:]
