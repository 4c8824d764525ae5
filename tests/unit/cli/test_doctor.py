"""The doctor's judgement: facts in, findings out."""

from __future__ import annotations

from pathlib import Path

import pytest

from ray_weights.cli.doctor_view import render_report
from ray_weights.config import ServiceSettings
from ray_weights.doctor import judge, look
from ray_weights.doctor.facts import (
    ActorFacts,
    ClusterFacts,
    GpuFacts,
    HostFacts,
    NixlFacts,
    ReadFacts,
    VersionFacts,
)
from ray_weights.doctor.findings import Finding, Level, Report, ok, problem, warning
from ray_weights.doctor.isolated import run_probe
from ray_weights.doctor.ucx_log import read_path, transport_of
from tests.unit.cli.views import drawn

HOST = HostFacts(system="Linux", python=(3, 11), memory_available=8 << 30, memory_limit=16 << 30)
NO_GPU = GpuFacts(present=False)
VERSIONS = VersionFacts(
    ray_weights="0.1.0",
    ray="2.60.0",
    torch="2.13.0+cpu",
    vllm="0.32.0",
    nixl=(("nixl-cu12", "1.5.1"),),
    plugin_entry_point="ray_weights.integrations.vllm.plugin:register",
)


def worst(findings: list[Finding]) -> Level:
    levels = {f.level for f in findings}
    for level in ("problem", "warning"):
        if level in levels:
            return level
    return "ok"


def update(facts, **fields):  # type: ignore[no-untyped-def]
    return facts.model_copy(update=fields)


@pytest.mark.parametrize(
    ("facts", "level", "said"),
    [
        (NixlFacts(module="nixl_cu12", plugins=("POSIX", "UCX"), backend="UCX"), "ok", "starts"),
        (NixlFacts(backend="UCX", error="no module"), "problem", "no module"),
        (NixlFacts(module="nixl_cu12", plugins=("POSIX",), backend="UCX"), "problem", "UCX is not among them"),
        (NixlFacts(module="nixl_cu12", plugins=("UCX",), backend="UCX", error="x"), "problem", "does not start"),
    ],
)
def test_nixl(facts: NixlFacts, level: Level, said: str) -> None:
    findings = judge.judge_nixl(facts)
    assert worst(findings) == level and said in findings[0].found


@pytest.mark.parametrize(
    ("facts", "level"),
    [
        (ReadFacts(memory="DRAM", rate=4e9, path="cma/memory"), "ok"),
        (ReadFacts(memory="DRAM", rate=1e9, path="tcp/lo"), "warning"),
        (ReadFacts(memory="DRAM", rate=1e9), "warning"),
        (ReadFacts(memory="DRAM", error="no end"), "problem"),
        (ReadFacts(memory="VRAM", rate=2e11, path="cuda_ipc/cuda"), "ok"),
        (ReadFacts(memory="VRAM", rate=1e9, path="tcp/lo"), "warning"),
    ],
)
def test_the_way_within_a_host(facts: ReadFacts, level: Level) -> None:
    assert worst(judge.judge_read(facts, 1)) == level


def test_a_missing_fast_path_names_the_kernel_setting_that_forbids_it() -> None:
    slow = ReadFacts(memory="DRAM", rate=1e9, path="tcp/lo")
    assert "ptrace_scope is 2" in judge.judge_read(slow, 2)[0].advice
    assert "ptrace_scope is" not in judge.judge_read(slow, None)[0].advice


@pytest.mark.parametrize(
    ("facts", "level", "said"),
    [
        (HOST, "ok", "TCP"),
        (update(HOST, rdma_devices=("mlx5_0:1 InfiniBand",)), "ok", "mlx5_0"),
        (update(HOST, rdma_devices=("mlx5_0:1",), memlock=65536), "warning", "mlx5_0"),
        (update(HOST, rdma_down=("mlx5_0:1",)), "warning", "down"),
        (update(HOST, open_files=1024), "warning", "TCP"),
        (update(HOST, system="Darwin"), "problem", "Darwin"),
    ],
)
def test_the_way_between_hosts(facts: HostFacts, level: Level, said: str) -> None:
    findings = judge.judge_network(facts)
    assert worst(findings) == level and said in findings[0].found


def test_locked_memory_matters_only_with_rdma() -> None:
    assert worst(judge.judge_network(update(HOST, memlock=65536))) == "ok"


@pytest.mark.parametrize(("free", "level"), [(8 << 30, "ok"), (1 << 30, "warning"), (0, "warning")])
def test_memory(free: int, level: Level) -> None:
    assert worst(judge.judge_memory(update(HOST, memory_available=free), 256 << 20)) == level


@pytest.mark.parametrize(
    ("facts", "variables", "level"),
    [
        (NO_GPU, {"PYTORCH_CUDA_ALLOC_CONF": "expandable_segments:True"}, "ok"),
        (GpuFacts(present=True, torch_cuda="12.8", devices=("H200",)), {}, "ok"),
        (
            GpuFacts(present=True, torch_cuda="12.8", devices=("H200",)),
            {"PYTORCH_CUDA_ALLOC_CONF": "max_split_size_mb:1,expandable_segments:True"},
            "warning",
        ),
        (
            GpuFacts(present=True, torch_cuda="12.8", devices=("H200",)),
            {"PYTORCH_ALLOC_CONF": "expandable_segments:False"},
            "ok",
        ),
        (GpuFacts(present=True), {}, "warning"),
        (GpuFacts(present=True, torch_cuda="12.8", error="driver too old"), {}, "problem"),
    ],
)
def test_gpu(facts: GpuFacts, variables: dict[str, str], level: Level) -> None:
    assert worst(judge.judge_gpu(facts, variables)) == level


@pytest.mark.parametrize(
    ("facts", "gpu", "level", "said"),
    [
        (VERSIONS, NO_GPU, "ok", ""),
        (update(VERSIONS, vllm="0.33.1"), NO_GPU, "warning", "ray.serve.llm"),
        (update(VERSIONS, vllm="0.29.0"), NO_GPU, "warning", "0.29.0"),
        (update(VERSIONS, vllm=""), NO_GPU, "ok", ""),
        (update(VERSIONS, ray="2.55.0"), NO_GPU, "warning", "2.55.0"),
        (update(VERSIONS, torchvision="0.28.0"), NO_GPU, "warning", "torchvision"),
        (update(VERSIONS, torchvision="0.28.0+cpu"), NO_GPU, "ok", ""),
        (update(VERSIONS, missing_for_serve_llm=("pyarrow",)), NO_GPU, "warning", "pyarrow"),
        (VERSIONS, GpuFacts(present=True, torch_cuda="13.0", devices=("H200",)), "warning", "CUDA 13.0"),
    ],
)
def test_versions(facts: VersionFacts, gpu: GpuFacts, level: Level, said: str) -> None:
    findings = judge.judge_versions(facts, gpu, (3, 11))
    assert worst(findings) == level and said in " ".join(f.found for f in findings)


@pytest.mark.parametrize(
    ("facts", "variables", "level"),
    [
        (VERSIONS, {}, "ok"),
        (VERSIONS, {"VLLM_PLUGINS": "other, ray_weights"}, "ok"),
        (VERSIONS, {"VLLM_PLUGINS": "other"}, "problem"),
        (update(VERSIONS, plugin_entry_point=""), {}, "problem"),
        (update(VERSIONS, vllm="", plugin_entry_point=""), {}, "ok"),
    ],
)
def test_the_plugin_of_vllm(facts: VersionFacts, variables: dict[str, str], level: Level) -> None:
    assert worst(judge.judge_plugin(facts, variables)) == level


@pytest.mark.parametrize(
    ("tls", "level"),
    [("", "ok"), ("sm,self", "problem"), ("tcp,cma", "warning"), ("rc,sm", "warning"), ("^ib", "warning")],
)
def test_a_limited_ucx(tls: str, level: Level) -> None:
    assert worst(judge.judge_variables({"UCX_TLS": tls} if tls else {})) == level


@pytest.mark.parametrize(
    ("mode", "token", "level"),
    [("token", True, "ok"), ("token", False, "problem"), (None, False, "ok"), ("disabled", False, "ok")],
)
def test_authentication(mode: str | None, token: bool, level: Level) -> None:
    assert worst(judge.judge_auth(mode, token)) == level


RUNNING = ClusterFacts(
    address="10.0.0.1:6379",
    nodes=3,
    coordinator_running=True,
    settings=ServiceSettings(window=2),
    actors=(ActorFacts(name="transfer-a"),),
)


@pytest.mark.parametrize(
    ("facts", "level", "said"),
    [
        (RUNNING, "ok", "window=2"),
        (update(RUNNING, coordinator_running=False, actors=()), "ok", "not running"),
        (update(RUNNING, coordinator_problem="the coordinator did not answer"), "problem", "did not answer"),
        (update(RUNNING, actors=(ActorFacts(name="transfer-a", problem="died"),)), "problem", "transfer-a died"),
        (ClusterFacts(address="auto", error="nothing found"), "warning", "nothing found"),
        (ClusterFacts(address="10.0.0.1:6379", error="refused"), "problem", "refused"),
    ],
)
def test_the_cluster(facts: ClusterFacts, level: Level, said: str) -> None:
    findings = judge.judge_cluster(facts)
    assert worst(findings) == level and said in " ".join(f.found for f in findings)


def test_every_finding_that_is_not_fine_says_what_to_do() -> None:
    silent = update(RUNNING, actors=(ActorFacts(name="transfer-a", problem="died"),))
    findings = [*judge.judge_cluster(silent), *judge.judge_memory(update(HOST, memory_available=0), 0)]
    assert all(f.advice for f in findings if f.level != "ok")


UCX_LOG = """
[1.2] [vm:1:0]   | dst intra-node cfg#1                                     |
[1.2] [vm:1:0]   | remote memory write by ucp_put* from host memory to host |
[1.2] [vm:1:0]   | 0..inf | zero-copy   | tcp/eth0                         |
[1.2] [vm:1:0]   | remote memory read by ucp_get*(multi) into host memory from host |
[1.2] [vm:1:0]   | Range  | Description |                  Config          |
[1.2] [vm:1:0]   | 0..inf | zero-copy   | cma/memory                       |
[1.2] [vm:1:0]   | active message by ucp_am_send* from host memory |
[1.2] [vm:1:0]   | 16516..inf | multi-frag copy-in | tcp/lo        |
"""


def test_the_path_of_reads_is_taken_from_the_log_of_ucx() -> None:
    assert read_path(UCX_LOG, "host") == "cma/memory"
    assert read_path(UCX_LOG, "cuda") == ""


@pytest.mark.parametrize(
    ("path", "transport"),
    [("cma/memory", "cma"), ("50% on rc_mlx5/mlx5_0:1 and 50% on rc_mlx5/mlx5_1:1", "rc_mlx5"), ("", "")],
)
def test_the_transport_of_a_path(path: str, transport: str) -> None:
    assert transport_of(path) == transport


def test_the_machine_is_read_from_its_files(tmp_path: Path) -> None:
    port = tmp_path / "sys/class/infiniband/mlx5_0/ports/1"
    port.mkdir(parents=True)
    (port / "state").write_text("4: ACTIVE\n")
    (port / "link_layer").write_text("Ethernet\n")
    (tmp_path / "proc/sys/kernel/yama").mkdir(parents=True)
    (tmp_path / "proc/sys/kernel/yama/ptrace_scope").write_text("1\n")
    (tmp_path / "proc/meminfo").write_text("MemTotal: 2000 kB\nMemAvailable: 1000 kB\n")
    pages = tmp_path / "sys/kernel/mm/transparent_hugepage"
    pages.mkdir(parents=True)
    (pages / "shmem_enabled").write_text("always within_size advise [never] deny force\n")
    facts = look.host_facts(tmp_path)
    assert facts.shared_huge_pages == "never"
    assert any("echo advise" in f.found for f in judge.judge_memory(update(facts, memory_available=8 << 30), 0))
    assert facts.rdma_devices == ("mlx5_0:1 Ethernet",) and facts.ptrace_scope == 1
    assert facts.memory_available == 1000 * 1024
    assert not look.has_gpu_driver(tmp_path)


def test_a_token_is_found_in_its_file_or_variable(tmp_path: Path) -> None:
    assert not look.has_token({}, tmp_path)
    assert look.has_token({"RAY_AUTH_TOKEN": "x"}, tmp_path)
    (tmp_path / ".ray").mkdir()
    (tmp_path / ".ray/auth_token").write_text("x")
    assert look.has_token({}, tmp_path)


def test_a_probe_that_cannot_run_says_how_it_ended() -> None:
    assert "ended with status 1" in run_probe("no_such_probe", timeout=30).error


def test_the_report_shows_each_finding_with_its_advice_and_the_count() -> None:
    report = Report(findings=(ok("a", "fine"), warning("b", "slow", "do this"), problem("c", "broken", "do that")))
    shown = drawn(render_report(report))
    assert "→ do this" in shown and "✗ problem" in shown and "1 problem, 1 warning" in shown
