"""Loads a freshly built model as origin or receiver. Knows torch and the session, nothing of vLLM.

Whatever goes wrong before the model's tensors are touched is raised: the caller then loads the model in its own way.
Once the origin's loader has filled the model, nothing but that loader's own error is raised: the model is good, and at
worst nobody can have it from here.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import torch
from torch import nn

from ray_weights.core.layout import Layout
from ray_weights.errors import RayWeightsError
from ray_weights.integrations.tensors.attributes import (
    apply_attributes,
    changed_by_loading,
    check_no_hidden_views,
    snapshot,
    untouched_buffers,
)
from ray_weights.integrations.tensors.binding import bind, release, settle
from ray_weights.integrations.tensors.facts import layout_of, tensors_of
from ray_weights.integrations.vllm.progress import Log, ProgressLog
from ray_weights.memory.mapping import map_arena
from ray_weights.schemas.keys import ShardKey
from ray_weights.schemas.members import ReceiveStats

if TYPE_CHECKING:
    from ray_weights.actors.session import Arrived, Session, ToLoad
    from ray_weights.memory.arena import MappedArena


@dataclass(frozen=True, slots=True)
class Loaded:
    """How a model got its weights."""

    role: Literal["origin", "receiver"]
    version: int
    nbytes: int
    seconds: float
    """From the call to the weights being in the model."""
    reason: str
    """Why this role."""
    mapped: MappedArena | None
    """The memory that the model's tensors are in; None where they are in the process's own."""
    stats: ReceiveStats | None = None
    not_shared: RayWeightsError | None = None
    """Why an origin that loaded well is no source."""


def load_shared(
    module: nn.Module,
    shard: ShardKey,
    session: Session,
    *,
    device: torch.device,
    load: Callable[[], None],
    version: int | None,
    timeout: float,
    log: Log,
) -> Loaded:
    """Fill `module` from another replica, or by `load` if this one is to be the origin.

    Args:
        module: as built, before any weight is in it, with all its tensors on `device`.
        load: reads storage into the module. Its exceptions pass through; waiting replicas are released first.
        timeout: seconds for the weights to arrive.

    Raises:
        RayWeightsError: the weights cannot be had this way; the module was not touched.
    """
    started = time.monotonic()
    check_no_hidden_views(module)
    layout = layout_of(tensors_of(module), device=device)
    opened = session.open(shard, layout, version=version, may_load=True, timeout=timeout, on_progress=ProgressLog(log))
    from ray_weights.actors.session import Arrived

    if isinstance(opened, Arrived):
        return _receive(module, layout, opened, started)
    log.info("ray_weights: this replica reads storage for %s: %s", shard, opened.reason)
    return _originate(module, shard, layout, opened, session, load, started, log)


def _receive(module: nn.Module, layout: Layout, opened: Arrived, started: float) -> Loaded:
    attributes = opened.manifest.attributes
    mapped = map_arena(opened.handle, writable=False)
    # Refuses before it sets anything, so a failure up to here leaves the module as it was built.
    apply_attributes(module, attributes)
    bind(tensors_of(module), layout, mapped.tensor(), keep_values=False, leave=untouched_buffers(module, attributes))
    return Loaded(
        role="receiver",
        version=opened.version,
        nbytes=layout.nbytes,
        seconds=time.monotonic() - started,
        reason=opened.reason,
        mapped=mapped,
        stats=opened.stats,
    )


def _originate(
    module: nn.Module,
    shard: ShardKey,
    layout: Layout,
    opened: ToLoad,
    session: Session,
    load: Callable[[], None],
    started: float,
    log: Log,
) -> Loaded:
    try:
        writable = map_arena(opened.handle, writable=True)
    except RayWeightsError as e:
        tell_failure(session, shard, opened.version, e, log)
        raise
    arena = writable.tensor()
    try:
        before = snapshot(module)
        bind(tensors_of(module), layout, arena, keep_values=True)
        load()
    except BaseException as e:
        # Including an interrupt: whoever waits for this origin must not wait until its deadline.
        tell_failure(session, shard, opened.version, e, log)
        raise
    problem: RayWeightsError | None = None
    mapped: MappedArena | None = writable
    try:
        settle(tensors_of(module), layout, arena)
        session.seal(
            shard,
            opened.version,
            attributes=changed_by_loading(module, before),
            seconds=time.monotonic() - started,
            from_storage=True,
            timeout=_SEAL_TIMEOUT_S,
        )
        if opened.handle.kind == "host":
            mapped = _to_private(module, layout, opened, writable)
    except RayWeightsError as e:
        problem = e
        tell_failure(session, shard, opened.version, e, log)
        # The transfer actor may reuse memory that was never sealed.
        release(tensors_of(module), arena)
        writable.close()
        mapped = None
    return Loaded(
        role="origin",
        version=opened.version,
        nbytes=layout.nbytes,
        seconds=time.monotonic() - started,
        reason=opened.reason,
        mapped=mapped,
        not_shared=problem,
    )


_SEAL_TIMEOUT_S = 300.0
"""Every byte is digested meanwhile."""


def _to_private(module: nn.Module, layout: Layout, opened: ToLoad, writable: MappedArena) -> MappedArena:
    """Swap the shared mapping for a copy-on-write one: from now on the engine cannot damage what others read."""
    private = map_arena(opened.handle, writable=False)
    bind(tensors_of(module), layout, private.tensor(), keep_values=False)
    writable.close()
    return private


def tell_failure(session: Session, shard: ShardKey, version: int, error: BaseException, log: Log) -> None:
    """Release the replicas that wait for this origin. The error at hand matters more than one met in telling it."""
    try:
        session.fail(shard, version, error)
    except RayWeightsError as e:
        log.warning("ray_weights: could not report the failure of %s: %s", shard, e)


def tell_fall_back(session: Session, shard: ShardKey, version: int | None, error: RayWeightsError, log: Log) -> None:
    """Have it on record that this replica loads in its own way, and why."""
    try:
        session.fall_back(shard, version, f"{type(error).__name__}: {error}")
    except RayWeightsError as e:
        log.warning("ray_weights: could not report that %s is not shared: %s", shard, e)
