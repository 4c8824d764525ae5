"""Names, options and placement of every actor of this package."""

from __future__ import annotations

from typing import Any

from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

NAMESPACE = "ray_weights"
COORDINATOR = "coordinator"
TRANSFER_PREFIX = "transfer-"

ActorOptions = dict[str, Any]


def transfer_name(node_id: str, device: str) -> str:
    """Name of the one transfer actor of a device, for example "transfer-3f2a9c41d07e-cpu"."""
    return f"{TRANSFER_PREFIX}{node_id[:12]}-{device.replace(':', '-')}"


def coordinator_options() -> ActorOptions:
    """Detached and restarted for ever: its state is rebuilt from the transfer actors."""
    return ActorOptions(
        name=COORDINATOR,
        namespace=NAMESPACE,
        lifetime="detached",
        get_if_exists=True,
        num_cpus=0,
        max_restarts=-1,
        max_task_retries=0,
        max_concurrency=10_000,
    )


def transfer_options(node_id: str, device: str) -> ActorOptions:
    """Pinned to its node; restarted there, where it finds the arenas that engines still hold."""
    options = ActorOptions(
        name=transfer_name(node_id, device),
        namespace=NAMESPACE,
        lifetime="detached",
        get_if_exists=True,
        num_cpus=0,
        max_restarts=-1,
        max_task_retries=0,
        max_concurrency=1_000,
        scheduling_strategy=NodeAffinitySchedulingStrategy(node_id=node_id, soft=False),
    )
    if device != "cpu":
        # It shares the GPU with the engine, so it must not take the resource; it still has to see the device.
        options["runtime_env"] = {"env_vars": {"RAY_EXPERIMENTAL_NOSET_CUDA_VISIBLE_DEVICES": "1"}}
    return options
