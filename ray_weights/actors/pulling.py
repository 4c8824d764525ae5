"""Shards that this transfer actor reads from others: manifest, arena, leases, reports. The reads are in receive.py."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import secrets
import time
from collections.abc import Callable
from concurrent.futures import Future

from ray.exceptions import RayError

from ray_weights import errors
from ray_weights.actors.local_shard import LocalShard
from ray_weights.actors.receive import Receive, Wishes
from ray_weights.actors.remote_errors import what_happened
from ray_weights.actors.shards import Shards
from ray_weights.actors.surroundings import ANSWER_SECONDS, HANDSHAKE_SECONDS, Surroundings
from ray_weights.core import receiving as machine
from ray_weights.core.layout import Layout, first_difference
from ray_weights.core.link import ReceiverOptions
from ray_weights.core.manifest import Manifest, choose_chunk_nbytes
from ray_weights.schemas import messages as m
from ray_weights.schemas.leases import Lease, LeaseRequest
from ray_weights.schemas.members import ReceiveStats
from ray_weights.schemas.messages import LossKind

log = logging.getLogger(__name__)
_REPORT_AGAIN_SECONDS = 2.0
_MEASURE_CHUNKS = 8
"""Arrivals after which the rate of an upstream is known well enough."""


class Pulling:
    """From the coordinator's assignment to the complete copy."""

    def __init__(self, here: Surroundings, shards: Shards) -> None:
        self._here = here
        self._shards = shards

    def assigned(self, local: LocalShard, command: m.Receive) -> None:
        """The coordinator names upstreams: start, or go on with these."""
        self._here.addresses.update(dict(command.addresses))
        if local.state == "ready" and local.stats is not None:  # the word of it was lost
            done = self._here.post(m.Completed, shard=local.shard, version=command.version, stats=local.stats)
            self._here.spawn(done)
        if local.state not in ("asked", "waiting", "receiving"):
            return
        first = local.state != "receiving"
        local.reason, local.upstreams = command.reason, command.upstreams
        local.version, local.state = command.version, "receiving"
        local.moved.set()
        if first:
            local.since = time.monotonic()
            self._here.spawn(self._start(local, command))
        elif local.receive is not None:
            receive = local.receive
            self._here.plane.post(lambda: receive.handle(machine.Assigned(command.upstreams)))

    async def prepare(self, local: LocalShard, version: int, rate: float) -> None:
        """Make the arena while the origin still loads, so that its pages are there when the bytes come."""
        layout = local.layout
        if layout is None or local.spare is not None or local.preparing is not None or not layout.nbytes:
            return
        local.preparing = asyncio.get_running_loop().create_future()
        try:
            await self._prepare(local, version, layout, rate)
        finally:
            local.preparing.set_result(None)
            local.preparing = None

    async def _prepare(self, local: LocalShard, version: int, layout: Layout, rate: float) -> None:
        chunk_nbytes, _ = choose_chunk_nbytes(layout.nbytes, rate=rate, wanted=self._here.settings.chunk_nbytes)
        arenas = self._here.arenas
        try:
            spare = await self._here.on_plane(lambda: arenas.create(local.shard, version, layout, chunk_nbytes))
        except errors.RayWeightsError as e:
            log.info("no arena is made ahead of time: %s", e)  # asked for again, with its error, when it is needed
            return
        if local in self._shards.all and local.state in ("waiting", "receiving", "filling") and local.arena is None:
            local.spare = spare
        else:
            await self._here.on_plane(lambda: arenas.free(spare))

    async def _start(self, local: LocalShard, command: m.Receive) -> None:
        try:
            manifest = await self._manifest(local, command.seal.manifest_digest)
            if manifest is None:
                return  # given up meanwhile
            if local.layout is not None and (difference := first_difference(local.layout, manifest.layout)):
                raise errors.LayoutMismatch(f"{local.shard}: {difference}")
            local.manifest = manifest
            local.known.set()
            arena = await self._shards.arena_for(local, command.version, manifest.layout, manifest.chunk_nbytes)
            if local not in self._shards.all or local.state != "receiving":
                await self._here.on_plane(lambda: self._here.arenas.free(arena))
                return
            local.arena = arena
            arena.describe(manifest)
            arena.arena.seal()
        except Exception as e:  # also what the system says: too many open files, no memory
            log.warning("%s cannot be received", local.shard, exc_info=True)
            error = e if isinstance(e, errors.RayWeightsError) else errors.ArenaError(f"{local.shard}: {e!r}")
            await self._shards.give_up(local, str(error), error)
            return
        receive = local.receive = Receive(
            self._here.plane,
            local.shard,
            command.version,
            manifest,
            arena,
            self._here.arenas.move,
            self._wishes(local),
            ReceiverOptions(
                window=self._here.settings.window,
                stall_seconds=self._here.settings.stall_seconds,
                measure_chunks=_MEASURE_CHUNKS,
            ),
            self._here.settings.receive_rate,
        )
        local.served.set()
        self._here.plane.post(lambda: receive.start(local.upstreams))

    async def _manifest(self, local: LocalShard, digest: str) -> Manifest | None:
        """Ask the upstream for the manifest; while it cannot be had, ask the coordinator for another upstream."""
        while local in self._shards.all and local.state == "receiving":
            upstream = local.upstreams[0]
            local.moved.clear()
            try:
                call = self._here.actor(upstream).manifest_of.remote(
                    local.shard.model_dump_json().encode(), local.version
                )
                manifest = Manifest.from_bytes(await asyncio.wait_for(call, HANDSHAKE_SECONDS))
                if manifest.digest() == digest:
                    return manifest
                why = "its manifest is not the one that the coordinator knows"
            except (errors.SourceLost, RayError, TimeoutError, ValueError) as e:
                why = f"no manifest: {what_happened(e)}"
            log.info("%s from %s: %s", local.shard, upstream, why)
            if local.upstreams[0] == upstream:
                await self._report(local, machine.Report(upstream, "unreachable", why), 0)
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(local.moved.wait(), _REPORT_AGAIN_SECONDS)
        return None

    def _wishes(self, local: LocalShard) -> Wishes:
        loop = asyncio.get_running_loop()

        def soon(work: Callable[[], None]) -> None:
            loop.call_soon_threadsafe(work)

        return Wishes(
            connect=lambda upstream: soon(lambda: self._begin_connect(local, upstream)),
            disconnect=lambda upstream, ended: soon(lambda: self._give_back(local, upstream, ended)),
            report=lambda report, have: soon(lambda: self._here.spawn(self._report(local, report, have))),
            measured=lambda upstream, rate: soon(lambda: self._here.spawn(self._measured(local, upstream, rate))),
            left=lambda arena: soon(lambda: self._here.spawn(self._shards.free_left(arena))),
            finished=lambda stats: soon(lambda: self._here.spawn(self._finished(local, stats))),
            failed=lambda error: soon(lambda: self._here.spawn(self._broke(local, error))),
        )

    def _begin_connect(self, local: LocalShard, upstream: str) -> None:
        """Take a lease on an upstream. It is on the books at once, so that an order to give it back finds it."""
        receive = local.receive
        if receive is None or local.version is None or local.manifest is None or local not in self._shards.all:
            return
        request = LeaseRequest(
            reader=self._here.member,
            reader_actor=self._here.actor_name,
            lease=secrets.token_hex(8),
            shard=local.shard,
            version=local.version,
            manifest_digest=local.manifest.digest(),
        )
        self._here.leases.hold(request.lease)
        local.leases[upstream] = request.lease
        self._here.spawn(self._connect(local, receive, upstream, request))

    async def _connect(self, local: LocalShard, receive: Receive, upstream: str, request: LeaseRequest) -> None:
        try:
            call = self._here.actor(upstream).grant.remote(request.model_dump_json().encode())
            lease = Lease.model_validate_json(await asyncio.wait_for(call, HANDSHAKE_SECONDS))
        except errors.SourceLost as e:
            self._no_lease(local, receive, upstream, request.lease, "stale", what_happened(e))
            return
        except (RayError, TimeoutError, ValueError) as e:
            why = f"no lease: {what_happened(e)}"[:500]
            self._no_lease(local, receive, upstream, request.lease, "unreachable", why)
            return
        if not self._here.leases.holds(request.lease):
            # Given back while the answer was under way: the word may have come before the lease was granted.
            self._release(upstream, request.lease)
            return
        self._here.plane.post(lambda: receive.connected(upstream, lease))

    def _no_lease(
        self, local: LocalShard, receive: Receive, upstream: str, lease: str, kind: LossKind, why: str
    ) -> None:
        """It was not granted, or may be later: in either case it is not wanted any more."""
        wanted = local.leases.get(upstream) == lease
        if wanted:  # else the upstream was left meanwhile, and perhaps asked anew
            del local.leases[upstream]
        self._here.leases.give_back(lease)
        self._release(upstream, lease)
        if wanted:
            self._here.plane.post(lambda: receive.link_failed(upstream, kind, why))

    def _give_back(self, local: LocalShard, upstream: str, ended: Future[None] | None) -> None:
        lease = local.leases.pop(upstream, None)
        if lease is None:
            return
        if ended is not None and not ended.done():
            self._here.spawn(self._give_back_later(ended, upstream, lease))
            return
        self._here.leases.give_back(lease)
        self._release(upstream, lease)

    async def _give_back_later(self, ended: Future[None], upstream: str, lease: str) -> None:
        """Reads that were given up on are still under way."""
        await asyncio.wrap_future(ended)
        self._here.leases.give_back(lease)
        self._release(upstream, lease)

    def _release(self, upstream: str, lease: str) -> None:
        """Say so to the source; should the word be lost, it will ask."""
        with contextlib.suppress(ValueError):  # it is gone, and its leases with it
            self._here.actor(upstream).release.remote(lease)

    async def _report(self, local: LocalShard, report: machine.Report, have: int) -> None:
        if report is not local.reported:  # else it is repeated, as long as nobody answers
            local.reported = report
            self._here.metrics.lost_upstream(report.kind)
        try:
            await self._here.post(
                m.UpstreamLost,
                ANSWER_SECONDS,
                shard=local.shard,
                version=local.version or 0,
                upstream=report.upstream,
                kind=report.kind,
                detail=report.detail[:500],
                chunks_verified=have,
            )
        except errors.CoordinatorUnavailable as e:
            log.warning("cannot report %s: %s", report.kind, e)  # the receiver repeats it until its deadline

    async def _measured(self, local: LocalShard, upstream: str, rate: float) -> None:
        with contextlib.suppress(errors.CoordinatorUnavailable):  # it plans without
            await self._here.post(
                m.Measured, shard=local.shard, version=local.version or 0, upstream=upstream, rate=rate
            )

    async def _finished(self, local: LocalShard, stats: ReceiveStats) -> None:
        if local.receive is None:
            return  # given up in the same moment
        local.arena, local.receive = local.receive.arena, None
        local.state, local.stats = "ready", stats
        self._here.metrics.completed(local.shard.model.model, stats)
        if not local.opened.done():
            local.opened.set_result(local.arrived())
        try:
            await self._here.post(m.Completed, shard=local.shard, version=local.version or 0, stats=stats)
        except errors.CoordinatorUnavailable as e:
            log.warning("complete, but the coordinator does not know: %s", e)  # it learns when this member joins

    async def _broke(self, local: LocalShard, error: Exception) -> None:
        wrapped = error if isinstance(error, errors.RayWeightsError) else errors.TransportError(repr(error))
        await self._shards.give_up(local, str(wrapped), wrapped)
