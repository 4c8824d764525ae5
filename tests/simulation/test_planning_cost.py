"""Planning stays cheap in a large cluster; the bound is generous, the measured number is in docs/scale.md."""

from __future__ import annotations

from benchmarks.planning import measure


def test_a_decision_among_a_thousand_sources_takes_a_few_milliseconds() -> None:
    cost = measure(receivers=4000)
    assert cost.mean < 0.02 and cost.p99 < 0.05
