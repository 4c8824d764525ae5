"""Unit tests run without a cluster: provably, since ray.init raises."""

from __future__ import annotations

import sys

import pytest


@pytest.fixture(autouse=True)
def no_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: object, **kwargs: object) -> None:
        raise AssertionError("a unit test must not start or join a Ray cluster")

    if "ray" in sys.modules:
        monkeypatch.setattr(sys.modules["ray"], "init", refuse)
    else:
        monkeypatch.setattr("ray.init", refuse)
