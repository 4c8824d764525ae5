"""The coordinator's state machine: who loads, waits, receives, moves, is refused."""

from __future__ import annotations

import pytest

from ray_weights.core.registry import Registry, RegistryOptions
from ray_weights.errors import Fenced, LimitReached
from ray_weights.schemas import messages as m
from ray_weights.schemas.keys import ModelKey, ShardKey
from ray_weights.schemas.members import Holding
from tests.unit.core.cluster import SHARD, Cluster, info, seal

# Who goes to storage


def test_the_first_to_ask_becomes_the_origin() -> None:
    c = Cluster()
    c.join("a")
    assert isinstance(c.open("a")[0], m.BecomeOrigin)


def test_everybody_else_waits_for_the_origin() -> None:
    c = Cluster()
    c.join("a", "b", "c")
    c.open("a")
    assert isinstance(c.open("b")[0], m.Wait)
    assert isinstance(c.open("c")[0], m.Wait)
    assert c.storage_reads() == 1


def test_those_who_wait_receive_when_the_origin_has_sealed() -> None:
    c = Cluster()
    c.join("a", "b", "c")
    for member in "abc":
        c.open(member)
    c.seal("a")
    assert c.upstreams("b") == ("a",)
    assert c.upstreams("c") == ("b",)


@pytest.mark.parametrize("how", ["dies", "errs", "gives up", "drops"])
def test_the_next_in_line_is_promoted_when_the_origin(how: str) -> None:
    c = Cluster()
    c.join("a", "b", "c")
    for member in "abc":
        c.open(member)
    if how == "dies":
        c.die("a")
    elif how == "errs":
        c.send(m.OriginError(epoch=1, member="a", shard=SHARD, version=1, error="disk on fire"))
    elif how == "gives up":
        c.give_up("a")
    else:
        c.send(m.Dropped(epoch=1, member="a", shard=SHARD, version=1))
    assert isinstance(c.last("b"), m.BecomeOrigin)
    assert isinstance(c.last("c"), m.Wait)
    assert c.storage_reads() == 2


def test_one_that_cannot_load_is_passed_over_for_one_that_can() -> None:
    c = Cluster()
    c.join("a", "b", "c")
    c.open("a")
    c.open("b", may_load=False)
    c.open("c")
    c.die("a")
    assert c.state("b") == "waiting"
    assert c.state("c") == "loading"


def test_those_who_cannot_load_are_refused_when_nobody_is_left_to_load() -> None:
    c = Cluster()
    c.join("a", "b")
    c.open("a")
    c.open("b", may_load=False)
    c.die("a")
    refused = c.last("b")
    assert isinstance(refused, m.Refuse) and refused.error == "SourceLost"
    assert c.registry.status() == ()


def test_a_repeated_request_of_the_origin_counts_storage_once() -> None:
    c = Cluster()
    c.join("a")
    c.open("a")
    assert isinstance(c.open("a")[0], m.BecomeOrigin)
    assert c.storage_reads() == 1


def test_the_newest_version_is_what_one_gets_who_names_none() -> None:
    c = Cluster()
    c.join("a", "b")
    c.seal("a", version=3)
    c.seal("a", version=7, digest="bb")
    command = c.open("b")
    c.wait()
    command = c.last("b")
    assert isinstance(command, m.Receive) and command.version == 7


# What is refused


def test_an_unknown_key_names_the_closest_ones() -> None:
    c = Cluster()
    c.join("a", "b")
    c.seal("a")
    wanted = ShardKey(model=ModelKey(model="org/lama"))
    refused = c.open("b", shard=wanted, may_load=False)[0]
    assert isinstance(refused, m.Refuse) and refused.error == "UnknownKey"
    assert "org/llama" in refused.message and "model is 'org/lama' here" in refused.message


def test_an_unknown_version_names_those_that_there_are() -> None:
    c = Cluster()
    c.join("a", "b")
    c.seal("a", version=3)
    refused = c.open("b", version=9, may_load=False)[0]
    assert isinstance(refused, m.Refuse) and "has no version 9; there are 3" in refused.message


def test_another_layout_is_refused_and_the_source_is_named() -> None:
    c = Cluster()
    c.join("a", "b")
    c.seal("a")
    refused = c.open("b", layout="other")[0]
    assert isinstance(refused, m.Refuse) and refused.error == "LayoutMismatch"
    assert refused.source == ("a", "actor-a")
    assert c.state("b") == "unknown"


def test_another_layout_is_refused_also_to_one_that_waited_for_the_origin() -> None:
    c = Cluster()
    c.join("a", "b")
    c.open("a")
    c.open("b", layout="other")
    c.seal("a")
    refused = c.last("b")
    assert isinstance(refused, m.Refuse) and refused.error == "LayoutMismatch"


def test_an_empty_layout_digest_accepts_what_the_source_has() -> None:
    c = Cluster()
    c.join("a", "b")
    c.seal("a")
    c.open("b", layout="")
    c.wait()
    assert c.state("b") == "receiving"


def test_the_same_version_with_other_bytes_is_refused() -> None:
    c = Cluster()
    c.join("a", "b")
    c.seal("a")
    refused = c.seal("b", digest="bb")[0]
    assert isinstance(refused, m.Refuse) and refused.error == "VersionConflict"


def test_a_version_number_stays_taken_after_its_holders_have_gone() -> None:
    c = Cluster()
    c.join("a", "b")
    c.seal("a", version=1)
    c.seal("a", version=2, digest="bb")
    c.send(m.Dropped(epoch=1, member="a", shard=SHARD, version=1))
    refused = c.seal("b", version=1, digest="cc")[0]
    assert isinstance(refused, m.Refuse) and refused.error == "VersionConflict"


def test_guarded_numbers_of_dead_versions_are_bounded() -> None:
    c = Cluster(RegistryOptions(max_dead_versions=3))
    c.join("a")
    for version in range(1, 11):
        c.seal("a", version=version, digest=f"{version:02x}")
        if version > 1:
            c.send(m.Dropped(epoch=1, member="a", shard=SHARD, version=version - 1))
    assert [v.version for v in c.registry.status()[0].versions] == [7, 8, 9, 10]


def test_more_members_than_the_bound_are_refused() -> None:
    c = Cluster(RegistryOptions(max_members=1))
    c.join("a")
    with pytest.raises(LimitReached, match="max_members"):
        c.join("b")
    assert [i.member for i in c.registry.members()] == ["a"]


def test_more_shards_than_the_bound_are_refused_and_nothing_is_left_behind() -> None:
    c = Cluster(RegistryOptions(max_shards=1))
    c.join("a")
    c.seal("a")
    other = ShardKey(model=ModelKey(model="other"))
    with pytest.raises(LimitReached, match="max_shards"):
        c.open("a", shard=other)
    with pytest.raises(LimitReached, match="max_shards"):
        c.join("b", holdings=(Holding(shard=other, version=1, seal=seal()),))
    assert len(c.registry.status()) == 1 and len(c.registry.members()) == 1


def test_more_replicas_than_the_bound_are_refused() -> None:
    c = Cluster(RegistryOptions(max_replicas=1))
    c.join("a", "b")
    c.open("a")
    with pytest.raises(LimitReached, match="max_replicas"):
        c.open("b")


# Fencing


def test_an_event_of_another_epoch_is_fenced() -> None:
    c = Cluster(epoch=5)
    c.join("a")
    with pytest.raises(Fenced):
        c.send(m.Open(epoch=4, member="a", shard=SHARD))


def test_a_member_that_has_not_joined_is_fenced() -> None:
    with pytest.raises(Fenced):
        Cluster().open("a")


def test_a_restarted_actor_replaces_its_earlier_incarnation() -> None:
    c = Cluster()
    c.join("a#1", "b")
    c.open("a#1")
    c.open("b")
    c.join("a#2")
    assert [i.member for i in c.registry.members()] == ["b", "a#2"]
    assert c.state("b") == "loading"
    with pytest.raises(Fenced):
        c.open("a#1")


# Re-parenting


def test_children_of_a_member_that_dies_move_to_who_is_left() -> None:
    c = Cluster()
    c.source_with("a", "b", "c")
    assert c.upstreams("b") == ("a",)
    c.die("a")
    assert c.upstreams("b") == ("s",)
    assert c.upstreams("c") == ("b",)


def test_a_receiver_never_moves_below_one_of_its_own_descendants() -> None:
    c = Cluster()
    c.source_with("a", "b", "c")
    c.lose("a", "s", "stalled")
    assert c.upstreams("a") == ("s",)


def test_an_upstream_that_failed_is_avoided_while_there_is_another() -> None:
    c = Cluster()
    c.source_with("a", "b")
    c.lose("b", "a", "starved")
    assert c.upstreams("b") == ("s",)


def test_losing_an_upstream_that_was_left_already_repeats_the_present_one() -> None:
    c = Cluster()
    c.source_with("a", "b")
    c.lose("b", "a")
    again = c.lose("b", "a")[0]
    assert isinstance(again, m.Receive) and again.upstreams == ("s",)


def test_when_the_only_source_dies_the_first_that_asked_loads_and_the_others_wait() -> None:
    c = Cluster()
    c.source_with("a", "b", "c")
    c.die("s")
    assert [c.state(x) for x in "abc"] == ["loading", "waiting", "waiting"]
    told = c.last("a")
    assert isinstance(told, m.BecomeOrigin)
    assert told.chunk_nbytes == seal("aa").chunk_nbytes, "cut otherwise, equal bytes have another digest"
    assert isinstance(c.last("b"), m.Wait) and isinstance(c.last("c"), m.Wait)


def test_when_nobody_could_share_it_everybody_is_released_at_once() -> None:
    c = Cluster()
    c.join("a", "b", "c")
    for member in "abc":
        c.open(member)
    c.send(m.OriginError(epoch=1, member="a", shard=SHARD, version=1, error="no raw bytes", hopeless=True))
    for member in "bc":
        refused = c.last(member)
        assert isinstance(refused, m.Refuse) and refused.error == "CaptureUnsupported"
        assert "no raw bytes" in refused.message
    assert c.registry.status() == ()


def test_after_the_second_origin_has_sealed_the_stranded_go_on() -> None:
    c = Cluster()
    c.source_with("a", "b")
    c.die("s")
    c.seal("a")
    c.wait()
    assert c.state("b") == "receiving" and c.upstreams("b") == ("a",)


def test_a_source_other_than_the_dead_one_takes_the_orphans() -> None:
    c = Cluster()
    c.join("s", "t", "a", "b")
    c.seal("s")
    c.seal("t")
    c.open("a")
    c.wait()
    c.open("b")
    c.wait()
    c.die("s")
    c.wait()
    assert c.upstreams("a") == ("t",) or c.upstreams("b") == ("t",)


def test_one_that_completed_although_it_was_told_to_wait_is_a_source() -> None:
    c = Cluster()
    c.source_with("a", "b")
    c.die("s")
    assert c.state("b") == "waiting"
    c.complete("b")
    assert c.state("b") == "ready"


def test_a_receiver_that_gives_up_leaves_its_children_to_others() -> None:
    c = Cluster()
    c.source_with("a", "b")
    c.give_up("a")
    assert c.state("a") == "unknown" and c.upstreams("b") == ("s",)


def test_reading_storage_outside_the_single_flight_is_counted() -> None:
    c = Cluster()
    c.source_with("a")
    c.send(m.GaveUp(epoch=1, member="a", shard=SHARD, version=1, reason="late", read_storage=True))
    assert c.storage_reads() == 2


# Quarantine


def test_a_source_that_sent_a_bad_chunk_is_quarantined_and_asked_to_check_itself() -> None:
    c = Cluster()
    c.join("s", "t", "a")
    c.seal("s")
    c.seal("t")
    c.open("a")
    c.wait()
    bad = c.upstreams("a")[0]
    c.lose("a", bad, "corrupt")
    assert c.state(bad) == "quarantined"
    assert isinstance(c.last(bad), m.Reverify)
    assert c.upstreams("a") != (bad,)


def test_a_quarantined_source_gets_no_receivers() -> None:
    c = Cluster()
    c.source_with("a")
    c.lose("a", "s", "corrupt")
    c.join("b")
    c.open("b")
    c.wait()
    assert "s" not in c.upstreams("b") and "s" not in c.upstreams("a")


def test_a_source_that_found_itself_whole_serves_again() -> None:
    c = Cluster()
    c.source_with("a")
    c.lose("a", "s", "corrupt")
    assert c.state("a") == "loading"
    c.give_up("a")
    c.reverified("s")
    c.open("a")
    c.wait()
    assert c.state("s") == "ready" and c.upstreams("a") == ("s",)


def test_a_source_with_bad_chunks_of_its_own_is_removed() -> None:
    c = Cluster()
    c.source_with("a")
    c.lose("a", "s", "corrupt")
    c.reverified("s", bad=2)
    assert c.state("s") == "unknown"


def test_a_join_repeated_does_not_end_quarantine() -> None:
    c = Cluster()
    c.source_with("a")
    c.lose("a", "s", "corrupt")
    c.join("s", holdings=(Holding(shard=SHARD, version=1, seal=seal()),))
    assert c.state("s") == "quarantined"


def test_a_source_that_is_not_what_it_was_thought_to_be_checks_itself() -> None:
    c = Cluster()
    c.source_with("a", "b")
    c.lose("a", "s", "stale")
    assert isinstance(c.last("s"), m.Reverify)


# Slow members


def test_a_member_whose_every_flow_is_slow_becomes_a_leaf() -> None:
    c = Cluster()
    c.source_with("slow", "b", "c", "d")
    c.measure("c", "b", 100.0)
    c.measure("d", "c", 100.0)
    c.measure("slow", "s", 25.0)
    c.measure("b", "slow", 25.0)
    assert c.upstreams("b") == ("s",)
    assert c.upstreams("slow") == ("d",)


def test_one_that_is_only_behind_a_slow_member_stays_where_it_is() -> None:
    c = Cluster()
    c.source_with("slow", "b", "c", "d")
    c.measure("c", "b", 100.0)
    c.measure("d", "c", 100.0)
    c.measure("slow", "s", 25.0)
    c.measure("b", "slow", 25.0)
    assert c.upstreams("c") == ("b",) and c.upstreams("d") == ("c",)


def test_a_slow_source_is_no_reason_to_move_anybody() -> None:
    c = Cluster()
    c.source_with("a", "b", "c")
    c.measure("b", "a", 100.0)
    c.measure("c", "b", 100.0)
    c.measure("a", "s", 25.0)
    assert c.upstreams("a") == ("s",) and c.upstreams("b") == ("a",)


def test_a_member_known_to_be_slow_from_earlier_gets_no_children() -> None:
    c = Cluster()
    c.source_with("slow", "x", "y")
    for member, seconds in (("x", 1.0), ("y", 1.0), ("slow", 10.0)):
        c.complete(member, seconds=seconds)
    c.seal("s", version=2, digest="bb")
    for member in ("slow", "x", "y"):
        c.wait()
        c.open(member, version=2)
        c.wait()
    found = {x: c.replica(x, 2) for x in ("x", "y")}
    assert all(r is not None and "slow" not in r.upstreams for r in found.values())


# Repeated and late words


def test_a_completed_repeated_changes_nothing() -> None:
    c = Cluster()
    c.source_with("a")
    c.complete("a")
    before = c.registry.status()
    c.complete("a")
    assert c.registry.status() == before


def test_a_seal_repeated_is_accepted_again() -> None:
    c = Cluster()
    c.join("a")
    c.open("a")
    c.seal("a")
    assert isinstance(c.seal("a")[0], m.Accepted)


def test_a_request_repeated_by_a_receiver_gets_the_same_upstream() -> None:
    c = Cluster()
    c.source_with("a")
    again = c.open("a")[0]
    assert isinstance(again, m.Receive) and again.upstreams == ("s",)


def test_a_source_that_asks_is_told_that_it_holds_it_and_asks_again_once_it_has_said_that_it_does_not() -> None:
    c = Cluster()
    c.source_with("a")
    c.complete("a")
    (said,) = c.open("a")
    assert isinstance(said, m.Accepted) and not said.sealed
    c.send(m.Dropped(epoch=1, member="a", shard=SHARD, version=1))
    c.open("a")
    c.wait()
    assert c.state("a") == "receiving" and c.upstreams("a") == ("s",)


def test_a_question_that_was_overtaken_by_the_seal_does_not_unseat_the_only_source() -> None:
    c = Cluster()
    c.join("a")
    c.open("a")
    c.seal("a")
    c.open("a")  # the same once more, late
    assert c.state("a") == "ready"


def test_commands_say_which_question_for_the_newest_version_they_answer() -> None:
    c = Cluster()
    c.join("s", "a")
    c.seal("s")
    c.open("a", version=1)
    c.wait()
    assert c.last("a").question == 0
    c.send(m.Open(epoch=1, member="a", shard=SHARD, question=7, layout_digest="layout", may_load=True))
    again = c.last("a")
    assert isinstance(again, m.Receive) and again.version == 1 and again.question == 7


def test_one_that_reads_storage_by_itself_does_not_take_away_what_others_of_its_member_wait_for() -> None:
    c = Cluster()
    c.join("a", "b")
    c.open("a")
    c.open("b")
    c.send(m.GaveUp(epoch=1, member="b", shard=SHARD, reason="deadline", read_storage=True, leaves=False))
    assert c.state("b") == "waiting" and c.storage_reads() == 2


def test_one_that_asks_a_quarantined_member_is_answered_when_it_has_looked_at_its_own_memory() -> None:
    for bad, said in ((0, m.Accepted), (3, m.Receive)):
        c = Cluster()
        c.source_with("a", "b")
        c.complete("a")
        c.lose("b", "a" if c.upstreams("b") == ("a",) else "s", "corrupt")
        suspect = next(x for x in ("a", "s") if c.state(x) == "quarantined")
        assert c.open(suspect) == []
        c.send(m.Reverified(epoch=1, member=suspect, shard=SHARD, version=1, bad_chunks=bad))
        c.wait()
        assert isinstance(c.last(suspect), said)


def test_a_thousand_receivers_that_lose_their_only_source_all_wait_for_one_that_loads() -> None:
    c = Cluster()
    registry = c.registry
    registry.handle(m.Join(epoch=1, member="s", info=info("s")), c.now)
    registry.handle(m.Sealed(epoch=1, member="s", shard=SHARD, version=1, seal=seal()), c.now)
    for i in range(1000):
        registry.handle(m.Join(epoch=1, member=f"r{i}", info=info(f"r{i}")), c.now)
        registry.handle(m.Open(epoch=1, member=f"r{i}", shard=SHARD, layout_digest="layout", may_load=True), c.now)
    registry.tick(c.now + 1)
    assert len([r for r in c.registry.status()[0].versions[0].replicas if r.state == "receiving"]) == 1000
    registry.member_died("s", c.now + 2)
    states = [r.state for r in registry.status()[0].versions[0].replicas]
    assert states.count("loading") == 1 and states.count("waiting") == 999
    registry.validate()


def test_stories_of_shards_that_are_gone_are_forgotten_in_the_end() -> None:
    c = Cluster(RegistryOptions(max_shards=3))
    c.join("a")
    for number in range(5):
        shard = ShardKey(model=ModelKey(model=f"model {number}"))
        c.open("a", shard=shard)
        c.send(m.GaveUp(epoch=1, member="a", shard=shard, reason="enough"))
    assert [s.model.model for s in c.registry.told_shards()] == ["model 2", "model 3", "model 4"]


def test_words_about_a_version_that_nobody_has_are_ignored() -> None:
    c = Cluster()
    c.join("a")
    assert c.complete("a") == []
    assert c.lose("a", "b") == []
    c.reverified("a")
    c.give_up("a")
    assert c.registry.status() == ()


def test_receivers_that_ask_closely_are_placed_together() -> None:
    c = Cluster()
    c.join("s", *"abcd")
    c.seal("s")
    c.open("a")
    for member in "bcd":
        assert c.open(member) == []
    assert c.registry.next_wakeup() is not None
    c.wait(0.1)
    assert [c.state(x) for x in "abcd"] == ["receiving"] * 4
    assert c.registry.next_wakeup() is None


def test_receivers_that_gathered_are_not_forgotten_when_the_source_dies() -> None:
    c = Cluster()
    c.join("s", "a", "b")
    c.seal("s")
    c.wait(0.01)
    c.open("a")
    c.open("b")
    c.die("s")
    c.wait()
    assert sorted([c.state("a"), c.state("b")]) == ["loading", "waiting"]


def test_the_story_is_told_in_order() -> None:
    c = Cluster()
    c.source_with("a")
    c.complete("a")
    told = c.story()
    assert told[0] == "s: asked for it"
    assert "s: loads from storage" in told[1]
    assert told[-1].startswith("a: complete and verified")


def test_the_story_is_bounded() -> None:
    c = Cluster(RegistryOptions(story_lines=5))
    c.source_with("a", "b", "c")
    assert len(c.story()) == 5


def test_a_registry_without_expected_members_answers_at_once() -> None:
    registry = Registry(1, 0.0)
    registry.handle(m.Join(epoch=1, member="a", info=info("a")), 0.0)
    assert registry.handle(m.Open(epoch=1, member="a", shard=SHARD, may_load=True), 0.0)
