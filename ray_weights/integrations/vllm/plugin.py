"""vLLM calls register() in every process of an engine (entry point group vllm.general_plugins).

vLLM may fork after this, so nothing here imports Ray or NIXL.
"""

from __future__ import annotations

import logging
import os
import sys

LOAD_FORMAT = "ray_weights"


def register() -> None:
    """Register the load format. Safe to call again."""
    # Register the name only; the loader's own module says what it needs.
    from vllm.model_executor.model_loader import _LOAD_FORMAT_TO_MODEL_LOADER, register_model_loader

    from ray_weights.integrations.vllm.loader import RayWeightsLoader

    if _LOAD_FORMAT_TO_MODEL_LOADER.get(LOAD_FORMAT) is not RayWeightsLoader:
        register_model_loader(LOAD_FORMAT)(RayWeightsLoader)
    tell_children_about_ray()


def tell_children_about_ray() -> None:
    """Where this process is connected to Ray, say so to the processes that vLLM will start from it.

    Those are no Ray processes: they know neither the cluster's address nor the node that they are on. And they must
    be spawned: a fork copies Ray's connection without the threads that serve it, and the first use of it hangs.
    """
    ray = sys.modules.get("ray")
    if ray is None or not ray.is_initialized():
        return
    context = ray.get_runtime_context()
    os.environ["RAY_WEIGHTS_NODE_ID"] = context.get_node_id()
    os.environ["RAY_WEIGHTS_ADDRESS"] = context.gcs_address
    if os.environ.setdefault("VLLM_WORKER_MULTIPROC_METHOD", "spawn") != "spawn":
        logging.getLogger("vllm.plugins.ray_weights").warning(
            "This process is connected to Ray and VLLM_WORKER_MULTIPROC_METHOD is %s: a forked process cannot use Ray. "
            "Set it to spawn.",
            os.environ["VLLM_WORKER_MULTIPROC_METHOD"],
        )
