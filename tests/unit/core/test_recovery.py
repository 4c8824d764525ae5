"""A new epoch is rebuilt from what members say when they join, in any order, with transfers under way."""

from __future__ import annotations

from itertools import permutations

import pytest

from ray_weights.schemas import messages as m
from ray_weights.schemas.members import Holding, Loading, Receiving
from tests.unit.core.cluster import SHARD, Cluster, seal

HOLDING = Holding(shard=SHARD, version=1, seal=seal())


def receiving(*upstreams: str, digest: str = "aa") -> Receiving:
    return Receiving(shard=SHARD, version=1, seal=seal(digest), upstreams=upstreams)


def new_epoch(*actors: str) -> Cluster:
    return Cluster(epoch=2, expected=[f"actor-{a}" for a in actors])


@pytest.mark.parametrize("order", list(permutations("sabc")))
def test_transfers_go_on_whatever_the_order_of_joining(order: tuple[str, ...]) -> None:
    c = new_epoch(*"sabc")
    upstream = {"a": "s", "b": "a", "c": "b"}
    for member in order:
        if member == "s":
            c.join("s", holdings=(HOLDING,))
        else:
            c.join(member, receiving=(receiving(upstream[member]),))
    assert {x: c.upstreams(x) for x in "abc"} == {"a": ("s",), "b": ("a",), "c": ("b",)}
    assert [o.command for o in c.sent] == []


def test_two_interleaved_trees_are_taken_up_although_they_read_from_each_other() -> None:
    c = new_epoch(*"sab")
    c.join("a", receiving=(receiving("s", "b"),))
    c.join("b", receiving=(receiving("a", "s"),))
    c.join("s", holdings=(HOLDING,))
    assert c.upstreams("a") == ("s", "b") and c.upstreams("b") == ("a", "s")


def test_requests_wait_until_the_known_members_have_joined() -> None:
    c = new_epoch("s", "a")
    c.join("a")
    assert c.open("a") == []
    c.join("s", holdings=(HOLDING,))
    c.wait()
    assert c.state("a") == "receiving"


@pytest.mark.parametrize("order", [("o", "a"), ("a", "o")])
def test_who_loads_already_is_the_origin_although_others_ask_first(order: tuple[str, ...]) -> None:
    c = new_epoch("o", "a")
    for member in order:
        if member == "o":
            c.join("o", loading=(Loading(shard=SHARD, version=1, layout_digest="layout"),))
        else:
            c.join("a")
            c.open("a")
    assert (c.state("o"), c.state("a")) == ("loading", "waiting")


def test_requests_are_answered_when_time_is_up() -> None:
    c = new_epoch("s", "a")
    c.join("a")
    c.open("a")
    wakeup = c.registry.next_wakeup()
    assert wakeup is not None
    c.wait(wakeup - c.now)
    assert c.state("a") == "loading"


def test_a_known_member_that_died_is_not_waited_for() -> None:
    c = new_epoch("s", "a")
    c.join("a")
    c.open("a")
    c.sent += c.registry.expected_died("actor-s", c.now)
    assert c.state("a") == "loading"


def test_one_whose_upstream_never_joined_gets_another() -> None:
    c = new_epoch("s", "a", "b")
    c.join("s", holdings=(HOLDING,))
    c.join("b", receiving=(receiving("a"),))
    c.wait(60)
    assert c.upstreams("b") == ("s",)
    assert isinstance(c.last("b"), m.Receive)


def test_those_below_one_whose_upstream_never_joined_stay_below_it() -> None:
    c = new_epoch("s", "a", "b", "c")
    c.join("s", holdings=(HOLDING,))
    c.join("c", receiving=(receiving("b"),))
    c.join("b", receiving=(receiving("a"),))
    c.wait(60)
    assert c.upstreams("b") == ("s",) and c.upstreams("c") == ("b",)


def test_without_any_source_one_of_them_loads() -> None:
    c = new_epoch("s", "a", "b")
    c.join("a", receiving=(receiving("s"),))
    c.join("b", receiving=(receiving("a"),))
    c.wait(60)
    assert sorted([c.state("a"), c.state("b")]) == ["loading", "waiting"]


def test_one_that_completes_before_its_upstream_has_joined_is_a_source() -> None:
    c = new_epoch("s", "a")
    c.join("a", receiving=(receiving("s"),))
    c.complete("a")
    assert c.state("a") == "ready"


@pytest.mark.parametrize("how", ["joins again", "seals"])
def test_one_that_holds_it_by_now_is_not_taken_for_a_receiver(how: str) -> None:
    c = new_epoch("s", "a")
    c.join("a", receiving=(receiving("s"),))
    if how == "joins again":
        c.join("a", holdings=(HOLDING,))
    else:
        c.seal("a")
    c.join("s", holdings=(HOLDING,))
    c.wait(60)
    assert c.state("a") == "ready"


def test_one_that_gives_up_before_its_upstream_has_joined_is_forgotten() -> None:
    c = new_epoch("s", "a")
    c.join("a", receiving=(receiving("s"),))
    c.give_up("a")
    c.join("s", holdings=(HOLDING,))
    c.wait(60)
    assert c.state("a") == "unknown"


def test_a_transfer_of_other_bytes_than_the_version_has_is_refused() -> None:
    c = new_epoch("s", "a")
    c.join("s", holdings=(HOLDING,))
    c.join("a", receiving=(receiving("s", digest="bb"),))
    refused = c.last("a")
    assert isinstance(refused, m.Refuse) and refused.error == "VersionConflict"


def test_a_holding_of_other_bytes_than_the_version_has_is_refused() -> None:
    c = new_epoch("s", "t")
    c.join("s", holdings=(HOLDING,))
    c.join("t", holdings=(Holding(shard=SHARD, version=1, seal=seal("bb")),))
    refused = c.last("t")
    assert isinstance(refused, m.Refuse) and refused.error == "VersionConflict"


def test_rates_measured_in_an_earlier_epoch_are_remembered_by_the_members() -> None:
    c = new_epoch("s")
    c.join("s", holdings=(HOLDING.model_copy(update={"rate": 5.0}),))
    c.join("a")
    c.open("a")
    c.wait()
    command = c.last("a")
    assert isinstance(command, m.Receive) and command.expected_rate == 5.0
