"""The command itself: what it accepts, and how it says no."""

from __future__ import annotations

import subprocess
import sys

import pytest
from typer.testing import CliRunner

from ray_weights.cli import app, units
from ray_weights.cli.answers import Ended
from ray_weights.cli.service import copies, setting_conflicts
from ray_weights.cli.service_view import render_ended
from ray_weights.cli.settings import merged_settings
from ray_weights.config import ServiceSettings
from ray_weights.errors import ConfigError, UnknownKey
from tests.unit.cli.views import COMPLETE, ORIGIN, RECEIVING, drawn, record


def test_help_needs_neither_ray_nor_torch() -> None:
    program = (
        "import sys, ray_weights.cli\n"
        "bad = {'ray', 'torch', 'numpy', 'vllm', 'nixl_cu12'} & set(sys.modules)\n"
        "sys.exit(f'imported {bad}' if bad else 0)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr


def test_help_lists_every_command() -> None:
    shown = CliRunner().invoke(app, ["--help"]).stdout
    assert all(name in shown for name in ("up", "down", "status", "explain", "doctor", "drop", "simulate"))


def test_an_error_of_ours_is_one_line_on_stderr_and_exit_code_1(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:1")
    result = CliRunner().invoke(app, ["status", "--timeout", "2"])
    assert result.exit_code == 1 and result.stdout == ""
    assert result.stderr.startswith("CoordinatorUnavailable: no Ray cluster can be reached")
    assert result.stderr.count("\n") == 1


@pytest.mark.parametrize(
    "arguments", [["explain"], ["status", "--timeout", "0"], ["nonsense"], ["up", "--window", "x"]]
)
def test_wrong_usage_is_exit_code_2(arguments: list[str]) -> None:
    assert CliRunner().invoke(app, arguments).exit_code == 2


def test_a_setting_that_cannot_be_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    result = CliRunner().invoke(app, ["up", "--window", "0"])
    assert result.exit_code == 1 and "--window=0" in result.stderr


def test_options_win_over_the_environment_and_only_what_was_given_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_WEIGHTS_WINDOW", "5")
    monkeypatch.setenv("RAY_WEIGHTS_MAX_ARENAS", "9")
    settings = merged_settings({"window": 4, "stall_seconds": None})
    assert (settings.window, settings.max_arenas) == (4, 9)
    assert settings.model_fields_set == {"window", "max_arenas"}
    with pytest.raises(ConfigError, match="--window=0"):
        merged_settings({"window": 0})


def test_a_running_coordinator_conflicts_only_with_settings_that_were_asked_for() -> None:
    running = ServiceSettings(window=2)
    assert setting_conflicts(ServiceSettings(), running) == ()
    assert setting_conflicts(ServiceSettings(window=2), running) == ()
    assert setting_conflicts(ServiceSettings(window=3), running) == ("window is 2, not 3",)


def test_drop_takes_complete_copies_and_leaves_receivers_alone() -> None:
    complete, busy = copies("tiny", None, record(ORIGIN, COMPLETE, RECEIVING))
    assert [c.member for c in complete] == ["a", "b"]
    assert [(c.member, c.problem) for c in busy] == [("c", "left alone: it is receiving")]


def test_drop_of_an_unknown_version_names_those_there_are() -> None:
    with pytest.raises(UnknownKey, match="no version 2; there are 1"):
        copies("tiny", 2, record(ORIGIN))


def test_down_says_what_it_ended() -> None:
    shown = drawn(render_ended(Ended(coordinator=True, actors=("transfer-a",), shards=2, nbytes=3_000_000)))
    assert "1 transfer actor that held 2 shards, 3.0 MB" in shown and "transfer-a" in shown
    assert "Nothing" in drawn(render_ended(Ended(coordinator=False, actors=(), shards=0, nbytes=0)))


@pytest.mark.parametrize(
    ("value", "shown"),
    [(0.04, "0.0 s"), (59.9, "59.9 s"), (192, "3 min 12 s"), (7500, "2 h 5 min"), (360_000, "4 d 4 h")],
)
def test_seconds(value: float, shown: str) -> None:
    assert units.seconds(value) == shown


@pytest.mark.parametrize(("value", "shown"), [(0, "0 B"), (999, "999 B"), (1500, "1.5 kB"), (3e12, "3.0 TB")])
def test_bytes(value: float, shown: str) -> None:
    assert units.nbytes(value) == shown
