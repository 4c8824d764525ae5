"""Curves over the number of receivers, as PNG. `python -m ray_weights.simulation.plot DIR` draws those of
docs/scale.md."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Iterable
from pathlib import Path

from ray_weights.simulation.engine import run
from ray_weights.simulation.scenario import Scenario, Strategy

_SIMULATED_UP_TO: dict[Strategy, int] = {"star": 16, "chain": 64, "tree": 16, "complete-copies": 16}
"""Beyond, the exact formula of a baseline or of a chain is drawn: nothing is learned from simulating it."""


def last_one(scenario: Scenario) -> float:
    """Seconds of the last receiver."""
    strategy, n, s, k = scenario.strategy, scenario.receivers, scenario.sources, scenario.chunks
    if n <= _SIMULATED_UP_TO.get(strategy, 1 << 30):
        return run(scenario).makespan
    one = run(scenario.model_copy(update={"receivers": 1, "sources": 1})).makespan
    if strategy == "star":
        return one * n / s
    if strategy == "complete-copies":
        return one * math.ceil(math.log2(1 + n / s))
    if strategy == "tree":
        return one * (2 + 2 * math.log2(n) / k)
    per_hop = (run(scenario.model_copy(update={"receivers": 64})).makespan - one) / 63
    return one + per_hop * (n / s - 1)


def counts_up_to(most: int) -> list[int]:
    counts = [4**i for i in range(7) if 4**i < most]
    return [*counts, most]


def plot_scale(scenario: Scenario, strategies: Iterable[Strategy], path: Path) -> dict[str, list[tuple[int, float]]]:
    """Draw the last receiver's time over the number of receivers; returns (receivers, seconds) by
    strategy."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    counts = counts_up_to(scenario.receivers)
    figure, axes = pyplot.subplots(figsize=(7, 4.5))
    curves: dict[str, list[tuple[int, float]]] = {}
    for strategy in strategies:
        points = [(n, last_one(scenario.model_copy(update={"receivers": n, "strategy": strategy}))) for n in counts]
        curves[strategy] = points
        axes.plot(*zip(*points, strict=True), marker="o", markersize=3, label=strategy)
    storage = [(n, scenario.model_copy(update={"receivers": n}).storage_seconds) for n in counts]
    curves["storage"] = storage
    axes.plot(*zip(*storage, strict=True), color="black", linestyle=":", label="all read storage")
    axes.set(
        xscale="log",
        yscale="log",
        xlabel="receivers",
        ylabel="seconds until the last has the weights",
        title=f"{scenario.nbytes / 1e9:g} GB at {scenario.nic_rate * 8 / 1e9:g} Gbit/s, {scenario.sources} source(s)",
    )
    axes.grid(True, which="both", alpha=0.2)
    axes.legend(fontsize=8)
    figure.tight_layout()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)
    pyplot.close(figure)
    return curves


def main(directory: Path) -> None:
    """The curves of docs/scale.md, and the numbers behind them."""
    every: tuple[Strategy, ...] = ("auto", "chain", "tree", "complete-copies", "star")
    rdma = Scenario(receivers=4096)
    slow = Scenario(receivers=4096, nbytes=16e9, nic_rate=1.25e9, latency=1e-4, page_seconds=2e-4, digest_rate=6e9)
    numbers = {
        name: plot_scale(scenario, every, directory / f"{name}.png")
        for name, scenario in (("scale-400g", rdma), ("scale-10g", slow))
    }
    (directory / "scale.json").write_text(json.dumps(numbers, indent=1))


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "docs/img"))
