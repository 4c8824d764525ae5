"""Lines for people."""

from __future__ import annotations

import pytest

from ray_weights.integrations.vllm.progress import ProgressLog, progress_line, received_line, size
from ray_weights.schemas.keys import ModelKey, ShardKey
from ray_weights.schemas.members import ReceiveStats
from ray_weights.schemas.status import TransferProgress


def progress(**changes) -> TransferProgress:
    fields = dict(
        shard=ShardKey(model=ModelKey(model="m")),
        version=1,
        state="receiving",
        chunks=10,
        chunks_verified=3,
        nbytes=1_000_000_000,
        nbytes_verified=300_000_000,
        rate=1e8,
        seconds=3.0,
        upstreams=("a",),
        children=(),
    )
    return TransferProgress(**fields | changes)


@pytest.mark.parametrize(
    ("nbytes", "text"), [(0, "0 B"), (999, "999 B"), (8_400_000, "8.4 MB"), (309e6, "309 MB"), (2.5e12, "2.5 TB")]
)
def test_sizes(nbytes, text):
    assert size(nbytes) == text


def test_a_line_says_state_share_rate_and_time():
    assert progress_line(progress()) == "receiving, 300 MB of 1.0 GB (30 %), 100 MB/s, 3 s so far"


def test_a_line_before_the_size_is_known_says_why_it_waits():
    waiting = progress(state="waiting", nbytes=0, nbytes_verified=0, rate=0.0, detail="n2 reads storage")
    assert progress_line(waiting) == "waiting, 3 s so far, n2 reads storage"


def test_progress_is_logged_every_few_seconds_only():
    class Lines:
        def __init__(self) -> None:
            self.count = 0

        def info(self, msg: str, *args: object) -> None:
            self.count += 1

        def warning(self, msg: str, *args: object) -> None: ...

    now, lines = [0.0], Lines()
    log = ProgressLog(lines, every_s=5.0, clock=lambda: now[0])
    for second in range(13):
        now[0] = float(second)
        log(progress())
    assert lines.count == 2


def test_what_was_received_says_from_whom_and_what_was_read_twice():
    stats = ReceiveStats(nbytes=309_000_000, seconds=0.5, read_again_nbytes=1_600_000, upstream_nbytes=(("n1", 5),))
    expected = "received 309 MB from n1 in 0.50 s (618 MB/s); 1.6 MB were read again"
    assert received_line(309_000_000, stats) == expected
    assert received_line(309_000_000, None) == "309 MB were on this node already"
