"""How the Ray clusters of the tests start, and where they write."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from ray.cluster_utils import Cluster

_ATTEMPTS = 3


@contextmanager
def ray_directory(environment: pytest.MonkeyPatch) -> Iterator[Path]:
    """A directory for one cluster, gone at the end.

    Ray also writes the address of the newest cluster into its default directory, which need not exist: with RAY_TMPDIR
    that is in here, too, and a cluster that the user runs beside the tests stays the one that is found by default.
    """
    directory = Path(tempfile.mkdtemp(prefix="rw-", dir="/tmp"))  # short, because it becomes part of socket paths
    (directory / "ray").mkdir()
    environment.setenv("RAY_TMPDIR", str(directory))
    try:
        yield directory
    finally:
        shutil.rmtree(directory, ignore_errors=True)


def start_nodes(head: dict[str, Any], others: dict[str, Any], count: int) -> Cluster:
    """A cluster of `count` nodes: the first with the options of `head`, the rest with those of `others`.

    Now and then a node does not come up within Ray's 30 s, probably because Ray forks its processes from this one,
    which has threads of gRPC by then: all is started anew then.
    """
    for attempt in range(_ATTEMPTS):
        cluster = Cluster()
        try:
            for options in (head, *(count - 1) * [others]):
                cluster.add_node(**options)
        except Exception:  # Ray raises it bare
            cluster.shutdown()
            if attempt == _ATTEMPTS - 1:
                raise
        else:
            return cluster
    raise AssertionError("unreachable")
