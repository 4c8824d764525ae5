"""Arenas that a process fills: whose they are, who else fills one, and what becomes of them."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys

import numpy as np
import pytest

from ray_weights import errors
from ray_weights.schemas import messages as m
from tests.unit.actors.house import LAYOUT, NBYTES, SHARD, House, contents, fill, request


def test_two_processes_that_publish_one_version_each_seal_their_own(live) -> None:
    async def story(house: House) -> None:
        first, second = await house.create("a"), await house.create("a")
        fill(first, 5)
        fill(second, 5, NBYTES // 4)  # it is a quarter through
        await house.seal("a", first)
        got = await house.tables["a"].open(request(1))
        assert np.all(contents(got) == 5)
        fill(second, 5)
        await house.seal("a", second)
        assert np.all(contents(await house.tables["a"].open(request(1))) == 5)

    live(story, "a")


def test_another_that_publishes_other_bytes_is_refused_and_the_first_stays(live) -> None:
    async def story(house: House) -> None:
        first, second = await house.create("a"), await house.create("a")
        fill(first, 5)
        fill(second, 6)
        ended = await asyncio.gather(house.seal("a", first), house.seal("a", second), return_exceptions=True)
        assert [type(e) for e in ended] == [type(None), errors.VersionConflict]
        assert house.here("a") == [(1, "ready")] and house.states() == {"a": "ready"}
        assert np.all(contents(await house.tables["a"].open(request())) == 5)

    live(story, "a")


def test_one_that_fails_to_publish_takes_nothing_from_another(live) -> None:
    async def story(house: House) -> None:
        first, second = await house.create("a"), await house.create("a")
        failed = house.tables["a"].shards.all[1].arena
        assert failed is not None
        await house.tables["a"].filling.fail(SHARD, failed.arena.arena_id, "it broke")
        fill(first, 5)
        await house.seal("a", first)
        with pytest.raises(errors.SourceLost):
            await house.seal("a", second)
        assert house.states() == {"a": "ready"}

    live(story, "a")


def test_who_waits_for_a_version_that_is_published_on_its_own_node_has_it(live) -> None:
    async def story(house: House) -> None:
        await house.publish("s")
        house.fabric.freeze("s")
        answer = house.open("a")
        await house.until(lambda: house.here("a") == [(1, "receiving")], "a receives")
        await house.publish("a")
        assert await answer == "arrived v1"
        house.fabric.thaw("s")

    live(story, "s", "a")


def test_a_seal_that_nobody_confirms_is_an_error_for_all_who_wait_for_it(live, monkeypatch) -> None:
    monkeypatch.setattr("ray_weights.actors.filling.ANSWER_SECONDS", 0.3)

    async def story(house: House) -> None:
        opened = await house.tables["a"].open(request(layout=LAYOUT, may_load=True))
        fill(opened, 5)
        other = house.open("a", layout=LAYOUT, may_load=True, timeout=5.0)
        await asyncio.sleep(0.05)
        monkeypatch.setattr(house.tables["a"], "_accepted", lambda command: None)  # its word is lost
        with pytest.raises(errors.CoordinatorUnavailable):
            await house.seal("a", opened, from_storage=True)
        assert await other == "CoordinatorUnavailable"
        await house.until(lambda: isinstance(house.posted[-1], m.Dropped), "the coordinator is told")

    live(story, "a")


@pytest.mark.parametrize("error", [OSError(24, "Too many open files"), errors.ArenaTooLarge("no room")])
def test_one_that_gets_no_arena_to_load_into_makes_room_for_the_next(live, error: Exception) -> None:
    async def story(house: House) -> None:
        def fail(*_: object) -> None:
            raise error

        arenas = house.tables["a"]._here.arenas
        create, arenas.create = arenas.create, fail  # type: ignore[method-assign, assignment]
        first = house.open("a", layout=LAYOUT, may_load=True)
        await asyncio.sleep(0.02)
        second = house.open("b", layout=LAYOUT, may_load=True)
        assert await first in ("ArenaError", "ArenaTooLarge")
        assert await second == "load v1"
        assert house.here("a") == []
        arenas.create = create  # type: ignore[method-assign]

    live(story, "a", "b")


def test_a_deadline_that_passes_while_the_arena_is_made_leaves_nothing_behind(live) -> None:
    async def story(house: House) -> None:
        plane = house.tables["a"]._here.plane
        gate = asyncio.Event()
        loop = asyncio.get_running_loop()
        plane.post(lambda: asyncio.run_coroutine_threadsafe(gate.wait(), loop).result(20))  # it is busy
        first = house.open("a", layout=LAYOUT, may_load=True, timeout=0.3)
        await asyncio.sleep(0.1)
        second = house.open("b", layout=LAYOUT, may_load=True)
        assert await first == "DeadlineExceeded"
        assert await second == "load v1"
        gate.set()
        await house.until(lambda: not house.tables["a"]._here.arenas._open, "its arena is freed")
        assert house.here("a") == []

    live(story, "a", "b")


def test_one_that_cannot_load_and_is_told_to_makes_room_for_the_next(live) -> None:
    """After a restart of the coordinator with the only source gone."""

    async def story(house: House) -> None:
        await house.publish("s")
        house.fabric.freeze("s")
        answers = [house.open("a", layout=LAYOUT), house.open("b")]
        receiving = [(1, "receiving")]
        await house.until(lambda: house.here("a") == house.here("b") == receiving, "both receive")
        await house.until(lambda: len([t for x in "ab" for t in house.describe(x).receiving]) == 2, "with manifests")
        house.dead.add("s")
        house.restart("s", "a", "b")
        for member in "ab":
            house.come_back(member)
        assert [await a for a in answers] == ["SourceLost", "SourceLost"]
        assert house.states() == {}

    live(story, "s", "a", "b")


def test_publishing_leaks_no_file_descriptor(live) -> None:
    async def story(house: House) -> None:
        await house.publish("a", 1)
        before = len(os.listdir("/proc/self/fd"))
        for version in range(2, 8):
            await house.publish("a", version)
            await house.tables["a"].drop(SHARD, version)
        await house.until(lambda: len(house.tables["a"]._here.arenas._open) == 1, "all but one are freed")
        assert len(os.listdir("/proc/self/fd")) <= before

    live(story, "a")


def test_a_loader_that_dies_makes_room_for_another(live) -> None:
    async def story(house: House) -> None:
        with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as process:
            await house.tables["a"].open(request(layout=LAYOUT, may_load=True, pid=process.pid))
            answer = house.open("b", layout=LAYOUT, may_load=True)
            await house.until(lambda: house.states().get("b") == "waiting", "b waits")
            process.kill()
        assert await answer == "load v1"

    live(story, "a", "b")
