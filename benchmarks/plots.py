"""Plots of a run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from benchmarks import summary
from benchmarks.results import Results, Trial

_BLUE, _GREY = "#2b6cb0", "#a0aec0"


def draw(results: Results, directory: Path) -> None:
    """Write bench-cases.png and bench-baselines.png."""
    import matplotlib

    matplotlib.use("agg")
    import matplotlib.pyplot as plt

    directory.mkdir(parents=True, exist_ok=True)
    lone = summary.lone_seconds(results)
    own = [t for t in results.trials if not t.baseline and not t.case.startswith("pair")]
    _bars(
        plt,
        own,
        lone,
        directory / "bench-cases.png",
        "Slowest receiver, from its own asking, against a lone one",
        worst=True,
    )
    most = max((t.receivers for t in results.trials if t.case.startswith("once-")), default=0)
    ways = [t for t in results.trials if t.case == f"once-{most}"]
    ways += [t for t in results.trials if t.baseline and not t.case.startswith("pair")]
    _bars(
        plt, ways, lone, directory / "bench-baselines.png", f"1 → {most} at once: the last one done, in lone transfers"
    )


def _bars(plt: Any, trials: list[Trial], lone: float, path: Path, title: str, *, worst: bool = False) -> None:
    """One bar per case, the median; one dot per repeat."""
    labels = list(dict.fromkeys(t.label for t in trials))
    if not labels:
        return
    figure, axes = plt.subplots(figsize=(8.5, 0.42 * len(labels) + 1.1), layout="constrained")
    for y, label in enumerate(labels):
        chosen = [t for t in trials if t.label == label]
        found = summary.worst(chosen, lone) if worst else summary.last(chosen, lone)
        assert found is not None
        axes.barh(y, found.middle, color=_GREY if chosen[0].baseline else _BLUE, height=0.6)
        dots = [(max(t.seconds) if worst else t.span) / lone for t in chosen]
        axes.plot(dots, [y] * len(dots), ".", color="black", markersize=4)
        axes.annotate(f"{found.middle:.2f}", (found.most, y), xytext=(6, 0), textcoords="offset points", va="center")
    axes.axvline(1.0, color="black", linewidth=0.8, linestyle=":")
    axes.set_yticks(range(len(labels)), labels)
    axes.invert_yaxis()
    axes.margins(x=0.12)
    axes.set_title(title, fontsize=10)
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=130)
    plt.close(figure)
