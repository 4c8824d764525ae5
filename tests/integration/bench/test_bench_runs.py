"""`python -m benchmarks` as a user runs it: small, interrupted, and where it cannot run."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from benchmarks.checks import what_is_missing
from benchmarks.network import PREFIX, Network
from benchmarks.results import Results
from tests.integration.faults.record import Row, keep

REPOSITORY = Path(__file__).resolve().parents[3]
COMMAND = (sys.executable, "-m", "benchmarks", "--quick")
needs_namespaces = pytest.mark.skipif(
    os.geteuid() != 0 or shutil.which("ip") is None or bool(what_is_missing()), reason="needs root and iproute2"
)


def namespaces_of(pid: int) -> list[str]:
    return [p.name for p in Path("/run/netns").glob(f"{PREFIX}{pid}-*")]


@pytest.mark.netns
@needs_namespaces
def test_links_are_shaped_in_both_directions_and_their_bytes_are_counted() -> None:
    names = ("a", "b")
    with Network(names, os.getpid()) as network:
        a, b = network.hosts
        network.shape(a, 5e6)
        before = network.counters()
        seconds = send(a.inside(), b.inside(), b.address, 2_000_000)
        back = send(b.inside(), a.inside(), a.address, 2_000_000)
        after = network.counters()
    assert seconds > 0.3 and back > 0.3, "2 MB at 5 MB/s take 0.4 s, less what the shaper lets through at first"
    assert after["a"].sent - before["a"].sent > 2_000_000
    assert after["a"].received - before["a"].received > 2_000_000
    assert namespaces_of(os.getpid()) == []


@pytest.mark.netns
@pytest.mark.slow
@pytest.mark.timeout(600)
@needs_namespaces
def test_a_small_run_measures_bytes_that_crossed_the_links_and_leaves_nothing_behind(
    tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    output = tmp_path / "results.json"
    command = [*COMMAND, "--only", "lone,once-3,killed,cut", "--output", str(output)]
    with subprocess.Popen(command, cwd=REPOSITORY, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as run:
        said, _ = run.communicate(timeout=550)
    assert run.returncode == 0, said
    results = Results.model_validate_json(output.read_text())
    assert not results.missed, said
    assert {t.case for t in results.trials} == {"lone", "once-3", "killed", "cut"}
    for trial in results.of("once-3"):
        assert all(got >= trial.nbytes for got in trial.received), "bytes went past the links"
        assert trial.origin_sent < 1.2 * trial.nbytes, "the origin sent more than one copy"
    (cut,) = results.of("cut")
    assert len(cut.seconds) == 2, "both that read from behind the cut link have everything, and verified"
    facts = dict(cut.facts)
    assert facts["read_again"] <= results.window * results.chunk_nbytes, "more than one window read twice"
    assert facts["wrong_bytes"] == dict(results.of("killed")[0].facts)["wrong_bytes"] == 0
    (calm,) = results.of("once-3")
    keep(
        Row(
            fault="an upstream's link is cut",
            how="packets of its network namespace are lost both ways from half-way on, until those behind it are done",
            happened=f"they move after {facts['moved_after']:.1f} s; the one cut off goes on when its link is back",
            added_seconds=round(cut.span - calm.span, 1),
            read_again_nbytes=int(facts["read_again"]),
            wrong_bytes=int(facts["wrong_bytes"]),
            test=request.node.nodeid,
        ),
        request.config,
    )
    assert namespaces_of(run.pid) == []


@pytest.mark.netns
@pytest.mark.slow
@needs_namespaces
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_run_takes_its_hosts_away(number: signal.Signals) -> None:
    with subprocess.Popen([*COMMAND, "--only", "lone"], cwd=REPOSITORY, stdout=subprocess.PIPE) as run:
        deadline = time.monotonic() + 60
        while len(namespaces_of(run.pid)) < 3 and time.monotonic() < deadline:
            time.sleep(0.05)
        run.send_signal(number)
        run.communicate(timeout=120)
    assert run.returncode == 130
    assert namespaces_of(run.pid) == []


def test_it_says_what_is_missing_and_does_nothing() -> None:
    environment = {**os.environ, "PATH": "/nonexistent"}
    done = subprocess.run(COMMAND, cwd=REPOSITORY, env=environment, capture_output=True, text=True, timeout=60)
    assert done.returncode == 2
    assert "cannot run here" in done.stderr
    assert "iproute2" in done.stderr or "root" in done.stderr


def send(sender: list[str], receiver: list[str], address: str, nbytes: int) -> float:
    """Send bytes over TCP from one host to another; returns the seconds that it took."""
    listen = (
        "import socket\n"
        f"s = socket.create_server(('{address}', 5000)); print('up', flush=True); c, _ = s.accept()\n"
        "n = 0\nwhile d := c.recv(1 << 16): n += len(d)\nprint(n)"
    )
    say = f"import socket\ns = socket.create_connection(('{address}', 5000)); s.sendall(bytes({nbytes})); s.close()"
    with subprocess.Popen([*receiver, sys.executable, "-c", listen], stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout is not None and server.stdout.readline() == "up\n"
        began = time.monotonic()
        subprocess.run([*sender, sys.executable, "-c", say], check=True, timeout=60)
        assert int(server.stdout.readline()) == nbytes
    return time.monotonic() - began
