"""The flow simulation, and the goals that the planner is judged by."""

from __future__ import annotations

import heapq
import itertools

import pytest
from typer.testing import CliRunner

from ray_weights.simulation import Result, Scenario, run
from ray_weights.simulation.network import End, Link, Network


def simulate(**options: object) -> Result:
    return run(Scenario.model_validate(options))


def test_a_lone_receiver_runs_at_line_rate() -> None:
    assert simulate(receivers=1).lone <= 1.03 * Scenario().nbytes / Scenario().nic_rate


@pytest.mark.parametrize(("receivers", "goal"), [(7, 1.10), (31, 1.10), (127, 1.20)])
def test_everybody_at_once_takes_about_as_long_as_one(receivers: int, goal: float) -> None:
    assert simulate(receivers=receivers).ratio <= goal


@pytest.mark.slow
def test_a_thousand_at_once_take_at_most_a_fifth_longer_than_one() -> None:
    result = simulate(receivers=1023)
    assert result.ratio <= 1.20
    assert result.cpu_seconds < 60


@pytest.mark.parametrize("receivers", [7, 31])
def test_those_who_ask_within_a_millisecond_are_one_burst(receivers: int) -> None:
    assert simulate(receivers=receivers, arrival="at-once").ratio <= 1.10


def test_staggered_joiners_hardly_notice_each_other() -> None:
    result = simulate(receivers=15, arrival="staggered")
    assert result.mean <= 1.03 * result.lone and result.worst <= 1.10 * result.lone


@pytest.mark.parametrize("receivers", [7, 31, 63])
def test_the_origin_sends_the_weights_about_once(receivers: int) -> None:
    result = simulate(receivers=receivers)
    assert result.origin_nbytes <= 1.1 * result.scenario.nbytes


@pytest.mark.parametrize("options", [{"receivers": 7}, {"receivers": 31}, {"receivers": 31, "seed": 3}])
@pytest.mark.parametrize("first", [False, True])
def test_a_quarter_speed_member_costs_the_others_little(options: dict[str, int], first: bool) -> None:
    result = simulate(**options, stragglers=1, straggler_first=first)
    assert result.others_mean <= 1.2 * result.lone


def test_a_member_known_to_be_slow_costs_the_others_nothing() -> None:
    result = simulate(receivers=31, stragglers=1, stragglers_known=True, straggler_first=True)
    assert result.others_mean <= 1.06 * result.lone


def test_several_sources_share_the_work() -> None:
    result = simulate(receivers=31, sources=4)
    assert result.ratio <= 1.10 and result.origin_nbytes <= 1.1 * result.scenario.nbytes


@pytest.mark.parametrize("receivers", [7, 31])
@pytest.mark.parametrize("seed", range(3))
def test_a_parent_that_dies_costs_detection_and_at_most_a_window(receivers: int, seed: int) -> None:
    result = simulate(receivers=receivers, failures=1, seed=seed, nbytes=100e9)
    assert result.completed == receivers - 1
    assert result.read_again <= 3 * 3
    assert result.ratio <= 1.10


@pytest.mark.parametrize(
    ("strategy", "expected"), [("star", 7.0), ("complete-copies", 3.0), ("tree", 2.0), ("chain", 1.05), ("trees", 1.05)]
)
def test_baselines_take_what_theory_says(strategy: str, expected: float) -> None:
    assert simulate(receivers=7, strategy=strategy).ratio == pytest.approx(expected, rel=0.05)


def test_the_coordinator_hears_a_constant_number_of_words_from_each_receiver() -> None:
    few, many = simulate(receivers=15), simulate(receivers=63)
    assert many.calls_per_receiver <= few.calls_per_receiver + 0.1 <= 4.3


def test_neighbours_on_a_node_spare_the_fabric() -> None:
    result = simulate(receivers=32, members_per_node=8)
    assert result.tiers.fabric <= 1.5 * 4 * result.scenario.nbytes


def test_a_seed_gives_the_same_result_again() -> None:
    options = {"receivers": 15, "arrival": "poisson", "seed": 7, "stragglers": 2, "failures": 1}
    assert simulate(**options).makespan == simulate(**options).makespan


def test_the_command_prints_a_table_and_json() -> None:
    import typer

    from ray_weights.simulation.command import simulate as command

    app = typer.Typer()
    app.command()(command)
    table = CliRunner().invoke(app, ["--receivers", "3", "--strategy", "all"])
    assert table.exit_code == 0 and "star" in table.output
    as_json = CliRunner().invoke(app, ["--receivers", "3", "--json"])
    assert as_json.exit_code == 0 and '"ratio"' in as_json.output
    assert CliRunner().invoke(app, ["--strategy", "nonsense"]).exit_code == 2


# The network


def times(ends: list[tuple[End, ...]], chunk: float = 100.0) -> list[float]:
    """When one chunk of each link arrives, all started at once."""
    heap: list[tuple[float, int, object]] = []
    done: dict[int, float] = {}
    serial = itertools.count()
    network = Network(lambda t, act: heapq.heappush(heap, (t, next(serial), act)), chunk)
    for i, path in enumerate(ends):
        network.send(Link(path, 1e9, 0.0, lambda _, i=i: done.__setitem__(i, network.now)), 0)
    while heap:
        network.now, _, act = heapq.heappop(heap)
        act()  # type: ignore[operator]
    return [done[i] for i in range(len(ends))]


def test_two_readers_of_one_source_share_its_egress() -> None:
    out = End(100.0)
    assert times([(out, End(100.0)), (out, End(100.0))]) == pytest.approx([2.0, 2.0])


def test_a_slow_reader_leaves_the_rest_to_the_other() -> None:
    out = End(100.0)
    assert times([(out, End(25.0)), (out, End(100.0))]) == pytest.approx([4.0, 4 / 3])


def test_sending_and_receiving_do_not_hinder_each_other() -> None:
    a_out, a_in, b_out, b_in = End(100.0), End(100.0), End(100.0), End(100.0)
    assert times([(a_out, b_in), (b_out, a_in)]) == pytest.approx([1.0, 1.0])
