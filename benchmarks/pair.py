"""Two nodes on one host, nothing shaped: the service against bare NIXL reads of as many bytes in the same run."""

from __future__ import annotations

import time
from dataclasses import replace

import ray

from benchmarks.meter import Meter
from benchmarks.network import Host
from benchmarks.replica import Got
from benchmarks.results import Trial
from benchmarks.rivals import PlainNixl
from benchmarks.stage import Stage
from ray_weights.core.manifest import choose_chunk_nbytes


def two_nodes(host: Host) -> tuple[Host, Host]:
    """One host as two nodes, by addresses that only it sees."""
    return replace(host, address="127.0.0.1"), replace(host, name=f"{host.name}-2", address="127.0.0.2")


def service(stage: Stage, repeat: int) -> Trial:
    """The receiver asks while the origin still loads, so its pages are there when the bytes come, as for bare NIXL."""
    model = f"pair-{repeat}"
    loading = stage.replicas[0].load.remote(model, 1.0 + stage.sizes.nbytes / 1e9)
    _until_loading(stage, model)
    asked = stage.receive(model, [1])
    pids = stage.pids()
    time.sleep(1.0 + 0.5 * stage.sizes.nbytes / 1e9)
    meter = Meter(None, pids)
    got: Got = ray.get(asked, timeout=300)[0]
    used = meter.read()
    ray.get(loading, timeout=60)
    ray.get([r.drop.remote(model) for r in stage.replicas], timeout=60)
    time.sleep(1.0)
    return Trial(
        case="pair",
        label="same host: the service",
        repeat=repeat,
        receivers=1,
        nbytes=stage.sizes.nbytes,
        seconds=(got.transfer_seconds,),
        span=got.transfer_seconds,
        transfer_seconds=(got.transfer_seconds,),
        cpu_busy=used.cpu_busy,
        cpu_by_host=tuple(used.cpu_seconds.items()),
    )


def bare(stage: Stage, repeat: int, *, whole: bool) -> Trial:
    """One READ of all bytes, or the service's chunks and window without its digests."""
    chunk, _ = choose_chunk_nbytes(stage.sizes.nbytes, wanted=stage.settings.chunk_nbytes)
    sizes = (stage.sizes.nbytes, 1) if whole else (chunk, stage.settings.window)
    readers = [
        PlainNixl.options(scheduling_strategy=stage.on(i)).remote(h.name, stage.sizes.nbytes, *sizes)
        for i, h in enumerate(stage.hosts)
    ]
    try:
        card, address = ray.get(readers[0].card.remote(), timeout=120)
        ray.get(readers[1].card.remote(), timeout=120)
        meter = Meter(None, {})
        began, ended = ray.get(readers[1].read.remote(card, address), timeout=300)
        used = meter.read()
    finally:
        for reader in readers:
            ray.kill(reader)
        time.sleep(1.0)
    return Trial(
        case="pair-bare" if whole else "pair-bare-chunks",
        label=f"same host: bare NIXL, {'one read' if whole else 'the same chunks'}",
        baseline=True,
        repeat=repeat,
        receivers=1,
        nbytes=stage.sizes.nbytes,
        seconds=(ended - began,),
        span=ended - began,
        cpu_busy=used.cpu_busy,
    )


def _until_loading(stage: Stage, model: str) -> None:
    deadline = time.monotonic() + 60
    while not any(s.shard.model.model == model for s in stage.status().shards):
        if time.monotonic() > deadline:
            raise TimeoutError(f"nobody loads {model}")
        time.sleep(0.02)
