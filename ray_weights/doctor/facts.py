"""What the probes find. Each is JSON where it comes from a process of its own."""

from __future__ import annotations

from ray_weights.config import ServiceSettings
from ray_weights.schemas.base import Frozen


class NixlFacts(Frozen):
    """Of the agent that a transfer actor would make."""

    module: str = ""
    """Python module that was imported; "" when there is none."""
    plugins: tuple[str, ...] = ()
    backend: str
    error: str = ""


class ReadFacts(Frozen):
    """Of a real READ between two processes of this host."""

    memory: str
    """DRAM or VRAM."""
    rate: float = 0.0
    """Bytes per second, after a first read that sets things up."""
    path: str = ""
    """UCX's transport and device, for example "cma/memory" or "tcp/lo"; "" where UCX did not say."""
    error: str = ""


class HostFacts(Frozen):
    """Of this machine and user."""

    system: str
    python: tuple[int, int]
    ptrace_scope: int | None = None
    """kernel.yama.ptrace_scope; None where the kernel has no such setting."""
    rdma_devices: tuple[str, ...] = ()
    """RDMA ports that are up, for example "mlx5_0:1 InfiniBand"."""
    rdma_down: tuple[str, ...] = ()
    memlock: int | None = None
    """Bytes that this user may lock; None for no limit."""
    open_files: int | None = None
    memory_available: int = 0
    memory_limit: int = 0
    memory_limit_from: str = ""
    shared_huge_pages: str = ""
    """When the kernel gives huge pages to shared memory, for example "never"; "" where it does not say."""


class GpuFacts(Frozen):
    present: bool
    """Whether the driver is there."""
    torch_cuda: str = ""
    """CUDA version that torch was built for; "" for a CPU build, or where torch was not asked."""
    devices: tuple[str, ...] = ()
    error: str = ""


class VersionFacts(Frozen):
    """Versions of installed distributions; "" for those that are not."""

    ray_weights: str = ""
    ray: str = ""
    torch: str = ""
    torchvision: str = ""
    vllm: str = ""
    nixl: tuple[tuple[str, str], ...] = ()
    """(distribution, version): nixl, nixl-cu12, nixl-cu13."""
    missing_for_serve_llm: tuple[str, ...] = ()
    plugin_entry_point: str = ""
    """What the entry point of vLLM's plugin group names; "" when it is not registered."""


class ActorFacts(Frozen):
    name: str
    problem: str = ""


class ClusterFacts(Frozen):
    """Of the cluster that the service would use here."""

    address: str
    """As configured: host:port, or "auto"."""
    error: str = ""
    """Why it cannot be reached; "" when it can."""
    nodes: int = 0
    coordinator_running: bool = False
    coordinator_problem: str = ""
    settings: ServiceSettings | None = None
    actors: tuple[ActorFacts, ...] = ()
