"""Other ways to send the same bytes, one actor per host: plain NIXL reads, Ray's object store and tensors, Gloo."""

from __future__ import annotations

import time
from typing import Any

import numpy as np
import ray


@ray.remote(num_cpus=0)
class PlainNixl:
    """Memory that others may read, and reads from others: NIXL with a window of chunks, without digests."""

    def __init__(self, host: str, nbytes: int, chunk_nbytes: int, window: int) -> None:
        from ray_weights.memory.host import HostArena
        from ray_weights.transports.nixl import NixlTransport

        self._transport = NixlTransport(f"plain-{host}")
        # The same kind of memory as the service's, with all pages taken.
        self._memory = HostArena.create(f"bench-{host}", nbytes, 0, prefault=True)
        self._transport.register(self._memory.data)
        self._chunk = chunk_nbytes
        self._window = window

    def card(self) -> tuple[bytes, int]:
        return self._transport.card(), self._memory.data.address

    def read(self, card: bytes, address: int) -> tuple[float, float]:
        """Read all of another's memory; returns (began, ended) of time.monotonic()."""
        began = time.monotonic()
        self._read(card, address)
        return began, time.monotonic()

    def _read(self, card: bytes, address: int) -> None:
        from ray_weights.memory.arena import Region
        from ray_weights.transports.transport import PENDING, ReadStatus

        own = self._memory.data
        spans = [(o, min(self._chunk, own.nbytes - o)) for o in range(0, own.nbytes, self._chunk)]
        peer = self._transport.connect(card)
        plan = self._transport.prepare(
            peer, [own.part(o, n) for o, n in spans], [Region(address + o, n) for o, n in spans]
        )
        waiting = list(range(len(spans)))
        flying: list[Any] = []
        while waiting or flying:
            while waiting and len(flying) < self._window:
                flying.append(self._transport.start(plan, waiting.pop(0)))
            state = self._transport.poll(flying[0])
            if state is PENDING:
                time.sleep(0.001)
                continue
            if state.status is not ReadStatus.DONE:
                raise RuntimeError(state.reason)
            self._transport.release(flying.pop(0))
        self._transport.release_plan(plan)
        self._transport.disconnect(peer)


@ray.remote(num_cpus=0)
class StoreUser:
    """Ray's object store: ray.put() on one host, ray.get() on the others."""

    def put(self, nbytes: int) -> list[Any]:
        """In a list, so that the caller gets the reference and not the object."""
        self._kept = ray.put(np.ones(nbytes, dtype=np.uint8))
        return [self._kept]

    def get(self, boxed: list[Any]) -> tuple[float, float]:
        began = time.monotonic()
        got = ray.get(boxed[0], timeout=300)
        ended = time.monotonic()
        assert got[-1] == 1
        return began, ended

    def forget(self) -> None:
        self._kept = None


@ray.remote(num_cpus=0, enable_tensor_transport=True)
class TensorUser:
    """Ray's tensor transport: the tensor stays with its actor, and whoever gets it as an argument reads it."""

    def make(self, nbytes: int) -> Any:
        import torch

        return torch.ones(nbytes, dtype=torch.uint8)

    def take(self, tensor: Any) -> tuple[int, float]:
        return tensor.numel(), time.monotonic()


@ray.remote(num_cpus=0)
class GlooMember:
    """torch.distributed.broadcast over Gloo."""

    def join(self, rank: int, size: int, address: str, nbytes: int) -> None:
        import os
        from datetime import timedelta

        import torch
        import torch.distributed as dist

        os.environ["GLOO_SOCKET_IFNAME"] = "eth0"
        dist.init_process_group(
            "gloo", init_method=f"tcp://{address}", rank=rank, world_size=size, timeout=timedelta(seconds=300)
        )
        self._tensor = torch.full((nbytes,), int(rank == 0), dtype=torch.uint8)
        dist.broadcast(self._tensor[:1], src=0)  # makes the connections

    def broadcast(self) -> tuple[float, float]:
        import torch.distributed as dist

        began = time.monotonic()
        dist.broadcast(self._tensor, src=0)
        ended = time.monotonic()
        assert self._tensor[-1] == 1
        return began, ended
