"""What the demo has to do with ray_weights: it starts the coordinator and looks at what it says. All else is vLLM's."""

from __future__ import annotations

from dataclasses import dataclass

from demo_support.cluster import LocalCluster


@dataclass(frozen=True, slots=True)
class Copy:
    """One replica's copy of one shard, while it arrives and afterwards."""

    shard: str
    """The rank, "" where there is only one."""
    node: str
    state: str
    source: str
    """Address of the node that it came from, or "storage"."""
    nbytes: int
    nbytes_verified: int
    seconds: float
    rate: float
    """Bytes per second."""
    chunks_from_receivers: int = 0


@dataclass(frozen=True, slots=True)
class Report:
    """Where every replica's weights came from, by the coordinator's record."""

    copies: tuple[Copy, ...]
    storage_reads: int
    shards: int

    def complaints(self, replicas: int) -> list[str]:
        """What did not go as it should: storage is read once for each shard, all other copies come from replicas."""
        lines = []
        if self.storage_reads != self.shards:
            lines.append(f"storage was read {self.storage_reads} times for {self.shards} shard(s)")
        if len(self.copies) != replicas * self.shards:
            lines.append(f"{len(self.copies)} copies are known, {replicas * self.shards} expected")
        lines += [f"the copy on {copy.node} is {copy.state}" for copy in self.copies if copy.state != "ready"]
        return lines


def start_coordinator(cluster: LocalCluster, *arguments: str) -> None:
    """The documented way; arguments are those of `ray-weights up`. Without it, the first replica would start one."""
    cluster.submit_job("ray-weights", "up", *arguments, timeout_s=120.0)


def copies_now() -> tuple[Copy, ...]:
    """Progress of every copy, asked from the transfer actors. Needs this process to be a driver of the cluster."""
    import ray

    import ray_weights
    from ray_weights.actors.names import NAMESPACE
    from ray_weights.schemas.status import TransferProgress

    members = ray_weights.status(timeout=5.0).members
    nodes = {member.member: member.node_name for member in members}
    asked = {}
    for member in members:
        actor = ray.get_actor(member.actor_name, namespace=NAMESPACE)
        asked[member.node_name] = actor.progress.remote()
    copies = []
    for node, reference in asked.items():
        for answer in ray.get(reference, timeout=5.0):
            progress = TransferProgress.model_validate_json(answer)
            copies.append(
                Copy(
                    shard=progress.shard.rank,
                    node=node,
                    state=progress.state,
                    source=_names(progress.upstreams, nodes) or "storage",
                    nbytes=progress.nbytes,
                    nbytes_verified=progress.nbytes_verified,
                    seconds=progress.seconds,
                    rate=progress.rate,
                )
            )
    return tuple(sorted(copies, key=lambda copy: (copy.shard, copy.node)))


def report() -> Report:
    """The coordinator's record. Needs this process to be a driver of the cluster."""
    import ray_weights

    status = ray_weights.status(timeout=10.0)
    nodes = {member.member: member.node_name for member in status.members}
    copies = []
    reads = 0
    for shard in status.shards:
        newest = shard.versions[-1]
        reads += newest.storage_reads
        for replica in newest.replicas:
            nbytes = newest.seal.nbytes if newest.seal is not None else 0
            stats = replica.stats
            copies.append(
                Copy(
                    shard=shard.shard.rank,
                    node=nodes.get(replica.member, replica.node),
                    state=replica.state,
                    source="storage" if replica.from_storage else _names(replica.upstreams, nodes),
                    nbytes=nbytes,
                    nbytes_verified=nbytes if replica.state == "ready" else 0,
                    seconds=stats.seconds if stats is not None else 0.0,
                    rate=stats.rate if stats is not None else 0.0,
                    chunks_from_receivers=stats.chunks_from_receivers if stats is not None else 0,
                )
            )
    copies.sort(key=lambda copy: (copy.shard, copy.node))
    return Report(copies=tuple(copies), storage_reads=reads, shards=len(status.shards))


def _names(members: tuple[str, ...], nodes: dict[str, str]) -> str:
    return ", ".join(sorted({nodes.get(member, member) for member in members}))
