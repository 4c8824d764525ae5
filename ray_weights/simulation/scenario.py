"""What to simulate, and what came out."""

from __future__ import annotations

import math
from typing import Literal

from pydantic import Field

from ray_weights.schemas.base import Frozen

Strategy = Literal["auto", "chain", "trees", "tree", "complete-copies", "star"]
Arrival = Literal["waiting", "at-once", "staggered", "poisson"]


class Scenario(Frozen):
    """A cluster, a shard, and who wants it when. Rates in bytes per second, times in seconds."""

    receivers: int = Field(31, ge=1)
    sources: int = Field(1, ge=1)
    """Members that have the shard from the start."""
    chunks: int = Field(256, ge=1)
    nbytes: float = Field(17.5e9, gt=0)
    strategy: Strategy = "auto"
    """auto, chain and trees are the real planner with other thresholds; the others are baselines: one binary
    tree, from complete copies only, everybody from the source."""
    seed: int = 0

    nic_rate: float = Field(50e9, gt=0)
    """One direction of one node's NIC; 400 Gbit/s by default."""
    flow_rate: float = 0.0
    """The most that one flow carries; 0 = as much as the NIC."""
    latency: float = 20e-6
    """From the start of a READ to its first byte."""
    page_seconds: float = 30e-6
    """One look at a progress page."""
    connect_seconds: float = 2e-3
    """Getting a lease and preparing the descriptors."""
    digest_rate: float = 200e9
    """How fast chunks are verified, beside the reads."""
    window: int = 3

    members_per_node: int = Field(1, ge=1)
    """Receivers that share a node and its NIC."""
    node_rate: float = 300e9
    """Between members of one node (NVLink)."""
    nodes_per_rack: int = 0
    """0: no racks."""
    rack_rate: float = 0.0
    """Up and down link of a rack; 0 = enough for all its NICs."""

    coordinator_seconds: float = 1e-3
    """One message to or from the coordinator."""
    coordinator_calls_per_second: float = 5000.0
    """What one Ray actor answers."""

    arrival: Arrival = "waiting"
    """waiting: everybody has asked when the origin has loaded, and time counts from there. at-once: everybody
    asks within a millisecond, and time counts from there."""
    spread: float = 1.0
    """Time over which staggered and poisson arrivals come, as a multiple of a lone receiver's time."""
    stragglers: int = Field(0, ge=0)
    straggler_share: float = Field(0.25, gt=0)
    """Their NIC's speed as a share of the others'."""
    stragglers_known: bool = False
    """Whether the coordinator has measured them in an earlier transfer."""
    straggler_first: bool = False
    """Whether the stragglers come first, which is the worst place; else drawn by lot."""
    failures: int = Field(0, ge=0)
    """Receivers that die at a random moment of the transfer."""
    storage_rate: float = 2e9
    """What one node reads from storage."""
    storage_total: float = 20e9
    """What storage gives to all together."""

    @property
    def chunk_nbytes(self) -> float:
        return self.nbytes / self.chunks

    @property
    def storage_seconds(self) -> float:
        """If every receiver read storage by itself, all at once."""
        return self.nbytes / min(self.storage_rate, self.storage_total / self.receivers)

    @property
    def bound(self) -> float:
        """Lower bound of the last receiver's time at once, in multiples of nbytes / nic_rate (binomial
        pipeline)."""
        hops = math.ceil(math.log2(1 + self.receivers / self.sources))
        return 1 + (hops - 1) / self.chunks


class Tiers(Frozen):
    """Bytes moved, by how far they went."""

    node: float = 0.0
    rack: float = 0.0
    fabric: float = 0.0


class Result(Frozen):
    """Times in seconds from each receiver's own arrival; ratios to a lone receiver in the same simulated
    cluster."""

    scenario: Scenario
    makespan: float
    """From the first arrival to the last receiver's end."""
    mean: float
    p50: float
    p99: float
    worst: float
    others_mean: float
    """Mean without the stragglers."""
    lone: float
    """A lone receiver, same chunks."""
    wire: float
    """nbytes / nic_rate."""
    bound: float
    """Seconds that the last one takes at least, at once: the binomial pipeline."""
    completed: int
    died: int
    tiers: Tiers
    origin_nbytes: float
    """Bytes that left the first source."""
    coordinator_calls: int
    calls_per_receiver: float
    calls_per_second: float
    read_again: int
    """Chunks read more than once."""
    storage: float
    """Seconds if everybody read storage by itself."""
    events: int
    cpu_seconds: float

    @property
    def ratio(self) -> float:
        return self.makespan / self.lone
