"""Where the Ray clusters of the tests write."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest


@contextmanager
def ray_directory(environment: pytest.MonkeyPatch) -> Iterator[Path]:
    """A directory for one cluster, gone at the end.

    Ray also writes the address of the newest cluster into its default directory, which need not exist: with RAY_TMPDIR
    that is in here, too, and a cluster that the user runs beside the tests stays the one that is found by default.
    """
    directory = Path(tempfile.mkdtemp(prefix="rw-", dir="/tmp"))  # short, because it becomes part of socket paths
    (directory / "ray").mkdir()
    environment.setenv("RAY_TMPDIR", str(directory))
    try:
        yield directory
    finally:
        shutil.rmtree(directory, ignore_errors=True)
