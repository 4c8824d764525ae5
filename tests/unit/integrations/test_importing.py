"""Importing is light: vLLM does it in every process, before it forks."""

from __future__ import annotations

import subprocess
import sys

import pytest

IN_NEW_PROCESS = """
import sys
{code}
print(*sorted({{m.partition(".")[0] for m in sys.modules}} & {{"ray", "torch", "nixl", "nixl_cu12", "vllm"}}))
"""


def heavy_modules_after(code: str) -> str:
    command = [sys.executable, "-c", IN_NEW_PROCESS.format(code=code)]
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=120).stdout.split("\n")[-2]


@pytest.mark.parametrize(
    ("code", "heavy"),
    [
        ("import ray_weights", ""),
        ("import ray_weights.integrations.vllm.plugin", ""),
        ("import ray_weights.integrations.vllm.loader", "torch vllm"),
    ],
)
def test_importing_brings_in_no_more_than_it_must(code, heavy):
    assert heavy_modules_after(code) == heavy


def test_the_public_names_are_there():
    import ray_weights

    assert all(callable(getattr(ray_weights, name)) for name in ray_weights.__all__)
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = ray_weights.nothing
