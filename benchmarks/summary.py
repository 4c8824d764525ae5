"""Ratios and spreads out of trials: every number of the report is computed here."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from statistics import mean, median

from benchmarks.results import Results, Trial, add_up


@dataclass(frozen=True, slots=True)
class Spread:
    """Of the repeats of one case."""

    middle: float
    least: float
    most: float

    def show(self, digits: int = 2, unit: str = "") -> str:
        if self.most - self.least < 0.5 * 10**-digits:
            return f"{self.middle:.{digits}f}{unit}"
        return f"{self.middle:.{digits}f}{unit} ({self.least:.{digits}f}–{self.most:.{digits}f})"


@dataclass(frozen=True, slots=True)
class Goal:
    what: str
    wanted: str
    measured: str
    met: bool


def spread(values: Iterable[float]) -> Spread | None:
    """Median, least and most; None of nothing."""
    found = list(values)
    return Spread(median(found), min(found), max(found)) if found else None


def lone_seconds(results: Results) -> float:
    """What everything is divided by: a lone receiver of the same run, as its process sees it."""
    found = spread(t.span for t in results.of("lone"))
    return found.middle if found else float("nan")


def line_share(results: Results) -> Spread | None:
    """Rate of a lone transfer against the rate that its link is shaped to."""
    return spread(t.nbytes / s / results.link_bytes_per_second for t in results.of("lone") for s in t.transfer_seconds)


def last(trials: Iterable[Trial], lone: float) -> Spread | None:
    """The last receiver, from the first one's asking, in lone transfers."""
    return spread(t.span / lone for t in trials)


def means(trials: Iterable[Trial], lone: float) -> Spread | None:
    """The receivers' mean, each from its own asking."""
    return spread(mean(t.seconds) / lone for t in trials)


def worst(trials: Iterable[Trial], lone: float) -> Spread | None:
    """The slowest receiver, from its own asking."""
    return spread(max(t.seconds) / lone for t in trials)


def origin_sent(trials: Iterable[Trial]) -> Spread | None:
    """What left the origin's link, in units of the weights' size."""
    return spread(t.origin_sent / t.nbytes for t in trials)


def cpu_per_gb(trials: Iterable[Trial]) -> Spread | None:
    """CPU seconds of a receiver's transfer actor per GB that it received: the median receiver of each trial."""
    costs = []
    for t in trials:
        by_host = dict(t.cpu_by_host)
        receiving = [by_host[h] for i, h in enumerate(by_host) if 0 < i <= t.receivers]
        if receiving:
            costs.append(median(receiving) / (t.nbytes / 1e9))
    return spread(costs)


def thread_shares(trials: Iterable[Trial], least: float = 0.02) -> dict[str, float]:
    """Share of a receiver's CPU seconds by the name of the thread, largest first; small ones together as "others"."""
    sums = dict(add_up(t.cpu_by_thread for t in trials))
    whole = sum(sums.values())
    if whole <= 0:
        return {}
    shares = {n: s / whole for n, s in sorted(sums.items(), key=lambda x: -x[1]) if s >= least * whole}
    return {**shares, "others": max(0.0, 1 - sum(shares.values()))}


def calls_per_receiver(trials: Iterable[Trial]) -> Spread | None:
    return spread(t.coordinator_calls / t.receivers for t in trials)


def fact(trials: Iterable[Trial], name: str) -> Spread | None:
    return spread(dict(t.facts)[name] for t in trials if name in dict(t.facts))


def goals(results: Results) -> list[Goal]:
    """The rows of the goals table that this machine can measure."""
    lone, rows = lone_seconds(results), list[Goal]()

    def add(what: str, wanted: str, found: Spread | None, met: bool, digits: int = 2) -> None:
        if found is not None:
            rows.append(Goal(what, wanted, found.show(digits), met))

    share = line_share(results)
    add("one receiver against line rate", "≥ 0.93", share, share is not None and share.middle >= 0.93)
    most = max((t.receivers for t in results.trials if t.case.startswith("once-")), default=0)
    once = results.of(f"once-{most}")
    found = last(once, lone)
    add(f"1 → {most} at once, the last one done", "≤ 1.20", found, found is not None and found.middle <= 1.20)
    late = [t for t in results.trials if t.case.startswith("staggered")]
    found = means(late, lone)
    add("staggered joiners, mean", "≤ 1.08", found, found is not None and found.middle <= 1.08)
    found = worst(late, lone)
    add("staggered joiners, worst of each repeat", "≤ 1.15", found, found is not None and found.middle <= 1.15)
    found = origin_sent(once)
    add(
        f"bytes that leave the origin, 1 → {most} at once, in M",
        "≤ 1.1",
        found,
        found is not None and found.middle <= 1.1,
    )
    found = _lost_by_kill(results)
    add("a parent killed in mid-transfer: chunk times lost beyond detection", "≤ 2", found,
        found is not None and found.middle <= 2, 1)  # fmt: skip
    again = fact(results.of("killed"), "read_again")
    if again is not None:
        chunks = spread(dict(t.facts)["read_again"] / results.chunk_nbytes for t in results.of("killed"))
        add(
            "… chunks read twice",
            f"≤ {results.window}",
            chunks,
            chunks is not None and chunks.most <= results.window,
            0,
        )
    found = means(results.of("straggler"), lone)
    add("a quarter-speed member, the others' mean", "≤ 1.3", found, found is not None and found.middle <= 1.3)
    found = pair_share(results)
    add(
        "same host, nothing shaped, against a bare NIXL read", "≥ 0.9", found, found is not None and found.middle >= 0.9
    )
    return rows


def pair_share(results: Results) -> Spread | None:
    """Rate of the service against the faster way to read with bare NIXL, both as medians of the run."""
    bare = [spread(t.span for t in results.of(case)) for case in ("pair-bare", "pair-bare-chunks")]
    best = min((s.middle for s in bare if s is not None), default=None)
    return spread(best / t.span for t in results.of("pair")) if best is not None else None


def _lost_by_kill(results: Results) -> Spread | None:
    """What the last of the chain of 3 lost against an undisturbed one, less the detection, in chunk times."""
    calm = spread(t.span for t in results.of("once-3"))
    if calm is None or not results.of("killed"):
        return None
    chunk_seconds = results.chunk_nbytes / results.link_bytes_per_second
    return spread((t.span - calm.middle - dict(t.facts)["moved_after"]) / chunk_seconds for t in results.of("killed"))
