"""Who reads from whom."""

from __future__ import annotations

from collections.abc import Mapping

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ray_weights.core.planner import (
    Place,
    Placement,
    PlannerOptions,
    World,
    choose_upstream,
    plan_burst,
    slots,
    stripes_for,
)
from ray_weights.core.swarm import Swarm

OPTIONS = PlannerOptions()


def world(
    places: Mapping[str, Place] | None = None, rates: Mapping[str, float] | None = None, median: float = 0.0
) -> World:
    where, fast = places or {}, rates or {}
    return World(lambda m: where.get(m, Place(m)), lambda m: fast.get(m, 0.0), median)


def swarm(*sources: str) -> Swarm:
    s = Swarm()
    for source in sources:
        s.add_complete(source)
    return s


def names(count: int) -> list[str]:
    return [f"r{i:04d}" for i in range(count)]


def burst(s: Swarm, members: list[str], w: World | None = None, options: PlannerOptions = OPTIONS) -> list[Placement]:
    before = set(s.members())
    placed = plan_burst(s, members, w or world(), options, 0.0)
    s.validate()
    names_placed = [p.member for p in placed]
    assert len(set(names_placed)) == len(names_placed)
    # Beside the newcomers, leaves that make room for them.
    assert set(members) <= set(names_placed) <= set(members) | before
    return placed


def test_a_few_receivers_make_a_chain() -> None:
    s = swarm("s")
    assert [p.upstreams for p in burst(s, ["a", "b", "c"])] == [("s",), ("a",), ("b",)]


def test_the_shortest_chain_gets_the_next_receiver() -> None:
    s = swarm("s")
    burst(s, ["a", "b", "c"])
    s.add_complete("c")
    found, reason = choose_upstream(s, "d", world(), OPTIONS)
    assert found == "c" and "complete source" in reason


def test_several_sources_are_shared_evenly() -> None:
    s = swarm("s", "t", "u")
    burst(s, names(6))
    assert sorted(s.vertex(x).load for x in "stu") == [1.0, 1.0, 1.0]
    depths = sorted(s.vertex(m).depth for m in names(6))
    assert depths == [1, 1, 1, 2, 2, 2]


def test_a_neighbour_on_the_same_node_is_preferred_to_a_shallower_stranger() -> None:
    places = {"a": Place("n1"), "b": Place("n1")}
    s = swarm("s", "t")
    s.attach("a", ("s",), 0.0)
    found, reason = choose_upstream(s, "b", world(places), OPTIONS)
    assert found == "a" and "on this node" in reason


def test_the_same_rack_is_worth_some_hops_but_not_many() -> None:
    rack = (("rack", "r1"),)
    places = {m: Place(m, rack) for m in "abcdx"} | {"s": Place("s", (("rack", "r2"),)), "t": Place("t", ())}
    s = swarm("s", "t")
    s.attach("a", ("s",), 0.0)
    assert choose_upstream(s, "x", world(places), OPTIONS)[0] == "a"
    s.attach("b", ("a",), 0.0)
    s.attach("c", ("b",), 0.0)
    s.attach("d", ("c",), 0.0)
    assert choose_upstream(s, "x", world(places), OPTIONS)[0] == "t"


def test_members_of_one_node_are_chained_through_one_of_them() -> None:
    places = {m: Place(f"n{i // 2}") for i, m in enumerate(names(6))}
    s = swarm("s")
    crossings = sum(
        places.get(p.upstreams[0], Place("s")).node != places[p.member].node for p in burst(s, names(6), world(places))
    )
    assert crossings == 3


@pytest.mark.parametrize(
    ("egress", "rate", "expected"), [(0, 50, 1), (100, 0, 1), (100, 50, 2), (100, 90, 1), (100, 1, 4)]
)
def test_slots_come_from_the_measured_rate_of_one_flow(egress: float, rate: float, expected: int) -> None:
    assert slots("s", world(rates={"s": rate}), PlannerOptions(egress_rate=egress)) == expected


def test_a_source_that_one_flow_cannot_fill_takes_two_children() -> None:
    s = swarm("s")
    placed = burst(s, ["a", "b"], world(rates={"s": 50.0}), PlannerOptions(egress_rate=100.0))
    assert [p.upstreams for p in placed] == [("s",), ("s",)]


def test_when_everybody_is_busy_the_least_loaded_is_shared() -> None:
    s = swarm("s")
    s.attach("a", ("s",), 0.0)
    s.vertex("a").barred = True
    found, reason = choose_upstream(s, "b", world(), OPTIONS)
    assert found == "s" and "shared" in reason


def test_a_barred_member_is_never_chosen() -> None:
    s = swarm("s")
    s.vertex("s").barred = True
    assert choose_upstream(s, "a", world(), OPTIONS)[0] is None


def test_a_receiver_without_upstream_is_never_chosen() -> None:
    s = swarm()
    s.attach("a", (), 0.0)
    assert choose_upstream(s, "b", world(), OPTIONS)[0] is None


def test_a_slow_member_gets_no_child_while_others_can_take_it() -> None:
    s = swarm("s")
    s.attach("slow", ("s",), 0.0)
    found, _ = choose_upstream(s, "a", world(rates={"slow": 1.0, "s": 10.0}, median=10.0), OPTIONS)
    assert found == "s"


def test_slow_members_of_a_burst_become_leaves() -> None:
    s = swarm("s")
    rates = {m: 10.0 for m in names(40)} | {"r0003": 1.0, "r0017": 1.0}
    burst(s, names(40), world(rates=rates, median=10.0))
    assert not s.vertex("r0003").children and not s.vertex("r0017").children


def test_slow_members_of_a_short_chain_go_last() -> None:
    s = swarm("s")
    burst(s, ["a", "b", "c"], world(rates={"a": 1.0, "b": 10.0, "c": 10.0}, median=10.0))
    assert not s.vertex("a").children and s.vertex("a").upstreams == ("c",)


def test_one_stripe_for_few_and_two_for_many() -> None:
    assert stripes_for(8, 1, OPTIONS)[0] == 1
    assert stripes_for(9, 1, OPTIONS)[0] == 2
    assert stripes_for(9, 2, OPTIONS)[0] == 1


def test_a_large_burst_makes_two_trees_of_logarithmic_depth() -> None:
    s = swarm("s")
    burst(s, names(1023))
    assert max(s.vertex(m).depth for m in names(1023)) <= 12


def test_in_two_trees_nobody_sends_more_than_one_whole_flow() -> None:
    s = swarm("s")
    burst(s, names(100))
    assert max(s.vertex(m).load for m in [*names(100), "s"]) <= 1.0


def test_in_two_trees_everybody_is_interior_in_one_only() -> None:
    s = swarm("s")
    burst(s, names(64))
    for member in names(64):
        assert not (s.children_of(member, 0) and s.children_of(member, 1)) or len(s.vertex(member).upstreams) == 1


def test_a_second_burst_takes_the_place_of_a_leaf_rather_than_a_share_of_the_source() -> None:
    s = swarm("s")
    burst(s, [f"a{i:03d}" for i in range(63)])
    moved = [p for p in burst(s, [f"b{i:03d}" for i in range(64)]) if p.member.startswith("a")]
    assert s.vertex("s").load <= 1.0 and max(s.vertex(m).load for m in s.members()) <= 1.0
    assert 1 <= len(moved) <= 2 and all(p.upstreams for p in moved)


def test_every_placement_says_why() -> None:
    assert all(p.reason for p in burst(swarm("s"), names(3)))
    assert all("two interleaved trees" in p.reason for p in burst(swarm("s"), names(30)))


def test_a_burst_without_any_unbarred_source_places_nobody() -> None:
    s = swarm("s")
    s.vertex("s").barred = True
    assert plan_burst(s, names(20), world(), OPTIONS, 0.0) == []


def test_a_burst_on_busy_sources_still_places_everybody() -> None:
    s = swarm("s")
    s.attach("x", ("s",), 0.0)
    s.vertex("x").barred = True
    burst(s, names(20))


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.sampled_from(["burst", "complete", "leave", "move"]), st.integers(0, 999)), max_size=25))
def test_no_order_of_events_ever_makes_a_cycle(steps: list[tuple[str, int]]) -> None:
    s = swarm("s")
    count = 0
    for what, number in steps:
        receivers = [m for m in s.members() if not s.vertex(m).complete]
        picked = receivers[number % len(receivers)] if receivers else ""
        if what == "burst":
            fresh = [f"m{count + i}" for i in range(1 + number % 14)]
            count += len(fresh)
            burst(s, fresh)
        elif what == "complete" and picked:
            s.add_complete(picked)
        elif what == "move" and picked:
            vertex = s.vertex(picked)
            stripe = number % len(vertex.upstreams)
            stripes, interior, ups = len(vertex.upstreams), vertex.interior, list(vertex.upstreams)
            s.detach(picked)
            found, _ = choose_upstream(s, picked, world(), OPTIONS, stripe=stripe, stripes=stripes)
            assert found is not None
            ups[stripe] = found
            s.attach(picked, tuple(ups), 0.0, interior)
        elif what == "leave" and picked:
            for child in s.remove(picked):
                s.detach(child)
                found, _ = choose_upstream(s, child, world(), OPTIONS)
                assert found is not None
                s.attach(child, (found,), 0.0)
        s.validate()
