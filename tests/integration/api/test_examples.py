"""The example scripts, as a user runs them."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

EXAMPLES = Path(__file__).resolve().parents[3] / "examples"


@pytest.fixture
def example(one_node):
    def run(script: str, *arguments: str) -> str:
        command = [sys.executable, str(EXAMPLES / script), *arguments]
        environment = {**os.environ, "RAY_ADDRESS": one_node.address}
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, check=False)
        assert done.returncode == 0, done.stderr[-3000:]
        return done.stdout

    return run


def test_a_module_is_published_in_versions_and_fetched(example):
    assert "version 2: 33.6 MB" in example("publish_module.py", "--versions", "2")
    assert "fetched example/policy version 2: 33.6 MB" in example("fetch.py", "example/policy", "--into-module")


def test_a_checkpoint_is_published_and_fetched(example, tmp_path):
    save_file({"x": torch.ones(1000, 1000)}, tmp_path / "model.safetensors")
    published = example("publish_safetensors.py", str(tmp_path), "--key", "checkpoint")
    fetched = example("fetch.py", "checkpoint")
    assert "4.0 MB" in published
    assert published.splitlines()[-1] == fetched.splitlines()[-1]
