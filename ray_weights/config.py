"""Settings of the service, and the only place that reads the environment.

Every field can be set by an environment variable: RAY_WEIGHTS_ plus its name in capitals.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from typing import Literal

from pydantic import Field, ValidationError

from ray_weights.errors import ConfigError
from ray_weights.schemas.base import Frozen

_PREFIX = "RAY_WEIGHTS_"


class ServiceSettings(Frozen):
    """What an operator may tune. The coordinator hands its own to every transfer actor, so one place rules."""

    chunk_nbytes: int | None = Field(default=None, gt=0)
    """Bytes of a chunk; None chooses by the size of the shard."""
    window: int = Field(default=3, ge=1, le=64)
    """Chunk reads in flight per upstream."""
    stall_seconds: float = Field(default=3.0, gt=0)
    """A read without progress for this long is given up on and its upstream left."""
    egress_rate: float = Field(default=0.0, ge=0)
    """Bytes per second that one transfer actor may send; 0: one flow fills it. Decides how many children it gets."""
    receive_rate: float = Field(default=0.0, ge=0)
    """Bytes per second that one receiver reads at most, to leave room on a NIC that also serves; 0: no limit."""
    gather_seconds: float = Field(default=0.05, ge=0)
    """How long receivers that follow one another closely are gathered before they are placed."""
    recovery_seconds: float = Field(default=5.0, ge=0)
    """How long a restarted coordinator waits for the transfer actors that it finds."""
    progress_delay_us: int = Field(default=1000, ge=0)
    """Microseconds that NIXL's progress thread sleeps when idle; 0 spins on a whole core."""
    nixl_backend: str = "UCX"
    max_arenas: int = Field(default=64, ge=1)
    """Arenas in one transfer actor."""
    memory_reserve_nbytes: int = Field(default=256 << 20, ge=0)
    """Memory of the node that arenas leave free."""
    digest: Literal["xxh3-128", "blake3-128"] = "xxh3-128"
    """How chunks in host memory are checked: xxh3-128 finds damage at about the speed of memory, blake3-128 also bytes
    that somebody on the data network changed on purpose, at five times the CPU time."""
    verify_threads: int = Field(default=2, ge=1)
    """Threads that compute chunk digests in one transfer actor."""
    labels: tuple[tuple[str, str], ...] = ()
    """Ray node labels that say where a node stands, outermost first, for example (("rack", ""),): names only count."""
    connect_timeout: float = Field(default=30.0, gt=0)
    """Seconds to wait for the coordinator or a transfer actor to start."""


def settings_from_environment() -> ServiceSettings:
    """Settings as the environment has them.

    Raises:
        ConfigError: a variable has a value that cannot be.
    """
    found = {
        name: os.environ[_PREFIX + name.upper()]
        for name in ServiceSettings.model_fields
        if _PREFIX + name.upper() in os.environ
    }
    try:
        return ServiceSettings.model_validate_strings(found)
    except ValidationError as e:
        first = e.errors()[0]
        variable = _PREFIX + str(first["loc"][0]).upper()
        raise ConfigError(f"{variable}={os.environ.get(variable)!r}: {first['msg']}") from e


def inherited_node_id() -> str | None:
    """Ray node of this process where it is no Ray process itself but was started by one (vLLM's workers)."""
    return os.environ.get(_PREFIX + "NODE_ID")


def ray_address() -> str:
    """Address of the cluster to connect to: as the parent process found it, or RAY_ADDRESS, or the one on this machine.

    The parent speaks first, and in a variable of our own: RAY_ADDRESS left behind in a process would send its next
    ray.init() to a cluster that may be gone.
    """
    return os.environ.get(_PREFIX + "ADDRESS") or os.environ.get("RAY_ADDRESS") or "auto"


def variables_of_others(names: Iterable[str]) -> dict[str, str]:
    """Variables that other software reads and `ray-weights doctor` judges, as far as they are set."""
    return {name: os.environ[name] for name in names if name in os.environ}
