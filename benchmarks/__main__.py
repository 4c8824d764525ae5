"""`python -m benchmarks`: build the hosts, measure, write results/, tables and plots, and leave nothing behind."""

from __future__ import annotations

import argparse
import datetime
import os
import signal
import subprocess
import sys
import time
from contextlib import ExitStack
from pathlib import Path

from benchmarks import checks
from benchmarks.machine import describe_machine
from benchmarks.network import Host, Network, remove_leftovers
from benchmarks.nodes import PORT, REPOSITORY, RayNodes
from benchmarks.pair import two_nodes
from benchmarks.plan import MIB, Plan, quick_plan
from benchmarks.report import newest, show, write_report
from benchmarks.results import Missed, Results, Trial
from ray_weights.core.manifest import choose_chunk_nbytes

_OVER_THE_LINKS = {"UCX_TLS": "tcp,self", "UCX_NET_DEVICES": "eth0"}
"""All hosts are one machine, where UCX would copy from memory to memory, past the links."""
_MOST_SECONDS = 3600.0


def main() -> int:
    arguments = _arguments()
    if arguments.report:
        write_report(Results.model_validate_json(arguments.report.read_text()))
        return 0
    if reason := checks.what_is_missing():
        print(f"The benchmark cannot run here: {reason}", file=sys.stderr)
        return 2
    for name in remove_leftovers():
        print(f"removed {name}, left over by a run that was killed", file=sys.stderr)
    signal.signal(signal.SIGTERM, _interrupt)
    signal.signal(signal.SIGHUP, _interrupt)
    try:
        results = run(_plan(arguments))
    except KeyboardInterrupt:
        print("interrupted: everything that was started is gone again", file=sys.stderr)
        return 130
    path = arguments.output or REPOSITORY / "results" / f"bench-{results.started.replace(':', '')}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(results.model_dump_json(indent=1) + "\n")
    show(results)
    print(f"written to {path}; `python -m benchmarks --report {path}` puts it into docs/performance.md")
    return 0


def run(plan: Plan) -> Results:
    started, began = datetime.datetime.now(datetime.UTC), time.monotonic()
    machine = describe_machine()
    lines: list[str] = []
    with ExitStack() as stack:
        # A second signal must not cut the cleaning short.
        stack.callback(_ignore_signals, False)
        network = stack.enter_context(Network(plan.hosts, plan.owner_pid))
        swarm, head, pair = network.hosts[:-2], network.hosts[-2], network.hosts[-1]
        stack.callback(_ignore_signals, True)
        for host in swarm:
            network.shape(host, plan.link_rate)
        if _any(plan, "pair"):
            with RayNodes({}, 100 * MIB) as nodes:
                for node in two_nodes(pair):
                    nodes.start(node, two_nodes(pair)[0])
                lines += _drive("pair", plan, pair, two_nodes(pair)[0].address, nodes)
        if _any(
            plan,
            "lone",
            "once",
            "staggered",
            "sources",
            "straggler",
            "killed",
            "star",
            "copies",
            "store",
            "rdt",
            "gloo",
        ):
            with RayNodes(_OVER_THE_LINKS, 2 * plan.nbytes + 100 * MIB) as nodes:
                for host in (head, *swarm):
                    nodes.start(host, head)
                lines += _drive("swarm", plan, head, head.address, nodes)
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
    )


def _drive(part: str, plan: Plan, host: Host, address: str, nodes: RayNodes) -> list[str]:
    """Run the measuring process in a host's namespace; returns what it has measured."""
    command = [sys.executable, "-m", "benchmarks.drive", part, plan.model_dump_json(), f"{address}:{PORT}"]
    environment = {**nodes.environment, "RAY_ADDRESS": f"{address}:{PORT}"}
    lines: list[str] = []
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
    return lines


def _tell(line: str) -> None:
    if line.startswith("trial "):
        t = Trial.model_validate_json(line[6:])
        mean = sum(t.seconds) / len(t.seconds)
        print(f"{t.label} #{t.repeat}: last {t.span:.3f} s, mean {mean:.3f} s, "
              f"origin sent {t.origin_sent / t.nbytes:.2f} M, CPU {t.cpu_busy:.0%} busy"
              + "".join(f", {k} {v:.3f}" for k, v in t.facts), flush=True)  # fmt: skip
    elif line:
        print(line, flush=True)


def _any(plan: Plan, *cases: str) -> bool:
    return any(plan.wants(c) or any(w.startswith(c) for w in plan.cases) for c in cases)


def _plan(arguments: argparse.Namespace) -> Plan:
    cases = tuple(arguments.only.split(",")) if arguments.only else ()
    plan = quick_plan(os.getpid(), cases) if arguments.quick else Plan(owner_pid=os.getpid(), cases=cases)
    chosen = {
        "receivers": arguments.receivers, "repeats": arguments.repeats, "window": arguments.window,
        "nbytes": arguments.mib and arguments.mib * MIB, "link_rate": arguments.rate and arguments.rate * 1e6,
        "chunk_nbytes": arguments.chunk_kib and arguments.chunk_kib * 1024,
    }  # fmt: skip
    return plan.model_copy(update={k: v for k, v in chosen.items() if v})


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="4 small hosts, everything once: to see that it works")
    parser.add_argument(
        "--only", default="", help="cases to measure, by the beginnings of their names: lone,once-7,pair"
    )
    parser.add_argument("--receivers", type=int, help="hosts beside the origin (7)")
    parser.add_argument("--repeats", type=int, help="of each case (3)")
    parser.add_argument("--mib", type=int, help="size of the weights (96)")
    parser.add_argument("--rate", type=float, help="of each link and direction, in MB/s (18)")
    parser.add_argument("--chunk-kib", type=int, help="size of a chunk (chosen by the size of the weights)")
    parser.add_argument("--window", type=int, help="reads in flight (3)")
    parser.add_argument("--output", type=Path, help="where to write the results (results/bench-<time>.json)")
    parser.add_argument(
        "--report",
        type=Path,
        nargs="?",
        const=newest(),
        metavar="JSON",
        help="only rewrite docs/performance.md and its plots from these results (the newest)",
    )
    return parser.parse_args()


def _interrupt(number: int, frame: object) -> None:
    raise KeyboardInterrupt


def _ignore_signals(ignore: bool) -> None:
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(
            number,
            signal.SIG_IGN if ignore else (signal.default_int_handler if number == signal.SIGINT else _interrupt),
        )


if __name__ == "__main__":
    sys.exit(main())
