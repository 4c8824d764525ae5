"""Engines for fault tests: processes on a node that open shards as a vLLM worker does. Every byte can be checked."""

from __future__ import annotations

import mmap
import os
import time
from dataclasses import dataclass

import numpy as np

from ray_weights.actors.session import Arrived, Session, ToLoad
from ray_weights.config import ServiceSettings
from ray_weights.core.layout import Layout, TensorFacts, build_layout
from ray_weights.memory.mapping import map_arena
from ray_weights.schemas.keys import ModelKey, ShardKey
from ray_weights.schemas.members import ReceiveStats

MiB = 1 << 20


@dataclass(frozen=True, slots=True)
class Weights:
    """What a test moves: a key of its own and bytes that anybody can make again."""

    name: str
    nbytes: int = 128 * MiB

    @property
    def key(self) -> ShardKey:
        return ShardKey(model=ModelKey(model=self.name))

    @property
    def layout(self) -> Layout:
        return build_layout([TensorFacts("w", (self.nbytes,), "uint8", (1,), 1, 0, self.nbytes)], {"uint8": 1})

    def bytes(self) -> np.ndarray:
        seed = int.from_bytes(self.name.encode()[-8:], "little")
        words = np.random.Generator(np.random.SFC64(seed)).bytes(self.nbytes)
        return np.frombuffer(words, dtype=np.uint8)


@dataclass(frozen=True, slots=True)
class Opening:
    """How an open() ended: "load" (this engine is the origin) or "arrived"."""

    outcome: str
    reason: str
    seconds: float
    stats: ReceiveStats | None = None


class Engine:
    """A Ray actor. open() and then load() where it is the origin; check() compares every byte."""

    def __init__(self, settings: bytes) -> None:
        self._session = Session(settings=ServiceSettings.model_validate_json(settings), timeout=90)
        self._mapped: dict[str, tuple[int, int, mmap.mmap]] = {}
        """By weights: version, descriptor, memory."""
        self._versions: dict[str, int] = {}

    def pid(self) -> int:
        return os.getpid()

    def open(self, weights: Weights, timeout: float = 90.0, may_load: bool = True) -> Opening:
        started = time.monotonic()
        got = self._session.open(weights.key, weights.layout, may_load=may_load, timeout=timeout)
        seconds = time.monotonic() - started
        self._versions[weights.name] = got.version
        self._map(weights.name, got, writable=isinstance(got, ToLoad))
        if isinstance(got, ToLoad):
            return Opening("load", got.reason, seconds)
        return Opening("arrived", got.reason, seconds, got.stats)

    def load(self, weights: Weights) -> float:
        """Fill the arena that open() gave, and seal it; returns how long it took."""
        started = time.monotonic()
        self._view(weights.name)[:] = weights.bytes()
        self._session.seal(weights.key, self._versions[weights.name], seconds=1.0, from_storage=True, timeout=90)
        return time.monotonic() - started

    def half_load(self, weights: Weights) -> None:
        """Fill half of the arena, and leave it at that."""
        half = weights.nbytes // 2
        self._view(weights.name)[:half] = weights.bytes()[:half]

    def get(self, weights: Weights, timeout: float = 90.0) -> Opening:
        """open(), and load() where this is the origin."""
        opening = self.open(weights, timeout)
        if opening.outcome == "load":
            self.load(weights)
        return opening

    def wrong_bytes(self, weights: Weights) -> int:
        """How many bytes differ from what they should be, in the mapping that open() made."""
        return int(np.count_nonzero(self._view(weights.name) != weights.bytes()))

    def let_go(self, weights: Weights) -> None:
        """Unmap."""
        _, fd, _ = self._mapped.pop(weights.name)
        os.close(fd)

    def drop(self, weights: Weights) -> None:
        """Stop serving from this node; returns when the memory is free."""
        self._session.drop(weights.key, self._versions.get(weights.name, 1), timeout=90)

    def _map(self, name: str, got: ToLoad | Arrived, *, writable: bool) -> None:
        mapped = map_arena(got.handle, writable=writable)
        # Mapped once more without torch, whose import takes seconds that a test would wait for.
        protection = mmap.PROT_READ | mmap.PROT_WRITE if writable else mmap.PROT_READ
        memory = mmap.mmap(mapped.fd, mapped.nbytes, mmap.MAP_SHARED, protection)
        fd = os.dup(mapped.fd)
        mapped.close()
        self._mapped[name] = (got.version, fd, memory)

    def _view(self, name: str) -> np.ndarray:
        return np.frombuffer(self._mapped[name][2], dtype=np.uint8)
