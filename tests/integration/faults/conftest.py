"""One cluster of four nodes for all fault tests, with Ray's token authentication on and every byte going over TCP."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import ray
from ray._private.authentication_test_utils import reset_auth_token_state
from ray.cluster_utils import Cluster

from ray_weights.config import ServiceSettings
from tests.integration.clusters import ray_directory, start_nodes
from tests.integration.faults.engines import MiB, Weights
from tests.integration.faults.fleet import PATIENCE, Fleet, wait_until
from tests.integration.faults.processes import arenas_of, processes_in
from tests.integration.faults.record import Recorder

SETTINGS = ServiceSettings(
    chunk_nbytes=512 << 10,
    window=2,
    stall_seconds=3,
    # So that a transfer takes two seconds on any machine, and there is time to break something.
    receive_rate=64e6,
    max_arenas=8,
    memory_reserve_nbytes=64 * MiB,
    # All this on a machine that may be busy: a new epoch hears every member before it answers.
    recovery_seconds=20,
)
NODES = 4


@pytest.fixture(scope="package")
def cluster() -> Iterator[Cluster]:
    with pytest.MonkeyPatch.context() as environment, ray_directory(environment) as directory:
        token = directory / "token"
        token.write_text("a token of these tests alone, 0123456789")
        environment.setenv("RAY_AUTH_MODE", "token")
        environment.setenv("RAY_AUTH_TOKEN_PATH", str(token))
        environment.delenv("RAY_AUTH_TOKEN", raising=False)
        # As between machines: within one, UCX would copy from the peer's memory, whether or not the peer runs.
        environment.setenv("UCX_TLS", "tcp,self")
        reset_auth_token_state()
        node = {"num_cpus": 4, "object_store_memory": 100 * MiB}
        head = {
            "include_dashboard": False,
            "temp_dir": str(directory),
            # A node that is slow to answer is not dead; one that refuses the connection is.
            "_system_config": {"health_check_timeout_ms": 60_000},
        }
        made = start_nodes({**node, **head}, node, NODES)
        try:
            ray.init(address=made.address, namespace="faults", log_to_driver=False, logging_level="ERROR")
            yield made
        finally:
            ray.shutdown()
            made.shutdown()
            wait_until(lambda: not processes_in(directory), "no process outlives the cluster")
    reset_auth_token_state()


@pytest.fixture(scope="package")
def _fleet(cluster: Cluster) -> Iterator[Fleet]:
    head = ray.get_runtime_context().get_node_id()
    others = sorted(n["NodeID"] for n in ray.nodes() if n["NodeID"] != head)
    fleet = Fleet(cluster, [head, *others], SETTINGS)
    fleet.start()
    yield fleet
    fleet.stop()
    wait_until(lambda: not arenas_of(tuple(fleet.node_ids)), "no memory outlives its processes")


@pytest.fixture(scope="package")
def undisturbed_seconds(_fleet: Fleet) -> dict[int, float]:
    """How long it takes until the last of n receivers has everything, by n, when nothing breaks."""
    found = {}
    for n in (1, 2, 3):
        weights = Weights(f"undisturbed {n}")
        _fleet.seed(0, weights)
        openings = ray.get(_fleet.chain(weights, *range(1, n + 1)), timeout=PATIENCE)
        found[n] = max(o.seconds for o in openings)
        _fleet.clean_up(weights)
    return found


@pytest.fixture
def recorder(request: pytest.FixtureRequest, undisturbed_seconds: dict[int, float]) -> Recorder:
    return Recorder(request.config, request.node.nodeid, undisturbed_seconds)


@pytest.fixture
def fleet(_fleet: Fleet) -> Iterator[Fleet]:
    """The fleet, whole: every host has joined, no memory is taken (after a test that failed it starts anew)."""
    if arenas_of(tuple(_fleet.node_ids)):
        _fleet.stop()
        _fleet.start()
    for host in _fleet.hosts:
        _fleet.joined(host.index)
    yield _fleet
    _fleet.thaw_all()
