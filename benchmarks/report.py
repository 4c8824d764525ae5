"""Tables of a run, for the terminal and for docs/performance.md."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from benchmarks import summary
from benchmarks.nodes import REPOSITORY
from benchmarks.plots import draw
from benchmarks.results import Results, Trial

PAGE = REPOSITORY / "docs" / "performance.md"


def newest() -> Path | None:
    """The results of the newest run."""
    return max((REPOSITORY / "results").glob("bench-*.json"), default=None)


def show(results: Results) -> None:
    print(tables(results))


def write_report(results: Results) -> None:
    """Replace the measured part of docs/performance.md, and the plots."""
    draw(results, REPOSITORY / "docs" / "img")
    put_between(PAGE, "bench", tables(results))
    print(f"{PAGE} is up to date with the run of {results.started}")


def put_between(page: Path, name: str, text: str) -> None:
    """Replace what stands between the marks of this name in a page."""
    begin, end = f"<!-- {name}: begin -->", f"<!-- {name}: end -->"
    before, _, rest = page.read_text().partition(begin)
    _, found, after = rest.partition(end)
    if not found:
        raise ValueError(f"{page} has no {begin} … {end} to write between")
    page.write_text(f"{before}{begin}\n{text}\n{end}{after}")


def tables(results: Results) -> str:
    """All of a run as Markdown."""
    parts = [_setting(results)]
    goals = summary.goals(results)
    if goals:
        rows = [(g.what, g.wanted, g.measured, "yes" if g.met else "**no**") for g in goals]
        parts.append("### Goals\n\n" + table(("case", "goal", "measured", "met"), rows))
    own = _cases([t for t in results.trials if not t.baseline and not t.case.startswith("pair")])
    if own:
        parts.append("### The service\n\n" + table(
            ("case", "repeats", "last", "mean", "origin sent, M", "CPU busy", "CPU s/GB of a receiver",
             "coordinator calls per receiver"),
            [_service_row(results, trials) for trials in own])
        )  # fmt: skip
    rivals = _cases([t for t in results.trials if t.baseline and not t.case.startswith("pair")])
    if rivals:
        parts.append(_rivals(results, rivals))
    threads = [(ts, shares) for ts in own if (shares := summary.thread_shares(ts))]
    if threads:
        names = list(dict.fromkeys(name for _, shares in threads for name in shares))
        parts.append("### Where the CPU of a receiver goes\n\n" + table(
            ("case", *(name or "threads that ended" for name in names)),
            [(ts[0].label, *(f"{shares.get(name, 0.0):.0%}" for name in names)) for ts, shares in threads
             if ts[0].case in ("lone", "once-7")])
        )  # fmt: skip
    pairs = _cases([t for t in results.trials if t.case.startswith("pair")])
    if pairs:
        parts.append("### One host, nothing shaped\n\n" + table(
            ("case", "repeats", "GB/s", "CPU busy"),
            [(ts[0].label, str(len(ts)), _show(summary.spread(t.nbytes / t.span / 1e9 for t in ts)), _busy(ts))
             for ts in pairs])
        )  # fmt: skip
    if results.missed:
        parts.append("Not measured:\n\n" + "\n".join(f"- {m.case}: {m.reason}" for m in results.missed))
    return "\n\n".join(parts)


def _setting(results: Results) -> str:
    m = results.machine
    versions = ", ".join(f"{name} {version}" for name, version in m.versions)
    lone = summary.lone_seconds(results)
    chunks = -(-results.nbytes // results.chunk_nbytes)
    return (
        f"Measured on {results.started[:10]} in one run of {results.seconds / 60:.0f} minutes"
        f"{' (--quick)' if results.quick else ''} on {m.cores} cores of {m.cpu}, {m.memory_gib:.0f} GiB, "
        f"Linux {m.kernel}, load average {m.load_before:.2f} before it; {versions}. "
        f"M = {results.nbytes / 2**20:.0f} MiB in {chunks} chunks of {results.chunk_nbytes / 1024:.0f} KiB, "
        f"window {results.window}, links of {results.link_bytes_per_second * 8e-6:.0f} Mbit/s in each direction, "
        f"MTU 9000. A lone receiver takes {lone:.2f} s: “last” and “mean” are in units of that. "
        "Numbers are medians over the repeats, (least–most) beside them."
    )


def _service_row(results: Results, trials: Sequence[Trial]) -> tuple[str, ...]:
    lone = summary.lone_seconds(results)
    return (
        trials[0].label,
        str(len(trials)),
        _show(summary.last(trials, lone)),
        _show(summary.means(trials, lone)),
        _show(summary.origin_sent(trials)),
        _busy(trials),
        _show(summary.cpu_per_gb(trials), 1),
        _show(summary.calls_per_receiver(trials), 1),
    )


def _rivals(results: Results, rivals: Sequence[Sequence[Trial]]) -> str:
    lone = summary.lone_seconds(results)
    most = max(ts[0].receivers for ts in rivals)
    own = summary.spread(t.span for t in results.of(f"once-{most}"))
    rows = []
    for trials in rivals:
        span = summary.spread(t.span for t in trials)
        factor = f"{span.middle / own.middle:.1f}×" if own is not None and span is not None else ""
        rows.append(
            (trials[0].label, str(len(trials)), _show(summary.last(trials, lone)), _show(summary.means(trials, lone)),
             _show(summary.origin_sent(trials)), _busy(trials), factor)
        )  # fmt: skip
    head = (
        "1 → " + str(most) + " at once",
        "repeats",
        "last",
        "mean",
        "origin sent, M",
        "CPU busy",
        "the service is faster by",
    )
    return "### Other ways over the same links\n\n" + table(head, rows)


def _cases(trials: Sequence[Trial]) -> list[list[Trial]]:
    """Trials by case, in the order of their first appearance."""
    grouped: dict[str, list[Trial]] = {}
    for t in trials:
        grouped.setdefault(t.case, []).append(t)
    return list(grouped.values())


def _busy(trials: Sequence[Trial]) -> str:
    found = summary.spread(100 * t.cpu_busy for t in trials)
    return found.show(0, " %") if found else ""


def _show(found: summary.Spread | None, digits: int = 2) -> str:
    return found.show(digits) if found is not None else ""


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Markdown."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in lines)
