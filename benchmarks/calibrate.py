"""The simulator beside the benchmark: what it says of the shaped cases, without having seen them.

`python -m benchmarks.calibrate [RESULTS.json]` writes the table into docs/scale.md.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

from benchmarks import summary
from benchmarks.network import BURST_NBYTES
from benchmarks.nodes import REPOSITORY
from benchmarks.report import newest, put_between, table
from benchmarks.results import Results
from ray_weights.core.manifest import chunk_count
from ray_weights.simulation.engine import run
from ray_weights.simulation.scenario import Scenario

_WAY_SECONDS = 0.005
"""A message between two processes of this machine, the event loops at both ends included."""


@dataclass(frozen=True, slots=True)
class Comparison:
    label: str
    measured: float
    """The last receiver's time (for a straggler: the others' mean), in lone transfers of the same run."""
    simulated: float

    @property
    def error(self) -> float:
        return self.simulated / self.measured - 1


def scenario_of(case: str, results: Results) -> Scenario | None:
    """The case as the simulator knows it; None where it knows no such thing."""
    queue_seconds = 2 * BURST_NBYTES / results.link_bytes_per_second
    common = Scenario(
        receivers=1, chunks=chunk_count(results.nbytes, results.chunk_nbytes), nbytes=results.nbytes,
        window=results.window, nic_rate=results.link_bytes_per_second,
        # A request waits behind the data that the same link carries the other way round the ring.
        latency=queue_seconds, page_seconds=queue_seconds, connect_seconds=4 * _WAY_SECONDS, digest_rate=10e9,
        coordinator_seconds=_WAY_SECONDS, coordinator_calls_per_second=1000, arrival="at-once",
    )  # fmt: skip
    most = max((t.receivers for t in results.trials if t.case.startswith("once-")), default=1)
    changes: dict[str, object]
    match case.partition("-"):
        case "once", _, number:
            changes = {"receivers": int(number)}
        case "staggered", _, spread:
            changes = {"receivers": most, "arrival": "staggered", "spread": float(spread)}
        case "sources", _, number:
            changes = {"receivers": most + 1 - int(number), "sources": int(number)}
        case "straggler", _, _:
            changes = {"receivers": most, "stragglers": 1, "straggler_first": True}
        case _:
            return None
    return Scenario.model_validate({**common.model_dump(), **changes})


def compare(results: Results) -> list[Comparison]:
    """Every case of a run that the simulator knows."""
    lone, found = summary.lone_seconds(results), []
    for case in dict.fromkeys(t.case for t in results.trials):
        scenario = scenario_of(case, results)
        if scenario is None:
            continue
        trials, simulated = results.of(case), run(scenario)
        measured, seconds = summary.last(trials, lone), simulated.makespan
        if case == "straggler":
            measured, seconds = summary.means(trials, lone), simulated.others_mean
        elif case.startswith("staggered"):
            measured, seconds = summary.worst(trials, lone), simulated.worst
        assert measured is not None
        found.append(Comparison(trials[0].label, measured.middle, seconds / simulated.lone))
    return found


def main() -> int:
    path = Path(sys.argv[1]) if len(sys.argv) > 1 else newest()
    if path is None:
        print("there are no results: `make bench` makes them", file=sys.stderr)
        return 1
    results = Results.model_validate_json(path.read_text())
    cells = [(c.label, f"{c.measured:.3f}", f"{c.simulated:.3f}", f"{c.error:+.1%}") for c in compare(results)]
    written = table(("case", "measured", "simulated", "difference"), cells)
    print(written)
    put_between(REPOSITORY / "docs" / "scale.md", "calibration", written)
    return 0


if __name__ == "__main__":
    sys.exit(main())
