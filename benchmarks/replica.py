"""The user of the service on each host: a process that holds a Session, as an inference engine does."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

import ray

from ray_weights.actors.names import NAMESPACE, transfer_name
from ray_weights.schemas.keys import ModelKey, ShardKey

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True, slots=True)
class Got:
    """One receiver's part of a trial. Times are of time.monotonic(), which all hosts of one machine share."""

    host: str
    began: float
    ended: float
    transfer_seconds: float
    first_chunk_seconds: float
    read_again: int
    from_receivers: int
    """Chunks read from receivers that were still receiving themselves."""
    upstreams: tuple[str, ...]


@ray.remote(num_cpus=0, max_concurrency=2)
class Replica:
    """Pinned to its host by the driver."""

    def __init__(self, host: str, nbytes: int, settings: bytes) -> None:
        """`settings` of the service, for the first one that comes: it starts the coordinator."""
        from ray_weights.actors.session import Session
        from ray_weights.config import ServiceSettings
        from ray_weights.core.layout import TensorFacts, build_layout

        self._host = host
        self._session = Session(settings=ServiceSettings.model_validate_json(settings), timeout=120)
        facts = TensorFacts("weights", (nbytes,), "uint8", (1,), 1, 0, nbytes)
        self._layout = build_layout([facts], {"uint8": 1})
        self._nbytes = nbytes

    def member_actor(self) -> str:
        """Name of the transfer actor of this host."""
        return transfer_name(ray.get_runtime_context().get_node_id(), "cpu")

    def load(self, model: str, wait: float = 0.0) -> None:
        """Become the origin: fill the arena as a loader would, and offer it, `wait` seconds after it is filled."""
        from ray_weights.actors.session import ToLoad
        from ray_weights.memory.mapping import map_arena

        opened = self._session.open(_shard(model), self._layout, may_load=True, timeout=60)
        assert isinstance(opened, ToLoad), f"{self._host} was to be the origin of {model}"
        mapped = map_arena(opened.handle, writable=True)
        mapped.tensor().copy_(self._bytes())
        mapped.close()
        time.sleep(wait)
        self._session.seal(_shard(model), opened.version, seconds=1.0, from_storage=True)

    def receive(self, model: str, start_at: float, timeout: float) -> Got:
        """Get the shard from the others, beginning at `start_at`."""
        from ray_weights.actors.session import Arrived

        time.sleep(max(0.0, start_at - time.monotonic()))
        began = time.monotonic()
        opened = self._session.open(_shard(model), self._layout, may_load=True, timeout=timeout)
        ended = time.monotonic()
        assert isinstance(opened, Arrived), f"{self._host} was told to load {model} itself: {opened.reason}"
        stats = opened.stats
        assert stats is not None, f"{model} was on {self._host} already"
        return Got(
            self._host, began, ended, stats.seconds, stats.first_chunk_seconds, stats.read_again_nbytes,
            stats.chunks_from_receivers, tuple(m for m, _ in stats.upstream_nbytes),
        )  # fmt: skip

    def wrong_bytes(self, model: str) -> int:
        """How many bytes of what was received are not those that the origin has loaded."""
        from ray_weights.actors.session import Arrived
        from ray_weights.memory.mapping import map_arena

        opened = self._session.open(_shard(model), self._layout, may_load=False, timeout=60)
        assert isinstance(opened, Arrived)
        mapped = map_arena(opened.handle, writable=False)
        wrong = int((mapped.tensor() != self._bytes()).sum())
        mapped.close()
        return wrong

    def _bytes(self) -> torch.Tensor:
        """What all weights of the benchmark are made of: (nbytes,) uint8."""
        import torch

        words = torch.randint(0, 2**62, (-(-self._nbytes // 8),), generator=torch.Generator().manual_seed(1))
        return words.view(torch.uint8)[: self._nbytes]

    def wait_for_transfer_actor(self, timeout: float) -> None:
        """Return once the transfer actor of this host answers, after a restart."""
        from ray.exceptions import RayActorError

        actor = ray.get_actor(self.member_actor(), namespace=NAMESPACE)
        deadline = time.monotonic() + timeout
        while True:
            try:
                ray.get(actor.progress.remote(), timeout=timeout)
                return
            except RayActorError:
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.25)

    def drop(self, model: str) -> None:
        self._session.drop(_shard(model), 1)


def _shard(model: str) -> ShardKey:
    return ShardKey(model=ModelKey(model=model))
