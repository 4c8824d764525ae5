"""Engines and publishers at random on a few transfer actors, with frozen peers and coordinators that restart.

python -m tests.unit.actors.crowd --minutes 10 runs as many seeds as fit; --seed n one.
"""

from __future__ import annotations

import argparse
import asyncio
import logging
import random
import sys
import time
import traceback
from collections.abc import Awaitable
from unittest import mock

import numpy as np

from ray_weights import errors
from ray_weights.schemas.leases import Opened
from tests.unit.actors.house import LAYOUT, SHARD, House, arena_of, contents, fill, request

VERSIONS = (1, 2)
GRACE = 3.0
"""Seconds by which an answer may be later than its deadline, on a machine that is busy."""


class Crowd:
    """Whatever is asked for must come whole, or end in a typed error, by its deadline; then nothing may be left."""

    def __init__(self, seed: int) -> None:
        self.rng = random.Random(seed)
        rng = self.rng
        members = "abcd"[: rng.choice([1, 2, 3, 4])]
        rate = rng.choice([0.0, 0.0, 40.0])
        self.house = House(*members, latency=rng.choice([0.0, 0.002, 0.02]), chunk_rate=rate)
        self.house.tell = self.tell
        self.members = members
        self.told: list[str] = []
        self.began = time.monotonic()
        self.arrived = 0

    async def run(self) -> None:
        rng, tasks = self.rng, []
        acts = [self.engine] * 5 + [self.publisher] * 3 + [self.dropper, self.freezer, self.restarter]
        for _ in range(rng.randint(3, 14)):
            tasks.append(asyncio.ensure_future(rng.choice(acts)(rng.choice(self.members))))
            await asyncio.sleep(rng.choice([0.0, 0.001, 0.01, 0.1]))
        await asyncio.gather(*tasks)
        await self.nothing_is_left()

    def tell(self, what: str) -> None:
        self.told.append(f"{time.monotonic() - self.began:6.3f} {what}")

    async def engine(self, member: str) -> None:
        """A vLLM worker (may load), or a fetch() (may not), of a version or the newest."""
        rng, table = self.rng, self.house.tables[member]
        version, may_load = rng.choice([None, None, *VERSIONS]), rng.random() < 0.5
        timeout = rng.choice([0.05, 0.5, 4.0])
        layout = LAYOUT if may_load or rng.random() < 0.5 else None
        name = f"{member} v{version} {'engine' if may_load else 'fetch'} {timeout} s"
        self.tell(f"{name} asks")
        asked = request(version, layout=layout, may_load=may_load, timeout=timeout)
        try:
            opened = await self.in_time(name, table.open(asked), timeout)
            if opened.outcome == "load":
                assert may_load, f"{name} cannot load, and is told to"
                await self.load(member, opened)
            else:
                assert np.all(contents(opened) == value(opened.version)), f"{name}: wrong bytes"
                assert version in (None, opened.version), f"{name} got version {opened.version}"
                self.arrived += 1
            self.tell(f"{name}: {opened.outcome} v{opened.version}")
        except errors.RayWeightsError as e:
            self.tell(f"{name}: {type(e).__name__}: {e}")
            if may_load:
                await table.fall_back(SHARD, version, str(e))

    async def in_time(self, name: str, answer: Awaitable[Opened], timeout: float) -> Opened:
        started = time.monotonic()
        try:
            return await answer
        finally:
            late = time.monotonic() - started - timeout
            assert late < GRACE, f"{name} is {late:.1f} s late"

    async def load(self, member: str, opened: Opened) -> None:
        await asyncio.sleep(self.rng.choice([0.0, 0.01, 0.2]))
        if self.rng.random() < 0.2:
            await self.house.tables[member].filling.fail(SHARD, arena_of(opened), "disk on fire")
            return
        fill(opened, value(opened.version))
        await self.house.seal(member, opened, from_storage=True)

    async def publisher(self, member: str) -> None:
        version = self.rng.choice(VERSIONS)
        self.tell(f"{member} publishes v{version}")
        try:
            opened = await self.house.create(member, version)
            await self.load(member, opened)
        except errors.RayWeightsError as e:
            self.tell(f"{member} publishes v{version}: {type(e).__name__}: {e}")

    async def dropper(self, member: str) -> None:
        await asyncio.sleep(self.rng.uniform(0, 0.2))
        self.tell(f"{member} drops")
        await self.house.tables[member].drop(SHARD, self.rng.choice(VERSIONS))

    async def freezer(self, member: str) -> None:
        self.tell(f"{member} freezes")
        self.house.fabric.freeze(member)
        await asyncio.sleep(self.rng.choice([0.01, 0.3, 1.0]))
        self.house.fabric.thaw(member)

    async def restarter(self, _: str) -> None:
        self.tell("the coordinator restarts")
        self.house.restart(*self.members, recovery=self.rng.choice([0.05, 0.5]))
        epoch = self.house.registry.epoch
        for member in self.members:
            await asyncio.sleep(self.rng.choice([0.0, 0.02]))
            if self.house.registry.epoch == epoch and not self.house.knows(member):
                self.house.come_back(member)

    async def nothing_is_left(self) -> None:
        house = self.house
        for member in self.members:  # joined, all of them
            if not house.knows(member):
                house.come_back(member)

        def at_rest() -> bool:
            return all(s.state == "ready" and not s.unconfirmed for t in house.tables.values() for s in t.shards.all)

        await house.until(at_rest, f"at rest: {[(m, house.here(m)) for m in self.members]}", 40)
        await asyncio.sleep(3 * house.latency + 0.02)
        for version in VERSIONS:
            known = {m for m, state in house.states(version).items() if state == "ready"}
            there = {m for m in self.members if (version, "ready") in house.here(m)}
            assert house.states(version).keys() == known == there, (
                f"v{version}: the coordinator sees {house.states(version)}, there is {there}"
            )
        for member in self.members:
            for version in VERSIONS:
                await house.tables[member].drop(SHARD, version)
        for member, table in house.tables.items():
            here = table._here
            await house.until(
                lambda h=here: not h.arenas._open and not h.arenas._never_again, f"{member} frees all", 20
            )
            await house.until(lambda h=here: h.leases.counts() == (0, 0), f"{member} has no lease", 20)
            assert all(s.unwatch is None for s in table.shards.all)


def value(version: int) -> int:
    return 11 * version


def run(seed: int) -> int:
    """Returns how many copies arrived. Raises AssertionError with the story."""

    async def whole() -> int:
        crowd = Crowd(seed)
        try:
            with mock.patch("ray.get_actor", crowd.house.get_actor):
                await asyncio.wait_for(crowd.run(), 60)
        except (Exception, asyncio.CancelledError) as e:
            story = "\n".join([*crowd.told, *traceback.format_exception(e)[-3:]])
            raise AssertionError(f"seed {seed}: {type(e).__name__}: {e}\n{story}") from e
        finally:
            crowd.house.close()
        return crowd.arrived

    return asyncio.run(whole())


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--seed", type=int)
    options = parser.parse_args()
    logging.disable(logging.CRITICAL)
    if options.seed is not None:
        print(f"{run(options.seed)} copies arrived")
        return 0
    until, first, seeds, arrived, bad = time.monotonic() + 60 * options.minutes, int(time.time()), 0, 0, 0
    while time.monotonic() < until:
        try:
            arrived += run(first + seeds)
        except AssertionError as e:
            bad += 1
            print(f"\n{e}\n", flush=True)
        seeds += 1
    print(f"{seeds} seeds from {first} on, {arrived} copies arrived in {options.minutes:g} minutes: {bad} bad")
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
