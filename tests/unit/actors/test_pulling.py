"""Leases that come late, transfers that are ended twice, a data plane that fails."""

from __future__ import annotations

import asyncio
import subprocess
import sys

from ray_weights import errors
from ray_weights.schemas import messages as m
from tests.unit.actors.house import LAYOUT, SHARD, House


def test_a_transfer_that_is_ended_twice_at_once_keeps_memory_that_a_late_read_may_write_to(live) -> None:
    async def story(house: House) -> None:
        await house.publish("s")
        answer = house.open("a", layout=LAYOUT)
        shards, arenas = house.tables["a"].shards, house.tables["a"]._here.arenas
        await house.until(lambda: shards.all and shards.all[0].progress(()).chunks_verified > 1, "a receives")
        (local,) = shards.all
        house.fabric.freeze("s")
        await house.until(lambda: local.receive is not None and local.receive._tickets, "a read is under way")
        late = errors.DeadlineExceeded("late")
        await asyncio.gather(shards.give_up(local, "late", late), shards.give_up(local, "late", late))
        assert await answer == "DeadlineExceeded"
        await asyncio.sleep(0.1)
        assert not arenas._open and len(arenas._never_again) == 1
        house.fabric.thaw("s")
        await house.until(lambda: not arenas._never_again, "it is freed once the reads have ended")

    live(story, "s", "a", chunk_rate=20.0)


def test_a_lease_that_is_granted_after_its_upstream_was_left_is_given_back(live, monkeypatch) -> None:
    monkeypatch.setattr("ray_weights.actors.pulling.HANDSHAKE_SECONDS", 0.2)

    async def story(house: House) -> None:
        await house.publish("s")
        await house.publish("t")
        for member in "st":
            house.delays[member, "grant"] = 0.5
        answer = house.open("a", layout=LAYOUT)
        await house.until(lambda: house.here("a") == [(1, "receiving")], "a receives")
        (local,) = house.tables["a"].shards.all
        await house.until(lambda: local.leases, "it asks for a lease")
        for upstream in "tst":
            house.tables["a"].deliver(_receive(house, upstream))
        await asyncio.sleep(0.3)
        house.delays.clear()
        assert await answer == "arrived v1"
        await house.until(lambda: house.tables["a"]._here.leases.counts() == (0, 0), "a holds no lease")
        for member in "st":
            leases = house.tables[member]._here.leases
            await house.until(lambda book=leases: book.counts() == (0, 0), f"{member} has none out")

    live(story, "s", "t", "a")


def test_a_data_plane_that_fails_ends_its_process() -> None:
    script = """
import time
from ray_weights.actors.plane import DataPlane
from ray_weights.transports.memory import Fabric

plane = DataPlane(Fabric().join("a"), 1)
plane._receives.add(object())  # has no step(), nor failed()
time.sleep(20)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60)
    assert done.returncode == 1 and "the data plane has failed" in done.stderr


def _receive(house: House, upstream: str) -> m.Receive:
    (local,) = house.tables["a"].shards.all
    assert local.manifest is not None
    return m.Receive(
        epoch=house.registry.epoch,
        shard=SHARD,
        version=1,
        seal=local.manifest.seal(),
        upstreams=(upstream,),
        addresses=((upstream, f"actor-{upstream}"),),
        reason="moved",
    )
