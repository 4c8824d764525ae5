"""attach(llm): make an engine that loaded in another way a source for others.

What can be shared is the weights as they were before vLLM processed them. On a CPU vLLM packs them into its kernels and
frees the originals, so nothing is left to share. On a GPU an unquantized dense model runs on them as they are.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import torch

from ray_weights.errors import CaptureUnsupported

if TYPE_CHECKING:
    from vllm import LLM
    from vllm.v1.worker.worker_base import WorkerBase

_INSTEAD = (
    'Start the engine with load_format="ray_weights" instead: it then reads storage once, in the same time, '
    "and is a source from the start"
)


def attach(llm: LLM, *, timeout: float = 300.0) -> None:
    """Offer the weights of a running engine to replicas that start with load_format="ray_weights".

    On GPUs, for unquantized dense models. The weights are copied into memory of their own on the device, so they take
    their size a second time there; vLLM's gpu_memory_utilization has to have left that free. An engine in other
    processes than this one needs VLLM_ALLOW_INSECURE_SERIALIZATION=1 in the environment, for vLLM to run a function in
    its workers.

    Args:
        llm: a vllm.LLM.
        timeout: seconds, in each worker.

    Raises:
        CaptureUnsupported: the engine no longer has the weights in a form that another one can load.
        ArenaTooLarge: no memory for the copy.
        CoordinatorUnavailable: no Ray cluster, or no answer.
    """
    engine = getattr(llm, "llm_engine", None)
    if engine is None:
        raise CaptureUnsupported(f"attach takes a vllm.LLM, not {type(llm).__name__}. {_INSTEAD}")
    config = engine.vllm_config
    if config.load_config.load_format == "ray_weights":
        return
    if config.device_config.device_type != "cuda":
        raise CaptureUnsupported(
            f"on {config.device_config.device_type} vLLM packs the weights into its kernels after loading and frees "
            f"the originals, so a running engine has nothing that another could load. {_INSTEAD}"
        )
    llm.collective_rpc(_Capture(timeout))


class _Capture:
    """Runs in each worker."""

    def __init__(self, timeout: float) -> None:
        self._timeout = timeout

    def __call__(self, worker: WorkerBase) -> None:
        from ray_weights.actors.session import Session, ToLoad
        from ray_weights.integrations.tensors.binding import copy_into
        from ray_weights.integrations.tensors.devices import device_id
        from ray_weights.integrations.tensors.facts import layout_of, tensors_of
        from ray_weights.integrations.vllm.key import ranks_of, shard_key
        from ray_weights.integrations.vllm.loader import check_capture
        from ray_weights.integrations.vllm.options import LoaderOptions
        from ray_weights.memory.mapping import map_arena

        started = time.monotonic()
        config, model = worker.vllm_config, worker.get_model()
        device = torch.device("cuda", torch.cuda.current_device())
        check_capture(model, config.model_config, config, device)
        shard = shard_key(config, config.model_config, ranks_of(config), device, LoaderOptions())
        tensors = tensors_of(model)
        layout = layout_of(tensors, device=device)
        session = Session(device=device_id(device), timeout=self._timeout)
        try:
            opened = session.open(shard, layout, may_load=True, timeout=self._timeout)
            if not isinstance(opened, ToLoad):
                return  # the device has them already
            try:
                arena = map_arena(opened.handle, writable=True)
                copy_into(tensors, layout, arena.tensor())
                torch.cuda.synchronize(device)
                seconds = time.monotonic() - started
                session.seal(shard, opened.version, seconds=seconds, from_storage=False, timeout=self._timeout)
            except BaseException as e:
                session.fail(shard, opened.version, e)
                raise
            arena.close()
        finally:
            session.close()
