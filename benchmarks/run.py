"""One run: hosts, nodes and the measuring processes, from nothing to nothing."""

from __future__ import annotations

import datetime
import signal
import subprocess
import sys
import time
from contextlib import ExitStack

from benchmarks.machine import describe_machine
from benchmarks.network import Host, Network
from benchmarks.nodes import PORT, REPOSITORY, RayNodes
from benchmarks.pair import two_nodes
from benchmarks.plan import MIB, Plan
from benchmarks.results import Missed, Results, Trial
from ray_weights.core.manifest import choose_chunk_nbytes

_OVER_THE_LINKS = {"UCX_TLS": "tcp,self", "UCX_NET_DEVICES": "eth0"}
"""All hosts are one machine, where UCX would copy from memory to memory, past the links."""


def run(plan: Plan) -> Results:
    """Measure all that `plan` wants, or until interrupted. Whatever ends it, nothing that it made stays."""
    started, began = datetime.datetime.now(datetime.UTC), time.monotonic()
    machine = describe_machine()
    lines: list[str] = []
    interrupted = False
    try:
        _measure(plan, lines)
    except KeyboardInterrupt:
        interrupted = True  # what was measured until then is worth having
    trials = [Trial.model_validate_json(line[6:]) for line in lines if line.startswith("trial ")]
    missed = [Missed.model_validate_json(line[7:]) for line in lines if line.startswith("missed ")]
    return Results(
        started=started.strftime("%Y-%m-%dT%H:%M:%SZ"),
        seconds=time.monotonic() - began,
        quick=plan.quick,
        machine=machine,
        link_bytes_per_second=plan.link_rate,
        nbytes=plan.nbytes,
        chunk_nbytes=choose_chunk_nbytes(plan.nbytes, wanted=plan.chunk_nbytes)[0],
        window=plan.window,
        trials=tuple(trials),
        missed=tuple(missed),
        interrupted=interrupted,
    )


def _measure(plan: Plan, lines: list[str]) -> None:
    with ExitStack() as stack:
        # A second signal must not cut the cleaning short.
        stack.callback(ignore_signals, False)
        network = stack.enter_context(Network(plan.hosts, plan.owner_pid))
        swarm, head, pair = network.hosts[:-2], network.hosts[-2], network.hosts[-1]
        stack.callback(ignore_signals, True)
        for host in swarm:
            network.shape(host, plan.link_rate)
        if plan.wants("pair"):
            with RayNodes({}, 100 * MIB) as nodes:
                for node in two_nodes(pair):
                    nodes.start(node, two_nodes(pair)[0])
                _drive("pair", plan, pair, two_nodes(pair)[0].address, nodes, lines)
        if plan.cases != ("pair",):
            with RayNodes(_OVER_THE_LINKS, 2 * plan.nbytes + 100 * MIB) as nodes:
                for host in (head, *swarm):
                    nodes.start(host, head)
                _drive("swarm", plan, head, head.address, nodes, lines)


def _drive(part: str, plan: Plan, host: Host, address: str, nodes: RayNodes, lines: list[str]) -> None:
    """Run the measuring process in a host's namespace, and collect the lines that it writes."""
    command = [sys.executable, "-m", "benchmarks.drive", part, plan.model_dump_json(), f"{address}:{PORT}"]
    environment = {**nodes.environment, "RAY_ADDRESS": f"{address}:{PORT}"}
    with subprocess.Popen(
        host.inside(*command), env=environment, cwd=REPOSITORY, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
        text=True, start_new_session=True,
    ) as driver:  # fmt: skip
        try:
            assert driver.stdout is not None
            for line in driver.stdout:
                lines.append(line.strip())
                _tell(lines[-1])
        except BaseException:
            driver.kill()
            raise
    if driver.returncode != 0:
        lines.append(
            "missed " + Missed(case=part, reason=f"the driver ended with {driver.returncode}").model_dump_json()
        )


def _tell(line: str) -> None:
    if line.startswith("trial "):
        t = Trial.model_validate_json(line[6:])
        mean = sum(t.seconds) / len(t.seconds)
        print(f"{t.label} #{t.repeat}: last {t.span:.3f} s, mean {mean:.3f} s, "
              f"origin sent {t.origin_sent / t.nbytes:.2f} M, CPU {t.cpu_busy:.0%} busy"
              + "".join(f", {k} {v:.3f}" for k, v in t.facts), flush=True)  # fmt: skip
    elif line:
        print(line, flush=True)


def take_signals() -> None:
    """From now on, what ends a process interrupts it instead, so that it can clean up."""
    ignore_signals(False)


def ignore_signals(ignore: bool) -> None:
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN if ignore else _interrupt)


def _interrupt(number: int, frame: object) -> None:
    raise KeyboardInterrupt
