"""A small cluster to look at: one origin, one that reads from it, one that reads from that."""

from __future__ import annotations

from rich.console import Console, RenderableType

from ray_weights.schemas.keys import ModelKey, ShardKey
from ray_weights.schemas.members import MemberInfo, ReceiveStats, Seal
from ray_weights.schemas.status import (
    CoordinatorStatus,
    ReplicaStatus,
    ShardStatus,
    TransferProgress,
    VersionStatus,
)
from ray_weights.schemas.view import ActorView, ClusterView

SHARD = ShardKey(model=ModelKey(model="org/tiny", dtype="float32", engine="vllm 0.32.0"))
SEAL = Seal(layout_digest="l", manifest_digest="m", nbytes=300_000_000, chunk_nbytes=3_000_000, chunks=100)


def member(name: str, node: str) -> MemberInfo:
    return MemberInfo(member=name, actor_name=f"transfer-{name}", node_id=name, node_name=node, device="cpu", pid=4711)


def progress(state: str = "receiving", **fields: object) -> TransferProgress:
    base: dict[str, object] = {
        "shard": SHARD,
        "version": 1,
        "state": state,
        "chunks": 100,
        "chunks_verified": 50,
        "nbytes": 300_000_000,
        "nbytes_verified": 150_000_000,
        "rate": 93e6,
        "seconds": 1.6,
        "upstreams": ("b",),
        "children": (),
    }
    return TransferProgress.model_validate(base | fields)


def record(*replicas: ReplicaStatus, members: tuple[MemberInfo, ...] = ()) -> CoordinatorStatus:
    version = VersionStatus(version=1, seal=SEAL, storage_reads=1, replicas=replicas)
    shards = (ShardStatus(shard=SHARD, versions=(version,)),) if replicas else ()
    return CoordinatorStatus(epoch=7, started_at=1000.0, calls=12, members=members, shards=shards)


MEMBERS = (member("a", "10.0.0.1"), member("b", "10.0.0.2"), member("c", "10.0.0.3"))
ORIGIN = ReplicaStatus(member="a", node="10.0.0.1", state="ready", from_storage=True)
COMPLETE = ReplicaStatus(
    member="b",
    node="10.0.0.2",
    state="ready",
    upstreams=("a",),
    depth=1,
    stats=ReceiveStats(nbytes=300_000_000, seconds=3.0, chunks_from_receivers=4),
    reason="complete source",
)
RECEIVING = ReplicaStatus(member="c", node="10.0.0.3", state="receiving", upstreams=("b",), depth=2)
VIEW = ClusterView(
    taken_at=1075.0,
    coordinator=record(ORIGIN, COMPLETE, RECEIVING, members=MEMBERS),
    actors=(
        ActorView(actor_name="transfer-a", progress=(progress("ready", children=("b",)),)),
        ActorView(actor_name="transfer-b", progress=(progress("ready"),)),
        ActorView(actor_name="transfer-c", progress=(progress(),)),
    ),
)


def drawn(what: RenderableType) -> str:
    console = Console(width=160, color_system=None, force_terminal=False)
    with console.capture() as capture:
        console.print(what)
    return capture.get()
