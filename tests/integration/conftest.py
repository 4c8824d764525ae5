"""Real Ray clusters for integration tests, each in a directory of its own and gone at the end."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from tests.integration.clusters import ray_directory, start_nodes

OBJECT_STORE_NBYTES = 100 << 20


@dataclass(frozen=True, slots=True)
class RayNodes:
    """A running cluster that this process is connected to."""

    ids: tuple[str, ...]
    """Of every node, the head first."""
    address: str


@pytest.fixture(scope="module")
def one_node() -> Iterator[RayNodes]:
    """A cluster of one node. Tests of one module share it, so each takes keys of its own."""
    yield from _cluster(1)


@pytest.fixture(scope="module")
def two_nodes() -> Iterator[RayNodes]:
    """A cluster of two nodes on this machine: what one has gets to the other over the transport."""
    yield from _cluster(2)


def _cluster(count: int) -> Iterator[RayNodes]:
    import ray

    with pytest.MonkeyPatch.context() as environment, ray_directory(environment) as directory:
        node = {"num_cpus": 2, "object_store_memory": OBJECT_STORE_NBYTES}
        cluster = start_nodes({**node, "include_dashboard": False, "temp_dir": str(directory)}, node, count)
        try:
            ray.init(address=cluster.address, log_to_driver=False, logging_level="WARNING")
            head = ray.get_runtime_context().get_node_id()
            others = sorted(n["NodeID"] for n in ray.nodes() if n["NodeID"] != head)
            yield RayNodes(ids=(head, *others), address=cluster.address)
        finally:
            ray.shutdown()
            cluster.shutdown()
