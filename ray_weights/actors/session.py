"""One process's access to the transfer actor of its device: what the vLLM loader and the Python API build on."""

from __future__ import annotations

import os
import random
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import ray
from pydantic import TypeAdapter
from ray.exceptions import ActorUnavailableError, GetTimeoutError, RayActorError, RayTaskError

from ray_weights import errors
from ray_weights.actors.connect import Connection, connect, ensure_coordinator, ensure_transfer_actor
from ray_weights.config import ServiceSettings, inherited_node_id, settings_from_environment
from ray_weights.core.layout import Layout
from ray_weights.core.manifest import Manifest
from ray_weights.memory.handles import ArenaHandle
from ray_weights.schemas.keys import ShardKey
from ray_weights.schemas.leases import Opened, OpenRequest, SealRequest
from ray_weights.schemas.members import ReceiveStats
from ray_weights.schemas.status import TransferProgress

_HANDLE: TypeAdapter[ArenaHandle] = TypeAdapter(ArenaHandle)
_PROGRESS_SECONDS = 0.5
_RESTART_SECONDS = 0.5
"""Between two questions to a transfer actor that is being restarted."""
_GRACE_SECONDS = 10.0
"""What a call may take beyond the deadline that the actor itself keeps."""


@dataclass(frozen=True, slots=True)
class ToLoad:
    """This process is the origin: fill the arena, then seal() or fail()."""

    handle: ArenaHandle
    version: int
    reason: str


@dataclass(frozen=True, slots=True)
class Arrived:
    """Every chunk is there and verified."""

    handle: ArenaHandle
    version: int
    manifest: Manifest
    reason: str
    stats: ReceiveStats | None
    """None where nothing was moved: another engine of this device had it."""


class Session:
    """Connects to Ray, and starts the coordinator and the transfer actor where they are not there yet."""

    def __init__(
        self, *, device: str = "cpu", settings: ServiceSettings | None = None, timeout: float | None = None
    ) -> None:
        """
        Args:
            device: "cpu", or "cuda:<uuid>" of the GPU whose transfer actor is meant.
            settings: used where the coordinator has to be started; a running one's own settings rule.
            timeout: seconds for all of it.

        Raises:
            CoordinatorUnavailable: no cluster, or no answer within `timeout`.
        """
        settings = settings or settings_from_environment()
        deadline = time.monotonic() + (timeout or settings.connect_timeout)
        self._connection: Connection = connect(deadline)
        self._coordinator = ensure_coordinator(settings, deadline)
        # A Ray process knows its own node; what it inherited may be another cluster's.
        inherited = inherited_node_id() if self._connection.ours else None
        node_id = inherited or ray.get_runtime_context().get_node_id()
        self._actor = ensure_transfer_actor(self._coordinator, node_id, device, deadline)
        self._arenas: dict[tuple[ShardKey, int], str] = {}
        """Which arena this process fills for a version."""

    def open(
        self,
        shard: ShardKey,
        layout: Layout | None,
        *,
        version: int | None = None,
        may_load: bool,
        timeout: float,
        on_progress: Callable[[TransferProgress], None] | None = None,
    ) -> ToLoad | Arrived:
        """Get a shard of this device: complete, or to be filled by this process.

        Args:
            layout: of the receiving model; None accepts the source's.
            version: None for the newest.
            may_load: whether this process can fill it from storage.
            timeout: seconds.
            on_progress: called about twice a second while waiting and receiving.

        Raises:
            LayoutMismatch, UnknownKey, SourceLost, DeadlineExceeded, ArenaTooLarge, LimitReached,
            CoordinatorUnavailable.
        """
        deadline = time.monotonic() + timeout
        layout_json = layout.model_dump_json().encode() if layout is not None else b""
        while True:
            left = max(0.001, deadline - time.monotonic())
            request = OpenRequest(
                shard=shard, version=version, layout=layout_json, may_load=may_load, timeout=left, pid=os.getpid()
            )
            ref = self._actor.open.remote(request.model_dump_json().encode())
            try:
                opened = Opened.model_validate_json(self._await(ref, left + _GRACE_SECONDS, shard, on_progress))
                break
            except errors.SourceLost as e:
                # It died under us and is being restarted: the next incarnation can be asked the same.
                pause = _RESTART_SECONDS * (0.5 + random.random())
                if not isinstance(e.__cause__, ActorUnavailableError) or time.monotonic() + pause >= deadline:
                    raise
                time.sleep(pause)
        handle = _HANDLE.validate_json(opened.handle)
        if opened.outcome == "load":
            self._arenas[shard, opened.version] = handle.arena_id
            return ToLoad(handle, opened.version, opened.reason)
        stats = ReceiveStats.model_validate_json(opened.stats) if opened.stats else None
        return Arrived(handle, opened.version, Manifest.from_bytes(opened.manifest), opened.reason, stats)

    def create(self, shard: ShardKey, layout: Layout, version: int, *, timeout: float) -> ToLoad:
        """An arena for a version that this process publishes. Raises ArenaTooLarge, LimitReached."""
        request = OpenRequest(
            shard=shard,
            version=version,
            layout=layout.model_dump_json().encode(),
            may_load=True,
            timeout=timeout,
            pid=os.getpid(),
        )
        answer = self._await(self._actor.create.remote(request.model_dump_json().encode()), timeout, shard)
        opened = Opened.model_validate_json(answer)
        handle = _HANDLE.validate_json(opened.handle)
        self._arenas[shard, opened.version] = handle.arena_id
        return ToLoad(handle, opened.version, opened.reason)

    def seal(
        self,
        shard: ShardKey,
        version: int,
        *,
        attributes: tuple[tuple[str, str], ...] = (),
        seconds: float,
        from_storage: bool,
        timeout: float = 600.0,
    ) -> Manifest:
        """Offer the filled arena to everybody. Raises SourceLost, VersionConflict, CoordinatorUnavailable."""
        request = SealRequest(
            shard=shard,
            version=version,
            arena_id=self._arenas.get((shard, version), ""),
            attributes=attributes,
            seconds=seconds,
            from_storage=from_storage,
        )
        answer = self._await(self._actor.seal.remote(request.model_dump_json().encode()), timeout, shard)
        return Manifest.from_bytes(answer)

    def fail(self, shard: ShardKey, version: int, error: BaseException, *, timeout: float = 30.0) -> None:
        """The arena could not be filled: the next in line loads, or all are released if nobody would do better."""
        text, hopeless = f"{type(error).__name__}: {error}", isinstance(error, errors.CaptureUnsupported)
        arena_id = self._arenas.get((shard, version), "")
        self._await(self._actor.fail.remote(shard.model_dump_json().encode(), arena_id, text, hopeless), timeout, shard)

    def fall_back(self, shard: ShardKey, version: int | None, reason: str, *, timeout: float = 10.0) -> None:
        """This process reads storage by itself; for the record."""
        self._await(self._actor.fall_back.remote(shard.model_dump_json().encode(), version, reason), timeout, shard)

    def drop(self, shard: ShardKey, version: int, *, timeout: float = 30.0) -> None:
        """Stop serving a shard from this device."""
        self._await(self._actor.drop.remote(shard.model_dump_json().encode(), version), timeout, shard)

    def close(self) -> None:
        """Disconnect from Ray, if it was this session that connected."""
        self._connection.close()

    def _progress(self) -> list[TransferProgress]:
        """What the actor is doing; nothing where it is too busy to say, since progress is only shown."""
        try:
            lines = ray.get(self._actor.progress.remote(), timeout=_PROGRESS_SECONDS)
        except GetTimeoutError:
            return []
        return [TransferProgress.model_validate_json(line) for line in lines]

    def _await(
        self,
        ref: Any,
        timeout: float,
        shard: ShardKey,
        on_progress: Callable[[TransferProgress], None] | None = None,
    ) -> bytes:
        deadline = time.monotonic() + timeout
        try:
            while on_progress is not None:
                ready, _ = ray.wait([ref], timeout=min(_PROGRESS_SECONDS, max(0.0, deadline - time.monotonic())))
                if ready or time.monotonic() >= deadline:
                    break
                for progress in self._progress():
                    if progress.shard == shard:
                        on_progress(progress)
            return ray.get(ref, timeout=max(0.0, deadline - time.monotonic()) + 0.001)
        except GetTimeoutError as e:
            raise errors.DeadlineExceeded(f"{shard}: the transfer actor did not answer within {timeout:.0f} s") from e
        except RayTaskError as e:
            if isinstance(e.cause, errors.RayWeightsError):
                raise e.cause from None
            raise errors.RayWeightsError(f"{shard}: {e}") from e
        except RayActorError as e:
            raise errors.SourceLost(f"{shard}: the transfer actor of this device ended: {e}") from e
