"""The measuring process, inside the head's namespace: `python -m benchmarks.drive swarm|pair PLAN RAY_ADDRESS`.

Writes one JSON line per trial to standard output, so that an interrupted run loses nothing that it has measured.
"""

from __future__ import annotations

import sys
import traceback
from collections.abc import Callable, Iterator

import ray

from benchmarks import baselines, cases, pair
from benchmarks.network import Network
from benchmarks.plan import Plan
from benchmarks.results import Missed, Trial
from benchmarks.stage import Sizes, Stage
from ray_weights.config import ServiceSettings

Measure = Callable[[], Trial]


def main() -> None:
    part, packed, address = sys.argv[1:]
    plan = Plan.model_validate_json(packed)
    network = Network(plan.hosts, plan.owner_pid)
    ray.init(address, _node_ip_address=address.rpartition(":")[0], log_to_driver=False, logging_level="ERROR")
    for case, measure in (_swarm if part == "swarm" else _pair)(plan, network):
        if not plan.wants(case):
            continue
        try:
            line = "trial " + measure().model_dump_json()
        except Exception as e:  # the other cases are worth having
            traceback.print_exc()
            reason = str(e).strip().splitlines() or [""]  # Ray puts the traceback first
            line = "missed " + Missed(case=case, reason=f"{type(e).__name__}: {reason[-1][:300]}").model_dump_json()
        print(line, flush=True)
    ray.shutdown()


def _swarm(plan: Plan, network: Network) -> Iterator[tuple[str, Measure]]:
    n = plan.receivers
    settings = ServiceSettings(chunk_nbytes=plan.chunk_nbytes, window=plan.window)
    stage = Stage(network, network.hosts[: n + 1], Sizes(plan.nbytes, plan.link_rate), settings)
    # The first transfers make connections and take memory for the first time: not counted.
    stage.measure("warm-up", "", 0, range(1, n + 1))
    for r in range(plan.lone_repeats):
        yield "lone", lambda r=r: cases.lone(stage, r)
    for receivers in [k for k in (2, 3, 4, 7) if k <= n]:
        for r in range(plan.repeats):
            yield f"once-{receivers}", lambda k=receivers, r=r: cases.at_once(stage, k, r)
    for spread in (0.25, 0.5, 1.0):
        for r in range(plan.repeats):
            yield f"staggered-{spread:g}", lambda s=spread, r=r: cases.staggered(stage, n, s, r)
    for r in range(plan.repeats):
        yield "sources-2", lambda r=r: cases.several_sources(stage, 2, r)
    for r in range(plan.repeats):
        yield "straggler", lambda r=r: cases.straggler(stage, r)
    for r in range(plan.repeats):
        yield "killed", lambda r=r: cases.parent_killed(stage, r)
    for r in range(plan.repeats):
        yield "cut", lambda r=r: cases.link_cut(stage, r)
    # The first case once more: whether the machine was still what it was.
    yield "lone", lambda: cases.lone(stage, plan.lone_repeats)
    for name in ("star", "copies"):
        if plan.wants(name):
            readers = baselines.readers_on(stage)
            measure = baselines.star if name == "star" else baselines.complete_copies
            for r in range(plan.baseline_repeats):
                yield name, lambda f=measure, on=readers, r=r: f(stage, on, r)
            baselines.end(readers)
    for r in range(plan.baseline_repeats):
        yield "store", lambda r=r: baselines.object_store(stage, r)
        yield "rdt", lambda r=r: baselines.tensor_transport(stage, r)
        yield "gloo", lambda r=r: baselines.gloo(stage, r)


def _pair(plan: Plan, network: Network) -> Iterator[tuple[str, Measure]]:
    hosts = pair.two_nodes(network.hosts[-1])
    stage = Stage(network, hosts, Sizes(plan.pair_nbytes, float("inf")), ServiceSettings())
    pair.service(stage, -1)  # warms up
    for r in range(plan.pair_repeats):
        yield "pair", lambda r=r: pair.service(stage, r)
        yield "pair-bare", lambda r=r: pair.bare(stage, r, whole=True)
        yield "pair-bare-chunks", lambda r=r: pair.bare(stage, r, whole=False)


if __name__ == "__main__":
    main()
