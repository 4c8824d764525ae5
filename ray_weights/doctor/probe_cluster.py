"""Looks at the cluster. Starts nothing in it. Arguments: seconds that it may take."""

from __future__ import annotations

import sys
import time
from typing import Any

import ray

from ray_weights.actors.connect import connect, find_coordinator
from ray_weights.config import ServiceSettings, ray_address
from ray_weights.doctor.facts import ActorFacts, ClusterFacts
from ray_weights.doctor.isolated import answer
from ray_weights.errors import CoordinatorUnavailable
from ray_weights.observe import gather, read_cluster


def main(timeout: float) -> None:
    deadline = time.monotonic() + timeout
    address = ray_address()
    try:
        connect(deadline)
    except CoordinatorUnavailable as e:
        answer(ClusterFacts(address=address, error=str(e)).model_dump_json())
        return
    view = read_cluster(time.monotonic() + 0.6 * (deadline - time.monotonic()))
    coordinator: Any = find_coordinator()
    problem, settings = view.coordinator_problem, None
    if coordinator is not None and not problem:
        said = gather({"settings": coordinator.service_settings.remote()}, deadline)["settings"]
        if isinstance(said, str):
            problem = f"the coordinator {said}"
        else:
            settings = ServiceSettings.model_validate_json(said)
    facts = ClusterFacts(
        address=address,
        nodes=sum(bool(n["Alive"]) for n in ray.nodes()),  # type: ignore[no-untyped-call]
        coordinator_running=coordinator is not None,
        coordinator_problem=problem if coordinator is not None else "",
        settings=settings,
        actors=tuple(ActorFacts(name=a.actor_name, problem=a.problem) for a in view.actors),
    )
    answer(facts.model_dump_json())


if __name__ == "__main__":
    main(float(sys.argv[1]))
