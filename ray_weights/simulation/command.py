"""The command line of the simulator: `ray-weights simulate`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from ray_weights.simulation.engine import run
from ray_weights.simulation.scenario import Arrival, Result, Scenario, Strategy

STRATEGIES: tuple[Strategy, ...] = ("auto", "chain", "trees", "tree", "complete-copies", "star")
ARRIVALS: tuple[Arrival, ...] = ("waiting", "at-once", "staggered", "poisson")
SHOWN: dict[str, Strategy] = {s: s for s in STRATEGIES}


def simulate(
    receivers: Annotated[int, typer.Option(min=1, help="Replicas that want the weights.")] = 31,
    sources: Annotated[int, typer.Option(min=1, help="Replicas that have them from the start.")] = 1,
    chunks: Annotated[int, typer.Option(min=1, help="Chunks of the shard.")] = 256,
    gbytes: Annotated[float, typer.Option(min=0.001, help="Size of the shard in GB.")] = 17.5,
    gbits: Annotated[float, typer.Option("--gbit-per-s", min=0.001, help="One direction of one NIC, Gbit/s.")] = 400.0,
    flow_gbits: Annotated[
        float, typer.Option("--flow-gbit-per-s", help="The most that one flow carries; 0 = as much as the NIC.")
    ] = 0.0,
    latency_us: Annotated[float, typer.Option(help="From a READ to its first byte, microseconds.")] = 20.0,
    per_node: Annotated[int, typer.Option(min=1, help="Receivers that share a node and its NIC.")] = 1,
    strategy: Annotated[str, typer.Option(help=f"{', '.join(STRATEGIES)}; or all, to compare.")] = "auto",
    arrival: Annotated[str, typer.Option(help=", ".join(ARRIVALS))] = "waiting",
    spread: Annotated[
        float, typer.Option(help="Over how many times a lone receiver's time staggered and poisson arrivals come.")
    ] = 1.0,
    stragglers: Annotated[int, typer.Option(help="Receivers whose NIC has a quarter of the speed.")] = 0,
    fail: Annotated[int, typer.Option(help="Receivers that die in mid-transfer.")] = 0,
    seed: Annotated[int, typer.Option(help="For arrivals, stragglers and failures.")] = 0,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")] = False,
    plot: Annotated[Path | None, typer.Option(help="Write times over 1 to RECEIVERS receivers to this PNG.")] = None,
) -> None:
    """Simulate a broadcast with the real planner and receivers: how long would N replicas wait?"""
    if strategy != "all" and strategy not in SHOWN:
        raise typer.BadParameter(f"{strategy!r} is none of {', '.join(STRATEGIES)}, all", param_hint="--strategy")
    if arrival not in ARRIVALS:
        raise typer.BadParameter(f"{arrival!r} is none of {', '.join(ARRIVALS)}", param_hint="--arrival")
    strategies = STRATEGIES if strategy == "all" else (SHOWN[strategy],)
    scenario = Scenario(
        receivers=receivers,
        sources=sources,
        chunks=chunks,
        nbytes=gbytes * 1e9,
        nic_rate=gbits / 8 * 1e9,
        flow_rate=flow_gbits / 8 * 1e9,
        latency=latency_us * 1e-6,
        members_per_node=per_node,
        arrival=next(a for a in ARRIVALS if a == arrival),
        spread=spread,
        stragglers=stragglers,
        failures=fail,
        seed=seed,
    )
    results = [run(scenario.model_copy(update={"strategy": s})) for s in strategies]
    if as_json:
        typer.echo(json.dumps([{**r.model_dump(), "ratio": r.ratio} for r in results], indent=2))
    else:
        _print(results)
    if plot is not None:
        from ray_weights.simulation.plot import plot_scale  # needs matplotlib, which is not always installed

        plot_scale(scenario, strategies, plot)
        typer.echo(f"wrote {plot}")


def _print(results: list[Result]) -> None:
    first = results[0]
    console = Console()
    console.print(
        f"{first.scenario.receivers} receivers of {first.scenario.nbytes / 1e9:g} GB in {first.scenario.chunks} chunks;"
        f" a lone one takes {first.lone:.3f} s, the wire {first.wire:.3f} s, all at once at least {first.bound:.3f} s,"
        f" all from storage {first.storage:.1f} s"
    )
    table = Table("strategy", "last", "x lone", "mean", "p50", "p99", "origin sent", "calls each", "calls/s", "tiers")
    for r in results:
        tiers = {k: v / 1e9 for k, v in r.tiers.model_dump().items() if v}
        table.add_row(
            r.scenario.strategy,
            f"{r.makespan:.3f} s",
            f"{r.ratio:.2f}",
            f"{r.mean:.3f} s",
            f"{r.p50:.3f} s",
            f"{r.p99:.3f} s",
            f"{r.origin_nbytes / r.scenario.nbytes:.2f} x",
            f"{r.calls_per_receiver:.1f}",
            f"{r.calls_per_second:.0f}",
            ", ".join(f"{k} {v:,.0f} GB" for k, v in tiers.items()),
        )
    console.print(table)
