"""What the benchmark makes of its numbers."""

from __future__ import annotations

import pytest

from benchmarks import summary
from benchmarks.report import tables
from benchmarks.results import Machine, Results, Trial

M = 96 << 20
MACHINE = Machine(cpu="a CPU", cores=2, memory_gib=8.0, kernel="6", load_before=0.1, versions=(("ray", "2.60.0"),))


def trial(
    case: str, span: float, *, receivers: int = 7, repeat: int = 0, baseline: bool = False, **facts: float
) -> Trial:
    return Trial(
        case=case, label=case, baseline=baseline, repeat=repeat, receivers=receivers, nbytes=M,
        seconds=(span,) * receivers, span=span, transfer_seconds=(span,) * receivers, origin_sent=M,
        facts=tuple(facts.items()),
    )  # fmt: skip


def results(*trials: Trial) -> Results:
    lone = (
        trial("lone", 5.0, receivers=1),
        trial("lone", 5.2, receivers=1, repeat=1),
        trial("lone", 4.9, receivers=1, repeat=2),
    )
    return Results(
        started="2026-01-01T00:00:00Z", seconds=60, quick=False, machine=MACHINE, link_bytes_per_second=M / 4.75,
        nbytes=M, chunk_nbytes=M // 192, window=3, trials=(*lone, *trials),
    )  # fmt: skip


def goal(found: Results, what: str) -> summary.Goal:
    return next(g for g in summary.goals(found) if what in g.what)


def test_everything_is_measured_in_lone_transfers_of_the_same_run() -> None:
    found = results(trial("once-7", 5.5), trial("once-7", 6.0, repeat=1), trial("once-7", 5.75, repeat=2))
    assert summary.lone_seconds(found) == 5.0
    spread = summary.last(found.of("once-7"), 5.0)
    assert spread is not None
    assert (spread.middle, spread.least, spread.most) == pytest.approx((1.15, 1.1, 1.2))


@pytest.mark.parametrize(("span", "met"), [(5.9, True), (6.1, False)])
def test_a_goal_is_met_or_not_by_the_median(span: float, met: bool) -> None:
    assert goal(results(trial("once-7", span)), "at once").met is met


def test_a_kill_costs_what_the_chain_loses_beyond_the_detection() -> None:
    chunk_seconds = 4.75 / 192
    killed = trial("killed", 5.3 + 1.0 + 1.5 * chunk_seconds, receivers=2, moved_after=1.0, read_again=0.0)
    found = results(trial("once-3", 5.3, receivers=3), trial("once-7", 5.5), killed)
    assert goal(found, "killed").measured == "1.5"
    assert goal(found, "killed").met


def test_the_same_host_pair_is_held_against_the_faster_way_of_bare_nixl() -> None:
    pairs = [
        trial("pair", 1.0),
        trial("pair-bare", 0.95, baseline=True),
        trial("pair-bare-chunks", 0.92, baseline=True),
    ]
    assert goal(results(*pairs), "same host").measured == "0.92"


def test_tables_name_baselines_with_the_factor_that_the_service_is_faster_by() -> None:
    text = tables(results(trial("once-7", 5.5), trial("star", 38.5, baseline=True)))
    assert "7.0×" in text
    assert "2 cores of a CPU" in text
