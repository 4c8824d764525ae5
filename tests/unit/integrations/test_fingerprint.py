"""Fingerprints of local checkpoints."""

from __future__ import annotations

import shutil

import pytest
import torch
from safetensors.torch import save_file

from ray_weights.integrations.tensors.fingerprint import checkpoint_fingerprint


@pytest.fixture
def checkpoint(tmp_path):
    directory = tmp_path / "checkpoint"
    directory.mkdir()
    (directory / "config.json").write_text("{}")
    save_file({"a": torch.zeros(100, 100), "b": torch.zeros(10_000)}, directory / "model-1.safetensors")
    save_file({"c": torch.zeros(3)}, directory / "model-2.safetensors")
    return directory


def test_a_copy_elsewhere_has_the_same_fingerprint(checkpoint, tmp_path):
    copy = shutil.copytree(checkpoint, tmp_path / "copy")
    assert checkpoint_fingerprint(copy) == checkpoint_fingerprint(checkpoint)


def test_files_that_hold_no_weights_do_not_count(checkpoint):
    before = checkpoint_fingerprint(checkpoint)
    (checkpoint / "README.md").write_text("new")
    assert checkpoint_fingerprint(checkpoint) == before


def train_one_tensor(directory):
    b = torch.zeros(10_000)
    b[5_000] = 1.0
    save_file({"a": torch.zeros(100, 100), "b": b}, directory / "model-1.safetensors")


def change_the_config(directory):
    (directory / "config.json").write_text('{"rope_theta": 1}')


def rename_a_file(directory):
    (directory / "model-2.safetensors").rename(directory / "model-3.safetensors")


def change_a_small_tensor(directory):
    save_file({"c": torch.tensor([0.0, 0.0, 1.0])}, directory / "model-2.safetensors")


def add_a_file(directory):
    (directory / "extra.bin").write_bytes(b"x")


@pytest.mark.parametrize(
    "change", [train_one_tensor, change_the_config, rename_a_file, change_a_small_tensor, add_a_file]
)
def test_a_checkpoint_overwritten_in_place_has_another_fingerprint(checkpoint, change):
    before = checkpoint_fingerprint(checkpoint)
    change(checkpoint)
    assert checkpoint_fingerprint(checkpoint) != before


def test_a_file_without_headers_is_sampled(tmp_path):
    file = tmp_path / "pytorch_model.bin"
    file.write_bytes(bytes(1_000_000))
    before = checkpoint_fingerprint(tmp_path)
    file.write_bytes(bytes(500_000) + bytes([1]) * 500_000)
    assert checkpoint_fingerprint(tmp_path) != before


@pytest.mark.parametrize("content", [b"", b"short", b"\x00" * 64, b"\x10" + b"\x00" * 7 + b"{}" + b" " * 40])
def test_a_broken_safetensors_file_still_has_a_fingerprint(tmp_path, content):
    (tmp_path / "model.safetensors").write_bytes(content)
    assert checkpoint_fingerprint(tmp_path).startswith("sha256:")


def test_a_single_file_can_be_a_checkpoint(tmp_path):
    file = tmp_path / "model.gguf"
    file.write_bytes(b"GGUF")
    assert checkpoint_fingerprint(file).startswith("sha256:")
