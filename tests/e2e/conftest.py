"""A Ray cluster of three nodes, tiny checkpoints, and what plain vLLM says of them. The demo runs on the same parts."""

from __future__ import annotations

import signal
import sys
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "examples"))

from demo_support.checkpoint import TINY, TINY_TIED, ensure_checkpoint
from demo_support.cluster import LocalCluster
from demo_support.completions import Completion
from demo_support.plain_vllm import ask_plain_vllm


@pytest.fixture(scope="session")
def tiny_checkpoint() -> Path:
    """9 MB, three shards, output embedding of its own."""
    return ensure_checkpoint(TINY)


@pytest.fixture(scope="session")
def tied_checkpoint() -> Path:
    """The same with tied embeddings."""
    return ensure_checkpoint(TINY_TIED)


@pytest.fixture(scope="session")
def plain_completions() -> Callable[..., tuple[Completion, ...]]:
    """plain_completions(checkpoint, tensor_parallel_size=1): greedy completions by vLLM's own loader."""
    return cache(ask_plain_vllm)


@pytest.fixture(scope="module")
def cluster() -> Iterator[LocalCluster]:
    """Three nodes of three CPUs; this process is a driver. Fails if anything of it is left behind at the end."""
    before = signal.signal(signal.SIGTERM, _interrupt)
    try:
        with LocalCluster(nodes=3) as started, started.driver():
            yield started
    finally:
        signal.signal(signal.SIGTERM, before)


def _interrupt(_number: int, _frame: object) -> None:
    """pytest cleans up after an interrupt; SIGTERM would end it at once, and leave the cluster to its fate."""
    raise KeyboardInterrupt
