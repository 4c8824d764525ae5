"""Questions and answers that cross: several engines of one device, versions by number and the newest, new epochs."""

from __future__ import annotations

import asyncio
import time

from ray_weights.errors import ArenaTooLarge
from ray_weights.schemas import messages as m
from tests.unit.actors.house import LAYOUT, SHARD, House


def test_one_engine_that_falls_back_takes_nothing_from_another_that_waits(live) -> None:
    async def story(house: House) -> None:
        origin = house.open("o", layout=LAYOUT, may_load=True)
        assert await origin == "load v1"
        first = house.open("a", layout=LAYOUT, may_load=True, timeout=0.3)
        second = house.open("a", layout=LAYOUT, may_load=True)
        assert await first == "DeadlineExceeded"
        await house.tables["a"].fall_back(SHARD, None, "deadline")
        assert house.states() == {"o": "loading", "a": "waiting"}
        house.send(house.registry.handle(_failed(house, "o"), time.monotonic()))
        assert await second == "load v1"

    live(story, "o", "a")


def test_one_engine_that_falls_back_does_not_unseat_one_that_loads(live) -> None:
    async def story(house: House) -> None:
        assert await house.open("a", layout=LAYOUT, may_load=True) == "load v1"
        assert await house.open("a", layout=LAYOUT, may_load=True, timeout=0.2) == "DeadlineExceeded"
        await house.tables["a"].fall_back(SHARD, None, "deadline")
        assert house.states() == {"a": "loading"}

    live(story, "a")


def test_the_only_engine_that_falls_back_leaves(live) -> None:
    async def story(house: House) -> None:
        assert await house.open("o", layout=LAYOUT, may_load=True) == "load v1"
        assert await house.open("a", layout=LAYOUT, may_load=True, timeout=0.2) == "DeadlineExceeded"
        await house.tables["a"].fall_back(SHARD, None, "deadline")
        assert house.states() == {"o": "loading"} and house.here("a") == []

    live(story, "o", "a")


def test_a_refusal_of_a_question_does_not_hit_who_publishes_meanwhile(live) -> None:
    async def story(house: House) -> None:
        for version in (None, 1):
            answer = house.open("a", version)
            await asyncio.sleep(0.005)
            opened = await house.create("a")
            assert await answer == "UnknownKey"
            await house.seal("a", opened)
            await house.tables["a"].drop(SHARD, 1)

    live(story, "a", latency=0.02)


def test_a_question_from_before_a_restart_does_not_unseat_what_was_published_since(live) -> None:
    async def story(house: House) -> None:
        house.restart("a", "x", recovery=0.5)
        house.join("a")
        answer = house.open("a")
        await asyncio.sleep(0.02)
        await house.publish("a")
        assert await answer == "arrived v1"
        assert house.states() == {"a": "ready"} and house.here("a") == [(1, "ready")]

    live(story, "a", "x")


def test_the_newest_and_a_pinned_version_that_is_the_same_are_both_answered(live) -> None:
    async def story(house: House) -> None:
        await house.publish("s", 2)
        for first, second in ((None, 2), (2, None)):
            answers = [house.open("a", first)]
            await asyncio.sleep(0.002)
            answers.append(house.open("a", second))
            assert [await x for x in answers] == ["arrived v2", "arrived v2"]
            await house.tables["a"].drop(SHARD, 2)

    live(story, "s", "a", latency=0.005)


def test_the_newest_is_not_an_older_pinned_one_that_is_on_its_way(live) -> None:
    async def story(house: House) -> None:
        await house.publish("s", 1)
        await house.publish("t", 3)
        house.fabric.freeze("s")
        pinned = house.open("a", 1)
        await house.until(lambda: (1, "receiving") in house.here("a"), "a receives version 1")
        assert await house.open("a") == "arrived v3"
        house.fabric.thaw("s")
        assert await pinned == "arrived v1"

    live(story, "s", "t", "a")


def test_the_newest_is_told_from_one_that_is_being_published(live) -> None:
    async def story(house: House) -> None:
        await house.publish("s", 1)
        opened = await house.create("a", 2)
        assert await house.open("a") == "arrived v1"
        await house.seal("a", opened)
        assert await house.open("a") == "arrived v2"

    live(story, "s", "a")


def test_one_that_lost_what_the_coordinator_believes_it_holds_gets_it_again(live) -> None:
    async def story(house: House) -> None:
        await house.publish("s")
        await house.publish("a")
        lost = house.tables["a"].shards.all[0]
        await house.tables["a"].shards.discard(lost)
        assert await house.open("a") == "arrived v1"

    live(story, "s", "a")


def test_a_command_for_an_earlier_question_does_not_withdraw_the_one_that_is_asked_now(live) -> None:
    """A coordinator that was frozen answers both at once."""

    async def story(house: House) -> None:
        await house.publish("s")
        answer = house.open("a")
        await asyncio.sleep(0.01)
        late = m.Wait(epoch=1, shard=SHARD, version=1, reason="somebody loads it")
        house.tables["a"].deliver(late)
        assert await answer == "arrived v1"
        await house.until(lambda: house.states() == {"s": "ready", "a": "ready"}, "both are known as sources")
        assert not any(isinstance(event, m.Dropped) for event in house.posted)

    live(story, "s", "a", latency=0.05)


def test_a_command_that_nobody_here_waits_for_is_answered(live) -> None:
    async def story(house: House) -> None:
        house.tables["a"].deliver(m.Wait(epoch=1, shard=SHARD, version=1, reason="somebody loads it"))
        await house.until(lambda: house.posted and isinstance(house.posted[-1], m.Dropped), "it says so")

    live(story, "a")


def test_a_receive_whose_manifest_comes_while_its_member_joins_is_known_to_the_new_epoch(live) -> None:
    async def story(house: House) -> None:
        await house.publish("s")
        house.delays["s", "manifest_of"] = 0.3
        answer = house.open("a", layout=LAYOUT, may_load=True)
        await house.until(lambda: house.here("a") == [(1, "receiving")], "a receives")
        house.fabric.freeze("s")
        house.links["a"].up.clear()
        house.restart("s", "a", recovery=1.0)
        house.join("s")
        said = house.describe("a")  # without a manifest there is nothing to say of it
        assert not said.receiving
        await asyncio.sleep(0.4)
        house.send(house.registry.handle(said, time.monotonic()))
        house.links["a"].up.set()
        house.tables["a"].ask_again()
        await house.until(lambda: house.states().get("a") == "receiving", "the new epoch knows it")
        house.fabric.thaw("s")
        assert await answer == "arrived v1"
        await house.until(lambda: house.states().get("a") == "ready", "and that it is complete")

    live(story, "s", "a")


def test_an_arena_that_is_being_made_ahead_of_time_is_waited_for(live) -> None:
    """Where memory holds one copy, a second one would be refused."""

    async def story(house: House) -> None:
        assert await house.open("s", layout=LAYOUT, may_load=True) == "load v1"
        arenas = house.tables["a"]._here.arenas
        register = arenas._register

        def room(nbytes: int) -> None:
            if arenas._open:
                raise ArenaTooLarge("no room for a second one")

        def slowly(arena: object) -> None:
            time.sleep(0.3)
            register(arena)  # type: ignore[arg-type]

        arenas.check_room, arenas._register = room, slowly  # type: ignore[method-assign]
        answer = house.open("a", layout=LAYOUT, may_load=True)
        await house.until(lambda: house.states().get("a") == "waiting", "a waits")
        (filling,) = house.tables["s"].shards.all
        await house.seal("s", filling.opened.result(), from_storage=True)
        assert await answer == "arrived v1"

    live(story, "s", "a")


def _failed(house: House, member: str) -> m.OriginError:
    return m.OriginError(epoch=house.registry.epoch, member=member, shard=SHARD, version=1, error="disk")
