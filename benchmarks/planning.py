"""What one decision of the coordinator costs: 100 keys, 1,000 sources, 10,000 receivers. Core alone, no Ray.

python -m benchmarks.planning
"""

from __future__ import annotations

import statistics
import time
from dataclasses import dataclass

from ray_weights.actors.pauses import collect_seldom
from ray_weights.core.registry import Registry
from ray_weights.schemas import messages as m
from ray_weights.schemas.keys import ModelKey, ShardKey
from ray_weights.schemas.members import Holding, MemberInfo, Seal

SEAL = Seal(layout_digest="l", manifest_digest="ab" * 32, nbytes=1 << 34, chunk_nbytes=1 << 26, chunks=256)


@dataclass(frozen=True, slots=True)
class PlanningCost:
    """Seconds of one event, from request to commands."""

    mean: float
    p99: float
    worst: float
    receivers: int


def measure(keys: int = 100, sources: int = 1000, receivers: int = 10_000, seconds_apart: float = 0.1) -> PlanningCost:
    """Let receivers ask one after another, each in turn for another key, while all before still receive."""
    shards = [ShardKey(model=ModelKey(model=f"model-{k}")) for k in range(keys)]
    registry = Registry(1, 0.0)
    for i in range(sources):
        join(registry, f"s{i}", (Holding(shard=shards[i % keys], version=1, seal=SEAL),))
    for i in range(receivers):
        join(registry, f"r{i}")
    now, costs = 0.0, []
    for i in range(receivers):
        now += seconds_apart / keys
        request = m.Open(epoch=1, member=f"r{i}", shard=shards[i % keys])
        started = time.perf_counter()
        registry.handle(request, now)
        due = registry.next_wakeup()
        if due is not None and due <= now:
            registry.tick(now)
        costs.append(time.perf_counter() - started)
    registry.tick(now + 60.0)
    costs.sort()
    return PlanningCost(statistics.fmean(costs), costs[int(0.99 * len(costs))], costs[-1], receivers)


def join(registry: Registry, name: str, holdings: tuple[Holding, ...] = ()) -> None:
    info = MemberInfo(member=name, actor_name=name, node_id=name, node_name=name, device="cpu")
    registry.handle(m.Join(epoch=1, member=name, info=info, holdings=holdings), 0.0)


def main() -> None:
    collect_seldom()  # as the coordinator does
    cost = measure()
    print(
        f"{cost.receivers} receivers: mean {cost.mean * 1e3:.2f} ms, 99 % within {cost.p99 * 1e3:.2f} ms, "
        f"worst {cost.worst * 1e3:.2f} ms"
    )


if __name__ == "__main__":
    main()
