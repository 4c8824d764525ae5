"""Runs every probe, side by side, and has what they found judged."""

from __future__ import annotations

import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from ray_weights.config import ray_address, settings_from_environment, variables_of_others
from ray_weights.doctor import judge, look
from ray_weights.doctor.facts import ClusterFacts, GpuFacts, NixlFacts, ReadFacts
from ray_weights.doctor.findings import Finding, Report
from ray_weights.doctor.isolated import run_probe
from ray_weights.doctor.ucx_log import read_path

_VARIABLES = (
    "PYTORCH_CUDA_ALLOC_CONF",
    "PYTORCH_ALLOC_CONF",
    "RAY_AUTH_MODE",
    "RAY_AUTH_TOKEN",
    "RAY_AUTH_TOKEN_PATH",
    "UCX_TLS",
    "VLLM_PLUGINS",
)
_START_SECONDS = 15.0
"""What a probe may take to start and end, beside the timeout that it keeps itself."""


def examine(timeout: float) -> Report:
    """Look at everything. Takes at most about `timeout` seconds, and 15 for Python itself; starts nothing that stays.

    Args:
        timeout: seconds that each probe may take.
    """
    settings = settings_from_environment()
    variables = variables_of_others(_VARIABLES)
    host, versions = look.host_facts(), look.version_facts()
    with ThreadPoolExecutor(3) as pool:
        nixl = pool.submit(_nixl, settings.nixl_backend, timeout)
        cluster = pool.submit(_cluster, timeout)
        gpu_facts = pool.submit(_gpu, timeout).result()
        nixl_facts, cluster_facts = nixl.result(), cluster.result()
        reads = []
        if nixl_facts.module and not nixl_facts.error and settings.nixl_backend in nixl_facts.plugins:
            kinds = ["DRAM"] + (["VRAM"] if gpu_facts.devices else [])
            reads = list(pool.map(lambda kind: _read(settings.nixl_backend, kind, timeout), kinds))
    has_token = look.has_token(variables, Path.home())
    findings: list[Finding] = [
        *judge.judge_versions(versions, gpu_facts, host.python),
        *judge.judge_nixl(nixl_facts),
        *(f for facts in reads for f in judge.judge_read(facts, host.ptrace_scope)),
        *judge.judge_network(host),
        *judge.judge_variables(variables),
        *judge.judge_memory(host, settings.memory_reserve_nbytes),
        *judge.judge_gpu(gpu_facts, variables),
        *judge.judge_plugin(versions, variables),
        *judge.judge_auth(variables.get("RAY_AUTH_MODE"), has_token),
        *judge.judge_cluster(cluster_facts),
    ]
    return Report(findings=tuple(findings))


def _nixl(backend: str, timeout: float) -> NixlFacts:
    said = run_probe("probe_nixl", backend, timeout=timeout + _START_SECONDS)
    return NixlFacts.model_validate_json(said.result) if said.result else NixlFacts(backend=backend, error=said.error)


def _gpu(timeout: float) -> GpuFacts:
    if not look.has_gpu_driver():
        return GpuFacts(present=False)
    said = run_probe("probe_gpu", timeout=timeout + _START_SECONDS)
    return GpuFacts.model_validate_json(said.result) if said.result else GpuFacts(present=True, error=said.error)


def _cluster(timeout: float) -> ClusterFacts:
    said = run_probe("probe_cluster", str(timeout), timeout=timeout + _START_SECONDS)
    if said.result:
        return ClusterFacts.model_validate_json(said.result)
    return ClusterFacts(address=ray_address(), error=f"the cluster could not be looked at: {said.error}")


def _read(backend: str, kind: str, timeout: float) -> ReadFacts:
    """Two processes beside each other: that one is the other's parent would change what the kernel allows."""
    command = [sys.executable, "-m", "ray_weights.doctor.probe_read", "source", backend, kind]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as source:
        try:
            assert source.stdout is not None
            said = run_probe(
                "probe_read", "reader", backend, kind, timeout=timeout + _START_SECONDS, stdin=source.stdout.fileno()
            )
        finally:
            source.kill()
    if not said.result:
        return ReadFacts(memory=kind, error=said.error)
    facts = ReadFacts.model_validate_json(said.result)
    return facts.model_copy(update={"path": read_path(said.log, "host" if kind == "DRAM" else "cuda")})
