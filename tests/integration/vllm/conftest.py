"""vLLM inside the test's own process, as far as loading goes: real configs, real models, no engine."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[3]
sys.path.insert(0, str(REPOSITORY / "examples"))

ENGINE_ENV = {"VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_CPU_OMP_THREADS_BIND": "nobind", "VLLM_NO_USAGE_STATS": "1"}
ENGINE_KWARGS = {"dtype": "float32", "max_model_len": 256, "enforce_eager": True}
os.environ.update(ENGINE_ENV)


@pytest.fixture(scope="session")
def checkpoint() -> Path:
    """A tiny Llama."""
    from demo_support.checkpoint import TINY, ensure_checkpoint

    return ensure_checkpoint(TINY)


@pytest.fixture(scope="session")
def tied_checkpoint() -> Path:
    """The same with word embeddings tied to the output layer."""
    from demo_support.checkpoint import TINY_TIED, ensure_checkpoint

    return ensure_checkpoint(TINY_TIED)


@pytest.fixture(scope="module")
def parallel_groups() -> Iterator[None]:
    """vLLM's process groups, of this one process."""
    import torch
    from vllm.config import VllmConfig, set_current_vllm_config
    from vllm.distributed import (
        cleanup_dist_env_and_memory,
        ensure_model_parallel_initialized,
        init_distributed_environment,
    )

    from ray_weights.integrations.vllm.plugin import register

    patch = pytest.MonkeyPatch()
    # What registering leaves in the environment would send later tests to a cluster that is gone.
    for name in ("RAY_WEIGHTS_NODE_ID", "RAY_WEIGHTS_ADDRESS", "VLLM_WORKER_MULTIPROC_METHOD"):
        patch.setenv(name, "")
        patch.delenv(name)
    register()
    # vLLM's CPU worker does the same: without an accelerator the real one raises.
    patch.setattr(torch.accelerator, "empty_cache", lambda: None)
    with set_current_vllm_config(VllmConfig()):
        init_distributed_environment(1, 0, "tcp://127.0.0.1:0", 0, "gloo")
        ensure_model_parallel_initialized(1, 1)
        yield
    cleanup_dist_env_and_memory()
    patch.undo()


@pytest.fixture(scope="module")
def configure(parallel_groups) -> Callable[..., object]:
    """configure(checkpoint, **engine arguments) -> VllmConfig."""
    from vllm.engine.arg_utils import EngineArgs

    def build(checkpoint: Path, **kwargs: object) -> object:
        given = {**ENGINE_KWARGS, "load_format": "ray_weights", **kwargs}
        return EngineArgs(model=str(checkpoint), **given).create_engine_config()

    return build


@pytest.fixture
def caplog_vllm(configure, checkpoint) -> Iterator[list[str]]:
    """Messages of this package in vLLM's log, which does not propagate to pytest's."""
    configure(checkpoint)  # the first one of a process sets up vLLM's logging, and takes all handlers away
    messages: list[str] = []

    class Collect(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            messages.append(record.getMessage())

    collect, log = Collect(), logging.getLogger("vllm.plugins.ray_weights")
    log.addHandler(collect)
    yield messages
    log.removeHandler(collect)
