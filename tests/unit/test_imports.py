"""Imports point one way, and core needs neither Ray nor torch nor NIXL."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import ray_weights

ROOT = Path(ray_weights.__file__).parent
LAYERS = (
    ("errors", "schemas"),
    ("core",),
    ("simulation",),
    ("memory", "transports", "config", "metrics", "key_search", "progress", "threads"),
    ("actors",),
    ("integrations", "observe", "doctor"),
    ("api", "cli"),
)
"""From the bottom up. A module may import its own layer and those below; simulation is imported by cli
only."""
RANK = {name: rank for rank, names in enumerate(LAYERS) for name in names}
FILES = sorted(p.relative_to(ROOT) for p in ROOT.rglob("*.py"))


def part_of(path: Path) -> str:
    return path.parts[0].removesuffix(".py")


def imported(path: Path) -> set[str]:
    """Top-level parts of this package that a file imports, wherever in it."""
    found: set[str] = set()
    for node in ast.walk(ast.parse((ROOT / path).read_text())):
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: a relative import"
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        for name in names:
            if name.startswith("ray_weights."):
                found.add(name.split(".")[1])
    return found


@pytest.mark.parametrize("path", FILES, ids=str)
def test_imports_point_one_way(path: Path) -> None:
    part = part_of(path)
    if part not in RANK:
        return
    for other in imported(path) & set(RANK):
        assert RANK[other] <= RANK[part], f"{path} imports {other}, which lies above it"
        if other == "simulation":
            assert part in ("simulation", "cli", "api"), f"{path} imports the simulator"


@pytest.mark.parametrize("package", ["ray_weights", "ray_weights.core.registry", "ray_weights.core.receiver"])
def test_core_needs_no_ray_torch_or_nixl(package: str) -> None:
    program = (
        f"import sys, {package}\n"
        "bad = {'ray', 'torch', 'nixl', 'nixl_cu12', 'vllm', 'numpy'} & set(sys.modules)\n"
        "sys.exit(f'imported {bad}' if bad else 0)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr


def test_core_reads_no_clock_no_environment_and_draws_no_lots() -> None:
    for path in FILES:
        if part_of(path) == "core":
            tree = ast.parse((ROOT / path).read_text())
            modules = {a.name for n in ast.walk(tree) if isinstance(n, ast.Import) for a in n.names}
            modules |= {n.module or "" for n in ast.walk(tree) if isinstance(n, ast.ImportFrom)}
            assert not modules & {"time", "os", "random", "logging", "asyncio", "threading"}, path
