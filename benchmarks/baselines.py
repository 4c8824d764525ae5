"""What the service is compared with, over the same links in the same run."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

import ray

from benchmarks.meter import Meter
from benchmarks.results import Trial
from benchmarks.rivals import GlooMember, PlainNixl, StoreUser, TensorUser
from benchmarks.stage import Stage
from ray_weights.core.manifest import choose_chunk_nbytes

Times = Sequence[tuple[float, float]]


def star(stage: Stage, readers: Sequence[Any], repeat: int) -> Trial:
    """Everybody reads from the origin directly."""
    card, address = ray.get(readers[0].card.remote(), timeout=60)
    return _measured(stage, "star", "star: plain NIXL reads from the origin", repeat,
                     lambda: ray.get([r.read.remote(card, address) for r in readers[1:]], timeout=600))  # fmt: skip


def complete_copies(stage: Stage, readers: Sequence[Any], repeat: int) -> Trial:
    """Only who has all of it is read from: each round doubles the copies."""

    def rounds() -> Times:
        began, times, have = time.monotonic(), [], [0]
        want = list(range(1, len(readers)))
        while want:
            pairs = list(zip(have, want, strict=False))
            cards = ray.get([readers[source].card.remote() for source, _ in pairs], timeout=60)
            reads = [readers[to].read.remote(*card) for (_, to), card in zip(pairs, cards, strict=True)]
            times += [(began, ended) for _, ended in ray.get(reads, timeout=600)]
            have += [to for _, to in pairs]
            want = want[len(pairs) :]
        return times

    return _measured(stage, "copies", "complete copies only: plain NIXL reads in rounds", repeat, rounds)


def object_store(stage: Stage, repeat: int) -> Trial:
    """ray.put() on the origin, ray.get() on every other host."""
    users = [StoreUser.options(scheduling_strategy=stage.on(i)).remote() for i in range(len(stage.hosts))]
    boxed = ray.get(users[0].put.remote(stage.sizes.nbytes), timeout=60)
    ray.get([u.forget.remote() for u in users[1:]], timeout=60)  # they are up
    try:
        return _measured(stage, "store", "Ray object store: put, then get on each host", repeat,
                         lambda: ray.get([u.get.remote(boxed) for u in users[1:]], timeout=600))  # fmt: skip
    finally:
        end(users)


def tensor_transport(stage: Stage, repeat: int) -> Trial:
    """An actor's tensor as the argument of a method of each other actor."""
    users = [TensorUser.options(scheduling_strategy=stage.on(i)).remote() for i in range(len(stage.hosts))]
    make = users[0].make.options(tensor_transport="nixl")
    warm = make.remote(1024)  # makes the agents and their connections
    ray.get([u.take.remote(warm) for u in users[1:]], timeout=120)
    tensor = make.remote(stage.sizes.nbytes)
    ray.wait([tensor], timeout=60, fetch_local=False)

    def take() -> Times:
        began = time.monotonic()
        taken = ray.get([u.take.remote(tensor) for u in users[1:]], timeout=600)
        assert all(n == stage.sizes.nbytes for n, _ in taken)
        return [(began, ended) for _, ended in taken]

    try:
        return _measured(stage, "rdt", "Ray's NIXL tensor transport", repeat, take)
    finally:
        end(users)


def gloo(stage: Stage, repeat: int) -> Trial:
    """torch.distributed.broadcast."""
    members = [GlooMember.options(scheduling_strategy=stage.on(i)).remote() for i in range(len(stage.hosts))]
    address = f"{stage.hosts[0].address}:{29500 + repeat}"
    nbytes, size = stage.sizes.nbytes, len(members)
    ray.get([m.join.remote(i, size, address, nbytes) for i, m in enumerate(members)], timeout=180)
    try:
        return _measured(stage, "gloo", "torch.distributed broadcast (Gloo)", repeat,
                         lambda: ray.get([m.broadcast.remote() for m in members], timeout=600)[1:])  # fmt: skip
    finally:
        end(members)


def readers_on(stage: Stage) -> list[Any]:
    """A plain reader per host, for star() and complete_copies()."""
    chunk, _ = choose_chunk_nbytes(stage.sizes.nbytes, wanted=stage.settings.chunk_nbytes)
    readers = [
        PlainNixl.options(scheduling_strategy=stage.on(i)).remote(
            h.name, stage.sizes.nbytes, chunk, stage.settings.window
        )
        for i, h in enumerate(stage.hosts)
    ]
    ray.get([r.card.remote() for r in readers], timeout=180)
    return readers


def end(actors: Sequence[Any]) -> None:
    for actor in actors:
        ray.kill(actor)
    time.sleep(1.0)


def _measured(stage: Stage, case: str, label: str, repeat: int, run: Callable[[], Times]) -> Trial:
    meter = Meter(stage.network, {})
    times = run()
    used = meter.read()
    return Trial(
        case=case,
        label=label,
        baseline=True,
        repeat=repeat,
        receivers=len(times),
        nbytes=stage.sizes.nbytes,
        seconds=tuple(ended - began for began, ended in times),
        span=max(ended for _, ended in times) - min(began for began, _ in times),
        origin_sent=used.links[stage.hosts[0].name].sent,
        received=tuple(used.links[h.name].received for h in stage.hosts[1:]),
        cpu_busy=used.cpu_busy,
    )
