"""`python -m benchmarks`: build the hosts, measure, write results/, tables and plots, and leave nothing behind."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

from benchmarks import checks
from benchmarks.network import remove_leftovers
from benchmarks.nodes import REPOSITORY
from benchmarks.plan import MIB, Plan, quick_plan
from benchmarks.report import newest, show, write_report
from benchmarks.results import Results
from benchmarks.run import run, take_signals


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
    take_signals()
    results = run(_plan(arguments))
    if results.interrupted:
        print("interrupted: everything that was started is gone again", file=sys.stderr)
        if not results.trials:
            return 130
    path = arguments.output or REPOSITORY / "results" / f"bench-{results.started.replace(':', '')}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(results.model_dump_json(indent=1) + "\n")
    show(results)
    print(f"written to {path}; `python -m benchmarks --report {path}` puts it into docs/performance.md")
    return 130 if results.interrupted else 0


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
    parser.add_argument("--mib", type=int, help="size of the weights (80)")
    parser.add_argument("--rate", type=float, help="of each link and direction, in MB/s (15)")
    parser.add_argument("--chunk-kib", type=int, help="size of a chunk (what the service chooses)")
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


if __name__ == "__main__":
    sys.exit(main())
