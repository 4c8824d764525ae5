"""The transfer actor: owns the memory of one device's weights and moves them. A shell around ShardTable.

Crash-only: when in doubt, kill it. Ray starts it again on its node, and it takes up the arenas that engines still hold.
"""

from __future__ import annotations

import asyncio
import logging
import os
import secrets

import ray

from ray_weights.actors.arenas import Arenas
from ray_weights.actors.coordinator_link import CoordinatorLink
from ray_weights.actors.plane import DataPlane
from ray_weights.actors.shard_table import ShardTable
from ray_weights.actors.surroundings import Surroundings
from ray_weights.config import ServiceSettings
from ray_weights.metrics import TransferMetrics
from ray_weights.schemas.keys import ShardKey
from ray_weights.schemas.leases import LeaseRequest, OpenRequest, SealRequest
from ray_weights.schemas.members import MemberInfo
from ray_weights.schemas.messages import COMMAND, Join
from ray_weights.transports.nixl import NixlSettings, NixlTransport

log = logging.getLogger(__name__)
_ADOPT_SECONDS = 3600.0
"""Every digest of what an engine still holds is computed, which takes as long as it takes."""
_SHOW_SECONDS = 2.0


class TransferActor:
    """Every argument and answer is JSON bytes of a schema, validated on arrival."""

    def __init__(self, actor_name: str, device: str, settings: bytes) -> None:
        config = ServiceSettings.model_validate_json(settings)
        context = ray.get_runtime_context()
        node_id = context.get_node_id()
        member = f"{actor_name.removeprefix('transfer-')}.{secrets.token_hex(3)}"
        transport = NixlTransport(
            member, NixlSettings(backend=config.nixl_backend, progress_delay_us=config.progress_delay_us)
        )
        self._plane = DataPlane(transport, config.verify_threads)
        place = f"{node_id[:12]}-{device.replace(':', '-')}"
        self._arenas = Arenas(transport, place, device, config.max_arenas, config.memory_reserve_nbytes, config.digest)
        self._info = MemberInfo(
            member=member,
            actor_name=actor_name,
            node_id=node_id,
            node_name=ray.util.get_node_ip_address(),
            device=device,
            labels=tuple((k, context.get_node_labels().get(k, "")) for k, _ in config.labels),
            pid=os.getpid(),
        )
        self._watched = asyncio.Event()
        self._link = CoordinatorLink(member)
        metrics = TransferMetrics(self._info.node_name, device)
        self._here = Surroundings(member, actor_name, self._plane, self._arenas, config, self._link, metrics)
        self._table = ShardTable(self._here)
        for arena, record, manifest in self._plane.call(self._arenas.adopt, timeout=_ADOPT_SECONDS):
            self._table.adopt(arena, record.version, manifest)
            log.info("took up %s v%d again", record.shard, record.version)
        self._here.spawn(self._table.shards.keep_leases_true())
        self._here.spawn(self._show())
        self._link.start(self._join, self._table.ask_again, self._table.deliver)

    # Engines and Python callers

    async def open(self, request: bytes) -> bytes:
        return _json(await self._table.open(OpenRequest.model_validate_json(request)))

    async def create(self, request: bytes) -> bytes:
        return _json(await self._table.filling.create(OpenRequest.model_validate_json(request)))

    async def seal(self, request: bytes) -> bytes:
        return await self._table.filling.seal(SealRequest.model_validate_json(request))

    async def fail(self, shard: bytes, arena_id: str, error: str, hopeless: bool) -> None:
        await self._table.filling.fail(ShardKey.model_validate_json(shard), arena_id, error, hopeless)

    async def fall_back(self, shard: bytes, version: int | None, reason: str) -> None:
        await self._table.fall_back(ShardKey.model_validate_json(shard), version, reason)

    async def drop(self, shard: bytes, version: int) -> None:
        await self._table.drop(ShardKey.model_validate_json(shard), version)

    async def progress(self) -> list[bytes]:
        """TransferProgress of every shard here."""
        return [_json(p) for p in self._table.progress()]

    # Other transfer actors

    async def grant(self, request: bytes) -> bytes:
        return _json(await self._table.serving.grant(LeaseRequest.model_validate_json(request)))

    async def release(self, lease: str) -> None:
        self._here.leases.end(lease)

    async def holds_lease(self, lease: str) -> bool:
        return self._here.leases.holds(lease)

    async def lease_counts(self) -> tuple[int, int]:
        """How many leases are granted to others and held on others."""
        return self._here.leases.counts()

    async def manifest_of(self, shard: bytes, version: int) -> bytes:
        return await self._table.serving.manifest_of(ShardKey.model_validate_json(shard), version)

    # The coordinator

    async def deliver(self, command: bytes) -> None:
        self._link.deliver(COMMAND.validate_json(command))

    async def new_epoch(self) -> None:
        """The coordinator was restarted: join it again."""
        self._link.new_epoch()

    async def member_name(self) -> str:
        """Of this incarnation."""
        return self._info.member

    async def watch(self) -> None:
        """Whoever waits for it learns of this actor's end the moment it happens. Returns when it is asked again."""
        self._watched.set()
        self._watched = asyncio.Event()
        await self._watched.wait()

    async def _show(self) -> None:
        """Keep Ray's metrics page true."""
        while True:
            self._here.metrics.update(self._table.progress())
            await asyncio.sleep(_SHOW_SECONDS)

    def _join(self) -> Join:
        holdings, receiving, loading = self._table.describe()
        return Join(
            epoch=0,
            member=self._info.member,
            info=self._info,
            holdings=holdings,
            receiving=receiving,
            loading=loading,
        )


def _json(model) -> bytes:  # type: ignore[no-untyped-def]
    return model.model_dump_json().encode()
