"""Probes that may hang or crash run in processes of their own, each with a deadline."""

from __future__ import annotations

import signal
import subprocess
import sys
from dataclasses import dataclass

RESULT = "RAY_WEIGHTS_PROBE "
"""Begins the one line of output that is the answer: libraries print what they like around it."""


@dataclass(frozen=True, slots=True)
class Answer:
    result: str
    """JSON; "" when there is none."""
    log: str
    """Everything that was printed."""
    error: str


def run_probe(module: str, *arguments: str, timeout: float, stdin: int | None = None) -> Answer:
    """Run `python -m ray_weights.doctor.<module>` and return the JSON that it answers with."""
    command = [sys.executable, "-m", f"ray_weights.doctor.{module}", *arguments]
    try:
        done = subprocess.run(
            command,
            stdin=subprocess.DEVNULL if stdin is None else stdin,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            timeout=timeout,
            text=True,
            errors="replace",
        )
    except subprocess.TimeoutExpired as e:
        printed = e.stdout if isinstance(e.stdout, str) else (e.stdout or b"").decode(errors="replace")
        return Answer("", printed, f"no answer within {timeout:.0f} s")
    result = next((line for line in reversed(done.stdout.splitlines()) if line.startswith(RESULT)), "")
    if result:
        return Answer(result.removeprefix(RESULT), done.stdout, "")
    return Answer("", done.stdout, f"the probe {_how_it_ended(done.returncode)}: {_last_line(done.stdout)}")


def answer(json: str) -> None:
    """Called in the probe's process."""
    print(f"\n{RESULT}{json}", flush=True)


def _how_it_ended(code: int) -> str:
    if code < 0:
        return f"was ended by {signal.Signals(-code).name}"
    return f"ended with status {code}"


def _last_line(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1][:300] if lines else "no output"
