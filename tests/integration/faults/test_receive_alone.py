"""One receive and its data plane, over the in-memory transport: what must hold when it ends badly."""

from __future__ import annotations

import os
from collections.abc import Iterator
from concurrent.futures import Future
from dataclasses import dataclass, field

import pytest

from ray_weights.actors.arenas import Arenas
from ray_weights.actors.plane import DataPlane
from ray_weights.actors.receive import Receive, Wishes
from ray_weights.actors.shard_arena import ShardArena
from ray_weights.core.link import ReceiverOptions
from ray_weights.core.manifest import Manifest
from ray_weights.errors import ArenaTooLarge
from ray_weights.schemas.leases import Lease
from ray_weights.transports.memory import Fabric, InMemoryTransport
from tests.integration.faults.engines import Weights
from tests.integration.faults.fleet import wait_until

WEIGHTS = Weights("alone", 64 << 10)
CHUNK = 4 << 10
OPTIONS = ReceiverOptions(window=2, stall_seconds=0.05, first_chunk_seconds=0.05)


@dataclass
class Bench:
    """A source "s" and a receiver "r" with one receive, whose wishes are kept."""

    fabric: Fabric
    source: InMemoryTransport
    served: ShardArena
    plane: DataPlane
    arenas: Arenas
    receive: Receive
    finished: list[object] = field(default_factory=list)
    failed: list[Exception] = field(default_factory=list)
    given_back: list[str] = field(default_factory=list)
    left: list[ShardArena] = field(default_factory=list)

    def give_back(self, upstream: str, ended: Future[None] | None) -> None:
        if ended is None:
            self.given_back.append(upstream)
        else:
            ended.add_done_callback(lambda _: self.given_back.append(upstream))

    def connect(self) -> None:
        lease = Lease(
            arena_id=self.served.arena.arena_id,
            card=self.source.card(),
            data_address=self.served.data.address,
            page_address=self.served.page_address,
            memory_kind="DRAM",
        )
        self.plane.call(lambda: self.receive.connected("s", lease))


@pytest.fixture
def bench() -> Iterator[Bench]:
    fabric = Fabric()
    source, reader = fabric.join("s"), fabric.join("r")
    served = Arenas(source, "s", "cpu", 8, 0).create(WEIGHTS.key, 1, WEIGHTS.layout, CHUNK)
    served.arena.view(0, WEIGHTS.nbytes)[:] = os.urandom(WEIGHTS.nbytes)
    manifest = Manifest(
        layout=WEIGHTS.layout, chunk_nbytes=CHUNK, digest_algorithm="blake3-128", digests=served.digests("blake3-128")
    )
    served.describe(manifest)
    served.advertise_all()
    plane, arenas = DataPlane(reader, 1), Arenas(reader, "r", "cpu", 8, 0)
    arena = arenas.create(WEIGHTS.key, 1, WEIGHTS.layout, CHUNK)
    arena.describe(manifest)
    made: list[Bench] = []
    wishes = Wishes(
        connect=lambda upstream: None,
        disconnect=lambda upstream, ended: made[0].give_back(upstream, ended),
        report=lambda report, have: None,
        measured=lambda upstream, rate: None,
        left=lambda arena: made[0].left.append(arena),
        finished=lambda stats: made[0].finished.append(stats),
        failed=lambda error: made[0].failed.append(error),
    )

    def no_room(old: ShardArena, verified: tuple[int, ...]) -> ShardArena:
        raise ArenaTooLarge("no room for a second arena")

    receive = Receive(plane, WEIGHTS.key, 1, manifest, arena, no_room, wishes, OPTIONS)
    made.append(Bench(fabric, source, served, plane, arenas, receive))
    yield made[0]
    plane.stop()


def test_what_arrived_is_what_was_sent(bench: Bench):
    bench.plane.call(lambda: bench.receive.start(("s",)))
    bench.connect()
    wait_until(lambda: bench.finished, "all is there")
    assert bench.receive.arena.digests("xxh3-128") == bench.served.digests("xxh3-128")
    assert bench.given_back == ["s"]


def test_an_arena_that_a_read_may_still_write_into_is_not_clean_even_when_it_could_not_move(bench: Bench):
    bench.plane.call(lambda: bench.receive.start(("s",)))
    bench.fabric.immediate = False  # type: ignore[misc]
    bench.connect()
    wait_until(lambda: bench.fabric.step(1), "its page is read")
    wait_until(lambda: bench.receive.machine.reading_from("s"), "reads are in flight")
    bench.fabric.freeze("s")
    wait_until(lambda: bench.failed, "the receive has failed")
    assert isinstance(bench.failed[0], ArenaTooLarge)
    assert bench.plane.call(bench.receive.cancel) is False
    assert len(bench.failed) == 1
    # As long as the source may carry out those reads it must keep the memory.
    assert not bench.given_back and not bench.left
    bench.fabric.immediate = True  # type: ignore[misc]
    bench.fabric.thaw("s")
    wait_until(lambda: bench.given_back == ["s"], "the lease is given back")
    assert bench.receive.arena in bench.left


def test_a_lease_that_is_granted_after_the_end_is_given_back(bench: Bench):
    bench.plane.call(lambda: bench.receive.start(("s",)))
    assert bench.plane.call(bench.receive.cancel) is True
    bench.connect()
    assert bench.given_back == ["s"]
    assert not bench.finished and not bench.failed
