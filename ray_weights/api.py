"""Weights by name, without vLLM: publish() in one Ray process, fetch() in any other.

Both use the coordinator and transfer actors of the cluster and start them where they are not there yet. What was
published stays in the memory of its node's transfer actor; the process that published it may end.
"""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch

from ray_weights.errors import UnknownKey
from ray_weights.integrations.tensors.binding import check_matches
from ray_weights.integrations.tensors.devices import device_id
from ray_weights.integrations.tensors.facts import copy_elements, layout_of, view_of
from ray_weights.integrations.tensors.sources import source_of, state_of
from ray_weights.memory.mapping import map_arena
from ray_weights.progress import ByteBar
from ray_weights.schemas.keys import ModelKey, ShardKey
from ray_weights.schemas.status import CoordinatorStatus, TransferProgress

if TYPE_CHECKING:
    from torch import nn

    from ray_weights.core.layout import Layout
    from ray_weights.schemas.view import Explanation


@dataclass(frozen=True, slots=True)
class Published:
    """What other processes can fetch now."""

    key: str
    version: int
    nbytes: int
    seconds: float
    digest: str
    """SHA-256 of the manifest: equal for equal tensors."""


@dataclass(frozen=True, slots=True)
class Fetched:
    """Weights that have arrived, every byte of them checked against the publisher's digests."""

    key: str
    version: int
    nbytes: int
    seconds: float
    digest: str
    """As in Published."""
    reason: str
    """Where they came from, and why from there."""
    tensors: Mapping[str, torch.Tensor] = field(repr=False)
    """By name. Without `into`, views of memory that the node's transfer actor shares; writing to one changes this
    process's copy only (device memory has no such protection: do not write there). With `into`, the module's own."""


def publish(
    source: nn.Module | Mapping[str, torch.Tensor] | str | os.PathLike[str],
    *,
    key: str,
    version: int,
    timeout: float = 600.0,
    progress: bool = True,
    device: str = "cpu",
) -> Published:
    """Offer tensors under a name to every process of the Ray cluster.

    Args:
        source: a torch module (what its state_dict has), a dict of tensors, or a safetensors file or directory, which
            is read tensor by tensor, without a second full copy in memory.
        key: any name.
        version: counts up with every change. Publishing equal bytes again is harmless.
        timeout: seconds for all of it.
        progress: show a bar when it takes longer than about a second.
        device: whose memory to keep them in: "cpu", or a GPU of this process such as "cuda:0".

    Raises:
        VersionConflict: this version exists with other bytes.
        CaptureUnsupported: a tensor has no plain memory of its own.
        ArenaTooLarge: the node has not enough memory.
        CoordinatorUnavailable, DeadlineExceeded: nobody answered in time.
        FileNotFoundError, TypeError: the source is none.
    """
    from ray_weights.actors.session import Session

    started = time.monotonic()
    shard = _shard(key)
    given = source_of(source)
    total = given.layout.nbytes
    session = Session(device=device_id(torch.device(device)), timeout=timeout)
    try:
        opened = session.create(shard, given.layout, version, timeout=_left(started, timeout))
        try:
            arena = map_arena(opened.handle, writable=True)
            with ByteBar(f"publishing {key}", shown=progress) as bar:
                given.fill(arena.tensor(), lambda nbytes: bar.add(nbytes, total))
            manifest = session.seal(
                shard,
                version,
                seconds=time.monotonic() - started,
                from_storage=given.from_storage,
                timeout=_left(started, timeout),
            )
        except BaseException as e:
            session.fail(shard, version, e)
            raise
        arena.close()
    finally:
        session.close()
    return Published(key, version, total, time.monotonic() - started, manifest.digest())


def fetch(
    key: str,
    *,
    version: int | None = None,
    into: nn.Module | None = None,
    device: str = "cpu",
    timeout: float = 600.0,
    progress: bool = True,
) -> Fetched:
    """Get what was published under a name.

    Args:
        key: as given to publish().
        version: None for the newest.
        into: a module to copy the values into. Its tensors must be the published ones exactly, in name, shape, dtype
            and stride; of a tie one name suffices. Nothing is copied unless all of them are.
        device: without `into`, where the tensors shall be: "cpu", or a GPU of this process such as "cuda:0".
        timeout: seconds for all of it.
        progress: show a bar when it takes longer than about a second.

    Raises:
        UnknownKey: nobody published it; names the closest keys.
        LayoutMismatch: `into` has other tensors; names the first tensor and field that differ.
        SourceLost, DeadlineExceeded, CoordinatorUnavailable, ArenaTooLarge: it cannot be had, now or here.
    """
    from ray_weights.actors.session import Arrived, Session

    started = time.monotonic()
    shard = _shard(key)
    own = state_of(into) if into is not None else None
    session = Session(device=device_id(torch.device(device)), timeout=timeout)
    try:
        with ByteBar(f"fetching {key}", shown=progress) as bar:

            def show(p: TransferProgress) -> None:
                bar.set(p.nbytes_verified, p.nbytes, p.state)

            opened = session.open(
                shard,
                _layout_without_ties(own) if own is not None else None,
                version=version,
                may_load=False,
                timeout=_left(started, timeout),
                on_progress=show,
            )
        assert isinstance(opened, Arrived), "who may not load is never the origin"
    finally:
        session.close()
    mapped = map_arena(opened.handle, writable=False)
    memory = mapped.tensor()
    layout = opened.manifest.layout
    tensors = {s.name: view_of(memory, s) for s in layout.tensors}
    if own is not None:
        check_matches(own, layout)
        for name, t in tensors.items():
            copy_elements(own[name], t)
        tensors = own
    # The tensors hold the mapping themselves.
    mapped.close()
    return Fetched(
        key=key,
        version=opened.version,
        nbytes=layout.nbytes,
        seconds=time.monotonic() - started,
        digest=opened.manifest.digest(),
        reason=opened.reason,
        tensors=tensors,
    )


def status(*, timeout: float = 30.0) -> CoordinatorStatus:
    """Every key, its sources and receivers. Raises CoordinatorUnavailable where no coordinator runs."""
    from ray_weights import observe

    return observe.read_record(timeout)


def explain(key: str, *, timeout: float = 30.0) -> Explanation:
    """What happened to every replica of the models that `key` names, each decision with its reason.

    Args:
        key: a model's name, the beginning or a part of it, as in `ray-weights explain`.
        timeout: seconds.

    Raises:
        UnknownKey: nothing is named so; names the closest keys.
        CoordinatorUnavailable: no cluster, no coordinator, or no answer in time.
    """
    from ray_weights import observe

    return observe.explain(key, timeout)


def _shard(key: str) -> ShardKey:
    if not key:
        raise UnknownKey("a key is a name, not an empty string")
    return ShardKey(model=ModelKey(model=key, engine="torch"))


def _layout_without_ties(own: Mapping[str, torch.Tensor]) -> Layout | None:
    """The layout to insist on before anything is moved; None where the module has ties.

    A checkpoint carries one name of a tie, and it cannot be known which: then the tensors are compared on arrival.
    """
    layout = layout_of(own)
    places = [(s.offset, s.nbytes) for s in layout.tensors if s.nbytes]
    return layout if len(set(places)) == len(places) else None


def _left(started: float, timeout: float) -> float:
    return max(0.1, started + timeout - time.monotonic())
