"""What a transfer actor measures, for Ray's metrics page, Prometheus and the Grafana board in dashboards/.

Ray puts "ray_" before each name (and "_total" behind counters), so they read ray_weights_received_bytes_total there.
Names and meanings are public: dashboards are built on them. Only a process that is connected to Ray may make one.
"""

from __future__ import annotations

from collections.abc import Sequence

from ray.util.metrics import Counter, Gauge, Histogram

from ray_weights.schemas.members import ReceiveStats
from ray_weights.schemas.messages import LossKind
from ray_weights.schemas.status import TransferProgress

STATES = ("asked", "waiting", "filling", "receiving", "ready")
"""Of a shard in a transfer actor; each has a value of its own at every update, so that zero is shown as zero."""
_SECONDS = [0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0, 300.0, 1000.0]


class TransferMetrics:
    """All metrics of one transfer actor. Its methods may be called from any thread and do no I/O."""

    def __init__(self, node: str, device: str) -> None:
        """
        Args:
            node: address of the node, for people.
            device: "cpu" or "cuda:<uuid>".
        """
        self._always = {"Node": node, "Device": device}
        where = tuple(self._always)
        self._shards = Gauge("weights_shards", "Shard versions in this transfer actor.", (*where, "State"))
        self._bytes = Gauge("weights_arena_bytes", "Bytes of the shards in its arenas.", (*where, "State"))
        self._missing = Gauge("weights_missing_bytes", "Bytes still to come of transfers under way.", where)
        self._readers = Gauge("weights_readers", "Leases that are out: receivers reading from here.", where)
        self._received = Counter(
            "weights_received_bytes", "Verified bytes of transfers that are complete.", (*where, "Model")
        )
        self._transfers = Counter("weights_transfers", "Transfers that ended, by outcome.", (*where, "Outcome"))
        self._seconds = Histogram("weights_transfer_seconds", "Seconds of a complete transfer.", _SECONDS, where)
        self._again = Counter("weights_read_again_bytes", "Bytes read twice because of a fault.", where)
        self._relayed = Counter(
            "weights_chunks_from_receivers", "Chunks read from members that were still receiving.", where
        )
        self._lost = Counter("weights_upstreams_lost", "Upstreams left, by kind of loss.", (*where, "Kind"))
        self._storage = Counter("weights_storage_reads", "Shards filled from storage.", (*where, "Model"))
        for metric in (
            self._shards,
            self._bytes,
            self._missing,
            self._readers,
            self._received,
            self._transfers,
            self._seconds,
            self._again,
            self._relayed,
            self._lost,
            self._storage,
        ):
            metric.set_default_tags(self._always)

    def update(self, progress: Sequence[TransferProgress]) -> None:
        """Set the gauges to what the actor holds now. Call it every few seconds with its progress()."""
        for state in STATES:
            here = [p for p in progress if p.state == state]
            self._shards.set(len(here), {"State": state})
            self._bytes.set(sum(p.nbytes for p in here), {"State": state})
        self._missing.set(sum(p.nbytes - p.nbytes_verified for p in progress if p.state == "receiving"))
        self._readers.set(sum(len(p.children) for p in progress))

    def completed(self, model: str, stats: ReceiveStats) -> None:
        """A transfer is complete and verified."""
        _add(self._received, stats.nbytes, {"Model": model})
        _add(self._transfers, 1, {"Outcome": "completed"})
        _add(self._again, stats.read_again_nbytes)
        _add(self._relayed, stats.chunks_from_receivers)
        self._seconds.observe(stats.seconds)

    def gave_up(self) -> None:
        """A transfer or a wait ended without the weights."""
        _add(self._transfers, 1, {"Outcome": "gave_up"})

    def lost_upstream(self, kind: LossKind) -> None:
        """An upstream was left and another asked for."""
        _add(self._lost, 1, {"Kind": kind})

    def read_storage(self, model: str) -> None:
        """A shard was filled from storage, or an engine fell back to it."""
        _add(self._storage, 1, {"Model": model})


def _add(counter: Counter, amount: float, tags: dict[str, str] | None = None) -> None:
    if amount > 0:  # Ray refuses to add nothing
        counter.inc(amount, tags or {})
