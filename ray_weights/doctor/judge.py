"""From facts to findings: pure functions, each about one part."""

from __future__ import annotations

import re
from collections.abc import Mapping

from ray_weights.doctor.facts import ClusterFacts, GpuFacts, HostFacts, NixlFacts, ReadFacts, VersionFacts
from ray_weights.doctor.findings import Finding, ok, problem, warning
from ray_weights.doctor.ucx_log import transport_of

TRIED_RAY = (2, 60)
TRIED_VLLM = (0, 32)
LOW_MEMORY_NBYTES = 1 << 30
FEW_OPEN_FILES = 4096
_MEMORY_PATHS = ("cma", "knem", "xpmem", "sysv", "posix")
_DEVICE_PATHS = ("cuda_ipc", "gdr_copy", "cuda")


def judge_nixl(facts: NixlFacts) -> list[Finding]:
    """Whether a transfer actor could make its agent."""
    if not facts.module:
        return [
            problem(
                "nixl",
                f"NIXL cannot be used: {facts.error}",
                "pip install nixl-cu12 (CUDA 12, also right without a GPU) or nixl-cu13; without it no transfer actor "
                "starts and every replica reads storage",
            )
        ]
    found = f"{facts.module} with plugins {', '.join(facts.plugins) or 'none'}"
    if facts.backend not in facts.plugins:
        return [
            problem(
                "nixl",
                f"{found}: the backend {facts.backend} is not among them",
                "set RAY_WEIGHTS_NIXL_BACKEND to one that is, or reinstall the wheel (a plugin that cannot load its "
                "libraries is left out; NIXL_LOG_LEVEL=DEBUG says why)",
            )
        ]
    if facts.error:
        return [
            problem(
                "nixl",
                f"the backend {facts.backend} does not start: {facts.error}",
                "where UCX_TLS is set it must contain tcp; UCX_LOG_LEVEL=info says more",
            )
        ]
    return [ok("nixl", f"{found}; the backend {facts.backend} starts")]


def judge_read(facts: ReadFacts, ptrace_scope: int | None) -> list[Finding]:
    """The way that bytes take between two processes of this host, as a real READ showed it."""
    area = "same host" if facts.memory == "DRAM" else "same host, GPU"
    if facts.error:
        return [problem(area, f"a READ between two processes failed: {facts.error}", "see the findings about nixl")]
    transport = transport_of(facts.path)
    speed = f"{facts.rate / 1e9:.1f} GB/s"
    if facts.memory == "VRAM":
        if transport in _DEVICE_PATHS:
            return [ok(area, f"GPU memory is read by {facts.path}, {speed}: the fast path")]
        return [
            warning(
                area,
                f"GPU memory is read by {facts.path or 'an unknown path'}, {speed}: the slow path",
                "CUDA IPC needs both processes in one IPC and PID namespace and a plain cudaMalloc allocation; in "
                "containers share them (hostIPC, hostPID)",
            )
        ]
    if transport in _MEMORY_PATHS:
        return [ok(area, f"memory is read directly ({facts.path}), {speed}: the fast path")]
    scope = f"kernel.yama.ptrace_scope is {ptrace_scope}; " if ptrace_scope else ""
    return [
        warning(
            area,
            f"memory is read by {facts.path or 'an unknown path'}, {speed}: the slow path, CMA is not used",
            f"{scope}CMA needs one user, one PID namespace and the right to process_vm_readv: allow SYS_PTRACE in the "
            "container, or set kernel.yama.ptrace_scope=0; between hosts this changes nothing",
        )
    ]


def judge_network(facts: HostFacts) -> list[Finding]:
    """The way that bytes take between hosts."""
    if facts.system != "Linux":
        return [problem("network", f"this is {facts.system}", "ray_weights needs Linux: memfd, NIXL")]
    found = []
    if facts.rdma_devices:
        found.append(ok("network", f"RDMA ports that are up: {', '.join(facts.rdma_devices)}"))
        if facts.memlock is not None:
            found.append(
                warning(
                    "network",
                    f"this user may lock {facts.memlock:,} bytes; RDMA has to lock every arena",
                    "ulimit -l unlimited for the raylet (LimitMEMLOCK=infinity in systemd, an ulimit in the container)",
                )
            )
    elif facts.rdma_down:
        found.append(
            warning(
                "network",
                f"RDMA ports are there, but down: {', '.join(facts.rdma_down)}; hosts will use TCP",
                "bring the link up (ibstat, rdma link show)",
            )
        )
    else:
        found.append(ok("network", "no RDMA device: between hosts bytes go by TCP, at most about 1 GB/s per flow"))
    if facts.open_files is not None and facts.open_files < FEW_OPEN_FILES:
        found.append(
            warning(
                "network",
                f"this user may have {facts.open_files} files open",
                "ulimit -n 65536 for the raylet: each connection and arena takes some",
            )
        )
    return found


def judge_memory(facts: HostFacts, reserve_nbytes: int) -> list[Finding]:
    """Room for arenas. /dev/shm does not matter: arenas are memfds."""
    free = facts.memory_available - reserve_nbytes
    found = (
        f"{facts.memory_available / 1e9:.1f} GB of {facts.memory_limit / 1e9:.1f} GB are available "
        f"(limit from {facts.memory_limit_from}), {reserve_nbytes / 1e9:.1f} GB of it stay free"
    )
    if free < LOW_MEMORY_NBYTES:
        return [
            warning(
                "memory",
                f"{found}: an arena of more than {max(0, free) / 1e9:.1f} GB will be refused",
                "a CPU node holds one copy of each shard outside of the engine: give the node or container more "
                "memory; a refused replica reads storage",
            )
        ]
    return [ok("memory", found), *_judge_huge_pages(facts.shared_huge_pages)]


def _judge_huge_pages(chosen: str) -> list[Finding]:
    """Weights in host memory take their pages from the kernel one by one, unless it may give large ones."""
    if chosen not in ("never", "deny"):
        return []
    tip = (
        "echo advise > /sys/kernel/mm/transparent_hugepage/shmem_enabled as root makes taking an arena's memory faster"
    )
    return [ok("memory", f"no huge pages for shared memory (shmem_enabled is {chosen}): {tip}")]


def judge_gpu(facts: GpuFacts, variables: Mapping[str, str]) -> list[Finding]:
    """The GPU, and torch settings that make reads of its memory slow."""
    if not facts.present:
        return [ok("gpu", "no NVIDIA driver here: weights live in host memory")]
    if facts.error:
        return [problem("gpu", f"torch cannot use the GPU: {facts.error}", "check nvidia-smi and torch's CUDA build")]
    if not facts.torch_cuda:
        return [
            warning(
                "gpu",
                "there is a GPU, but torch is a CPU build",
                "install a CUDA build of torch if engines are to use the GPU",
            )
        ]
    found = [ok("gpu", f"{', '.join(facts.devices)} (torch for CUDA {facts.torch_cuda})")]
    for name in ("PYTORCH_CUDA_ALLOC_CONF", "PYTORCH_ALLOC_CONF"):
        if re.search(r"expandable_segments\s*:\s*true", variables.get(name, ""), re.IGNORECASE):
            found.append(
                warning(
                    "gpu",
                    f"{name} has expandable_segments: NICs read such memory several hundred times slower, silently",
                    "arenas are plain cudaMalloc and not affected; tensors that a program registers itself are: take "
                    "it out there",
                )
            )
    return found


def judge_versions(facts: VersionFacts, gpu: GpuFacts, python: tuple[int, int]) -> list[Finding]:
    """What is installed, and combinations that are known not to work."""
    nixl = ", ".join(f"{name} {version}" for name, version in facts.nixl)
    installed = {
        "ray_weights": facts.ray_weights,
        "ray": facts.ray,
        "torch": facts.torch,
        "vllm": facts.vllm,
    }
    listed = ", ".join(f"{name} {version}" for name, version in installed.items() if version)
    found = [ok("versions", f"Python {python[0]}.{python[1]}, {listed}{', ' + nixl if nixl else ''}")]
    if facts.ray and _release(facts.ray) < TRIED_RAY:
        found.append(warning("versions", f"Ray {facts.ray} is older than what this was tried with", "use Ray 2.60"))
    if facts.vllm:
        found += _judge_vllm(facts)
    found += _judge_builds(facts, gpu)
    return found


def judge_plugin(facts: VersionFacts, variables: Mapping[str, str]) -> list[Finding]:
    """Whether vLLM will find the load format."""
    if not facts.vllm:
        return [ok("vllm plugin", "vLLM is not installed here: only publish() and fetch() are of use")]
    if not facts.plugin_entry_point:
        return [
            problem(
                "vllm plugin",
                "the entry point is not registered: vLLM does not know load_format ray_weights",
                "install the package into this environment with pip: a Ray working_dir alone has no entry points",
            )
        ]
    allowed = variables.get("VLLM_PLUGINS")
    if allowed is not None and "ray_weights" not in [name.strip() for name in allowed.split(",")]:
        return [problem("vllm plugin", f"VLLM_PLUGINS={allowed} leaves it out", "add ray_weights to VLLM_PLUGINS")]
    return [ok("vllm plugin", f"vLLM loads {facts.plugin_entry_point}")]


def judge_variables(variables: Mapping[str, str]) -> list[Finding]:
    """Variables that change how bytes move."""
    tls = variables.get("UCX_TLS", "")
    names = [name.strip() for name in tls.split(",")]
    if tls and not tls.startswith("^") and not {"tcp", "all", "rc", "rc_x", "rc_v", "dc", "dc_x", "ib"} & set(names):
        return [
            problem(
                "environment",
                f"UCX_TLS={tls} has no transport that notices a lost peer",
                "add tcp to UCX_TLS, or leave it unset",
            )
        ]
    if tls:
        return [warning("environment", f"UCX_TLS={tls} limits UCX", "leave it unset unless there is a reason")]
    return []


def judge_auth(mode: str | None, has_token: bool) -> list[Finding]:
    """Ray's token authentication."""
    if mode == "token" and not has_token:
        return [
            problem(
                "ray auth",
                "RAY_AUTH_MODE=token, but no token is here",
                "copy the head's token here (ray get-auth-token), as ~/.ray/auth_token or in RAY_AUTH_TOKEN",
            )
        ]
    if mode is None:
        token = "a token is here and will be used" if has_token else "no token is here"
        return [
            ok(
                "ray auth",
                f"RAY_AUTH_MODE is not set; {token}. Set RAY_AUTH_MODE=token on every node if some refuse each other",
            )
        ]
    return [ok("ray auth", f"RAY_AUTH_MODE={mode}{', with a token' if mode == 'token' else ''}")]


def judge_cluster(facts: ClusterFacts) -> list[Finding]:
    """The cluster, the coordinator and the transfer actors. None of them has to run yet."""
    if facts.error:
        if facts.address == "auto":
            return [warning("cluster", facts.error, "start one with `ray start --head`, or set RAY_ADDRESS")]
        return [
            problem("cluster", facts.error, f"RAY_ADDRESS means {facts.address}: correct it, or start that cluster")
        ]
    found = [ok("cluster", f"reachable, {facts.nodes} node{'' if facts.nodes == 1 else 's'}")]
    if not facts.coordinator_running:
        found.append(ok("coordinator", "not running: the first replica starts it, or `ray-weights up`"))
    elif facts.coordinator_problem:
        found.append(
            problem(
                "coordinator",
                facts.coordinator_problem,
                "see its log in the Ray dashboard; Ray restarts it when it dies, and `ray kill` of a hung one is safe: "
                "its state is rebuilt from the transfer actors",
            )
        )
    else:
        changed = _changed(facts)
        found.append(ok("coordinator", f"answers; settings: {changed or 'all at their defaults'}"))
    silent = [a for a in facts.actors if a.problem]
    found += [
        problem(
            "transfer actors",
            f"{a.name} {a.problem}",
            "Ray restarts a dead one as long as its node is there; a hung one may be killed in the dashboard: engines "
            "keep their weights",
        )
        for a in silent
    ]
    if facts.actors and not silent:
        found.append(ok("transfer actors", f"{len(facts.actors)}, all answer"))
    return found


def _changed(facts: ClusterFacts) -> str:
    if facts.settings is None:
        return ""
    fields = type(facts.settings).model_fields
    return ", ".join(
        f"{name}={getattr(facts.settings, name)}"
        for name, field in fields.items()
        if getattr(facts.settings, name) != field.get_default(call_default_factory=True)
    )


def _judge_vllm(facts: VersionFacts) -> list[Finding]:
    found = []
    version = _release(facts.vllm)
    if version >= (0, 33) and _release(facts.ray) <= (2, 60):
        found.append(
            warning(
                "versions",
                f"ray.serve.llm of Ray {facts.ray} cannot be imported with vLLM {facts.vllm}",
                "use vLLM 0.32 with Ray Serve; vLLM alone is not affected",
            )
        )
    elif version != TRIED_VLLM:
        found.append(
            warning(
                "versions",
                f"this was tried with vLLM 0.32, not {facts.vllm}",
                "the loader builds on vLLM's inner parts: try it before you rely on it",
            )
        )
    if facts.missing_for_serve_llm:
        names = " ".join(facts.missing_for_serve_llm)
        found.append(warning("versions", f"ray.serve.llm needs {names} as well", f"pip install {names}"))
    return found


def _judge_builds(facts: VersionFacts, gpu: GpuFacts) -> list[Finding]:
    found = []
    if facts.torch.endswith("+cpu") and facts.torchvision and not facts.torchvision.endswith("+cpu"):
        found.append(
            warning(
                "versions",
                f"torch {facts.torch} is a CPU build, torchvision {facts.torchvision} is not: transformers cannot "
                "import it (torchvision::nms does not exist)",
                "pip uninstall torchvision torchaudio torchcodec: text models need none of them",
            )
        )
    cuda = gpu.torch_cuda.partition(".")[0]
    names = [name for name, _ in facts.nixl]
    if cuda and names and "nixl" not in names and f"nixl-cu{cuda}" not in names:
        found.append(
            warning(
                "versions",
                f"torch is built for CUDA {gpu.torch_cuda}, NIXL is {', '.join(names)}",
                f"pip install nixl-cu{cuda}",
            )
        )
    return found


def _release(version: str) -> tuple[int, int]:
    numbers = [int(n) for n in re.findall(r"\d+", version)[:2]]
    return (numbers[0], numbers[1]) if len(numbers) == 2 else (0, 0)
