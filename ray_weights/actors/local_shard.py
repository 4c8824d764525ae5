"""One shard in one transfer actor, from the first question to the complete copy."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

from ray_weights import errors
from ray_weights.actors.receive import Receive
from ray_weights.actors.shard_arena import ShardArena
from ray_weights.core.layout import Layout
from ray_weights.core.manifest import Manifest
from ray_weights.core.receiving import Report
from ray_weights.schemas.keys import ShardKey
from ray_weights.schemas.leases import Opened, SealRequest
from ray_weights.schemas.members import Holding, Loading, ReceiveStats, Receiving
from ray_weights.schemas.status import TransferProgress

State = Literal["asked", "waiting", "filling", "receiving", "ready"]


@dataclass(slots=True, eq=False)
class LocalShard:
    """Several engines of one device that want the same shard share one of these."""

    shard: ShardKey
    version: int | None
    """None until the coordinator has named one."""
    layout: Layout | None
    may_load: bool
    published: bool = False
    """A caller publishes it: the coordinator hears of it when it is sealed."""
    question: int = 0
    """Which question for the newest version it was made for; 0 where a version was named."""
    state: State = "asked"
    reason: str = ""
    arena: ShardArena | None = None
    preparing: asyncio.Future[None] | None = None
    """Done once it is known whether there is a spare."""
    spare: ShardArena | None = None
    """Made while waiting, so that its pages are there when the bytes come."""
    chunking: str = ""
    """Why its chunks have the size that they have, where this member chose."""
    manifest: Manifest | None = None
    receive: Receive | None = None
    stats: ReceiveStats | None = None
    opened: asyncio.Future[Opened] = field(default_factory=lambda: asyncio.get_running_loop().create_future())
    filled: asyncio.Future[Opened] = field(default_factory=lambda: asyncio.get_running_loop().create_future())
    """For engines of this device that wait while another one fills the arena."""
    filler: int | None = None
    """Process that fills the arena."""
    unwatch: Callable[[], None] | None = None
    """Stops waiting for the end of that process."""
    seal_request: SealRequest | None = None
    accepted: asyncio.Future[None] | None = None
    """Set while a seal waits for the coordinator's word."""
    known: asyncio.Event = field(default_factory=asyncio.Event)
    """Set once the manifest is here (or the shard was given up): children may ask before this receiver has it."""
    served: asyncio.Event = field(default_factory=asyncio.Event)
    """Set once the arena can be read (or the shard was given up)."""
    moved: asyncio.Event = field(default_factory=asyncio.Event)
    """Set when the coordinator has named upstreams anew."""
    asked: bool = False
    """Whether the coordinator has heard of it."""
    told: bool = False
    """Whether it was part of what this member has said of itself when it joined last."""
    waiters: int = 0
    upstreams: tuple[str, ...] = ()
    leases: dict[str, str] = field(default_factory=dict)
    """Lease held on an upstream, by member."""
    reported: Report | None = None
    """The upstream that was lost last."""
    since: float = field(default_factory=time.monotonic)
    used_at: float = field(default_factory=time.monotonic)

    @property
    def under_way(self) -> bool:
        """Whether nobody here has what it takes yet: not the bytes, nor an arena that a process fills."""
        unfilled = self.state == "filling" and self.filler is None and not self.published
        return unfilled or self.state in ("asked", "waiting", "receiving")

    @property
    def unconfirmed(self) -> bool:
        """Sealed, and the coordinator's word of it is not here yet."""
        return self.accepted is not None and not self.accepted.done()

    @property
    def complete(self) -> bool:
        """Here, and known to be by the coordinator."""
        return self.state == "ready" and not self.unconfirmed

    def confirm(self, error: errors.RayWeightsError | None = None) -> bool:
        """Hand the coordinator's word, or its refusal, to the seal that waits for it; returns whether one does."""
        if self.accepted is None or self.accepted.done():
            return False
        if error is None:
            self.accepted.set_result(None)
        else:
            self.accepted.set_exception(error)
        return True

    def join(self, layout: Layout | None, may_load: bool) -> None:
        """Somebody else of this device wants it, too."""
        self.layout = self.layout or layout
        self.may_load = self.may_load or may_load

    def stop_watching(self) -> None:
        """The process that fills it, or has filled it, may end."""
        unwatch, self.unwatch = self.unwatch, None
        if unwatch is not None:
            unwatch()

    @property
    def serving(self) -> ShardArena | None:
        """The arena that others read: a receive may have moved to another one."""
        return self.receive.arena if self.receive is not None else self.arena

    def holding(self) -> Holding | None:
        if self.state != "ready" or self.manifest is None or self.version is None:
            return None
        rate = self.stats.rate if self.stats else 0.0
        return Holding(shard=self.shard, version=self.version, seal=self.manifest.seal(), rate=rate)

    def receiving(self) -> Receiving | None:
        if self.state != "receiving" or self.manifest is None or self.version is None:
            return None
        return Receiving(
            shard=self.shard,
            version=self.version,
            seal=self.manifest.seal(),
            upstreams=self.upstreams,
            may_load=self.may_load,
        )

    def loading(self) -> Loading | None:
        """Only what the coordinator was asked for: of what a caller publishes it hears when it is sealed."""
        if self.state != "filling" or not self.asked or self.layout is None or self.version is None:
            return None
        return Loading(shard=self.shard, version=self.version, layout_digest=self.layout.digest())

    def arrived(self) -> Opened:
        """The answer to whoever asks for this complete shard."""
        assert self.arena is not None and self.manifest is not None and self.version is not None
        return Opened(
            outcome="arrived",
            version=self.version,
            handle=self.arena.handle().model_dump_json().encode(),
            manifest=self.manifest.to_bytes(),
            reason=self.reason,
            stats=self.stats.model_dump_json().encode() if self.stats else b"",
        )

    def story(self) -> str:
        """How far it came, for an error message."""
        p = self.progress(())
        if p.chunks:
            doing = f"; {self.receive.account()}" if self.receive is not None else ""
            return f"{p.chunks_verified} of {p.chunks} chunks are here, read from {', '.join(p.upstreams)}{doing}"
        return f"{p.state}: {p.detail}" if p.detail else f"{p.state}: the coordinator has not answered"

    def progress(self, children: tuple[str, ...]) -> TransferProgress:
        chunks = self.manifest.chunks if self.manifest else 0
        nbytes = self.manifest.nbytes if self.manifest else (self.layout.nbytes if self.layout else 0)
        verified = chunks if self.state == "ready" else (self.receive.machine.verified_count if self.receive else 0)
        seconds = self.stats.seconds if self.stats else time.monotonic() - self.since
        done = min(nbytes, verified * (self.manifest.chunk_nbytes if self.manifest else 0))
        return TransferProgress(
            shard=self.shard,
            version=self.version,
            state=self.state,
            chunks=chunks,
            chunks_verified=verified,
            nbytes=nbytes,
            nbytes_verified=done,
            rate=done / seconds if seconds > 0 and self.upstreams else 0.0,
            seconds=seconds,
            upstreams=self.upstreams,
            children=children,
            detail=self.reason,
        )
