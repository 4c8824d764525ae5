"""What `status` shows."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ray_weights.cli.reading_tree import Reading, reading_trees
from ray_weights.cli.status_view import BAR_CELLS, progress_text, render_status
from ray_weights.schemas.status import ReplicaStatus
from ray_weights.schemas.view import ActorView, ClusterView
from tests.unit.cli.views import COMPLETE, MEMBERS, ORIGIN, RECEIVING, VIEW, drawn, member, progress, record


def line_with(text: str, shown: str) -> str:
    return next(line for line in shown.splitlines() if text in line)


def test_each_replica_stands_below_the_one_that_it_reads_from() -> None:
    shown = drawn(render_status(VIEW))
    depth = {name: line_with(f"{name} cpu  ", shown).index(name) for name in ("10.0.0.1", "10.0.0.2", "10.0.0.3")}
    assert depth["10.0.0.1"] < depth["10.0.0.2"] < depth["10.0.0.3"]


def test_a_version_tells_its_size_and_how_often_storage_was_read() -> None:
    line = line_with("version 1", drawn(render_status(VIEW)))
    assert "300.0 MB in 100 chunks" in line and "storage read once" in line and "2 of 3 replicas ready" in line


def test_a_transfer_under_way_has_a_bar_percent_bytes_rate_and_seconds() -> None:
    line = line_with("cpu  receiving", drawn(render_status(VIEW)))
    assert "━" * (BAR_CELLS // 2) + "╌" in line
    for part in ("50%", "150.0 MB of 300.0 MB", "93.0 MB/s", "1.6 s"):
        assert part in line


def test_a_complete_replica_tells_what_it_received() -> None:
    line = line_with("10.0.0.2 cpu  ready", drawn(render_status(VIEW)))
    assert "300.0 MB in 3.0 s at 100.0 MB/s" in line and "4 chunks from replicas still receiving" in line
    assert "from storage" in line_with("10.0.0.1 cpu  ready", drawn(render_status(VIEW)))


def test_an_actor_that_does_not_answer_is_shown_as_such() -> None:
    actors = (*VIEW.actors[:2], ActorView(actor_name="transfer-c", problem="did not answer within 3.0 s"))
    shown = drawn(render_status(VIEW.model_copy(update={"actors": actors})))
    assert "did not answer within 3.0 s" in line_with("10.0.0.3 cpu  receiving", shown)
    assert "of 300.0 MB" in line_with("10.0.0.3 cpu  receiving", shown)


def test_an_actor_that_the_coordinator_does_not_know_is_shown() -> None:
    view = VIEW.model_copy(update={"actors": (*VIEW.actors, ActorView(actor_name="transfer-new"))})
    assert "has not joined" in line_with("transfer-new", drawn(render_status(view)))


def test_without_a_coordinator_the_actors_are_shown_all_the_same() -> None:
    view = ClusterView(taken_at=1.0, coordinator=None, coordinator_problem="no coordinator runs", actors=VIEW.actors)
    shown = drawn(render_status(view))
    assert "no coordinator runs" in shown and "transfer-c" in shown and "50%" in shown


def test_an_empty_cluster_says_so() -> None:
    view = ClusterView(taken_at=1075.0, coordinator=record(), actors=())
    assert "No weights are held or asked for" in drawn(render_status(view))


def test_members_on_one_machine_are_told_apart() -> None:
    members = (member("aaaaaaaa-1", "10.0.0.1"), member("bbbbbbbb-2", "10.0.0.1"))
    replicas = [ReplicaStatus(member=m.member, node=m.node_name, state="waiting") for m in members]
    view = ClusterView(taken_at=1.0, coordinator=record(*replicas, members=members), actors=())
    shown = drawn(render_status(view))
    assert "10.0.0.1 cpu [aaaaaaaa]" in shown and "10.0.0.1 cpu [bbbbbbbb]" in shown


def test_a_view_survives_json() -> None:
    assert ClusterView.model_validate_json(VIEW.model_dump_json()) == VIEW
    assert VIEW.coordinator is not None and VIEW.coordinator.members == MEMBERS


@pytest.mark.parametrize(
    ("verified", "total", "expected"), [(0, 100, "0%"), (100, 100, "100%"), (0, 0, "size not known yet")]
)
def test_the_bar_at_its_ends(verified: int, total: int, expected: str) -> None:
    assert expected in progress_text(progress(nbytes=total, nbytes_verified=verified))


def flat(trees: tuple[Reading, ...]) -> list[str]:
    return [m for t in trees for m in (t.replica.member, *flat(t.readers))]


@given(st.lists(st.lists(st.integers(0, 9), max_size=3), max_size=8))
def test_whoever_read_from_whom_each_replica_is_drawn_once(upstreams: list[list[int]]) -> None:
    replicas = [
        ReplicaStatus(member=str(n), node="", state="ready", upstreams=tuple(map(str, each)))
        for n, each in enumerate(upstreams)
    ]
    assert sorted(flat(reading_trees(replicas))) == sorted(r.member for r in replicas)


def test_a_replica_whose_upstream_is_gone_stands_at_the_top() -> None:
    trees = reading_trees((COMPLETE, RECEIVING))
    assert flat(trees) == ["b", "c"] and len(trees) == 1
    assert len(reading_trees((ORIGIN, RECEIVING))) == 2
