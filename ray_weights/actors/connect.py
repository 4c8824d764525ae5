"""Connects a process to the cluster, and starts the coordinator and transfer actors on first use."""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass

import ray
from ray.actor import ActorHandle
from ray.exceptions import GetTimeoutError, RayActorError

from ray_weights.actors.coordinator import Coordinator
from ray_weights.actors.names import (
    COORDINATOR,
    NAMESPACE,
    coordinator_options,
    transfer_name,
    transfer_options,
)
from ray_weights.actors.reach import check_reachable
from ray_weights.actors.transfer import TransferActor
from ray_weights.config import ServiceSettings, ray_address
from ray_weights.errors import CoordinatorUnavailable

_START_IT = "start a cluster with `ray start --head`, or set RAY_ADDRESS to the one that you mean"


@dataclass(frozen=True, slots=True)
class Connection:
    """To the cluster. Use as a context manager, or close() it: only what connect() opened is closed."""

    ours: bool

    def __enter__(self) -> None:
        pass

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        if self.ours and ray.is_initialized():
            ray.shutdown()


def connect(deadline: float) -> Connection:
    """Connect to the cluster, unless this process is connected already. `deadline` is of time.monotonic()."""
    if ray.is_initialized():
        return Connection(ours=False)
    address = ray_address()
    try:
        check_reachable(address, deadline)
    except CoordinatorUnavailable as e:
        raise CoordinatorUnavailable(f"{e}; {_START_IT}") from e
    try:
        # Not Ray's warnings, once per command, about how the cluster is set up: `ray-weights doctor` looks at that.
        ray.init(address=address, namespace=NAMESPACE, log_to_driver=False, logging_level=logging.ERROR)
    except (ConnectionError, RuntimeError, ValueError) as e:
        raise CoordinatorUnavailable(f"no Ray cluster can be reached: {e}; {_START_IT}") from e
    if time.monotonic() > deadline:
        ray.shutdown()
        raise CoordinatorUnavailable("connecting to the Ray cluster took longer than the timeout")
    return Connection(ours=True)


def find_coordinator() -> ActorHandle | None:
    """The running coordinator, if there is one."""
    try:
        return ray.get_actor(COORDINATOR, namespace=NAMESPACE)
    except ValueError:
        return None


def ensure_coordinator(settings: ServiceSettings, deadline: float) -> ActorHandle:
    """The coordinator, started with `settings` where there is none. Raises CoordinatorUnavailable."""
    remote = ray.remote(Coordinator)
    handle = remote.options(**coordinator_options()).remote(settings.model_dump_json().encode())
    _answers(handle.service_settings.remote(), deadline, "the coordinator")
    return handle


def ensure_transfer_actor(coordinator: ActorHandle, node_id: str, device: str, deadline: float) -> ActorHandle:
    """The transfer actor of a device, with the coordinator's settings. Raises CoordinatorUnavailable."""
    settings = _answers(coordinator.service_settings.remote(), deadline, "the coordinator")
    name = transfer_name(node_id, device)
    remote = ray.remote(TransferActor)
    handle = remote.options(**transfer_options(node_id, device)).remote(name, device, settings)
    _answers(handle.progress.remote(), deadline, f"the transfer actor of {device} on node {node_id[:12]}")
    return handle


def _answers(ref, deadline: float, who: str):  # type: ignore[no-untyped-def]
    left = max(0.0, deadline - time.monotonic())
    try:
        return ray.get(ref, timeout=left)
    except GetTimeoutError as e:
        raise CoordinatorUnavailable(
            f"{who} did not answer within {left:.0f} s; `ray-weights doctor` and the dashboard's actor page tell more"
        ) from e
    except RayActorError as e:
        raise CoordinatorUnavailable(f"{who} cannot run: {e}") from e
