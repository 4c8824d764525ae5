"""The `ray-weights` command.

Exit codes: 0, it is as asked; 1, it is not (the reason is on stderr, or in what `doctor` prints); 2, wrong usage.
Ray and torch are imported only by the commands that need them.
"""

from __future__ import annotations

import contextlib
import time
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from ray_weights import __version__
from ray_weights.errors import RayWeightsError


class _Group(TyperGroup):
    """Our errors are told, not thrown."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except RayWeightsError as e:
            from ray_weights.cli.output import show_error

            show_error(e)
            raise typer.Exit(1) from None


app = typer.Typer(
    cls=_Group,
    help="Weights for vLLM replicas from the replicas that have them. Commands find the cluster by RAY_ADDRESS, or on "
    "this machine. Exit code 0: as asked; 1: not, with the reason on stderr; 2: wrong usage.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

Timeout = Annotated[float, typer.Option("--timeout", min=0.1, help="Seconds for all of it.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON (docs/cli.md) instead.")]
Key = Annotated[str, typer.Argument(help="Name of a model, its beginning or a part of it.")]


def _print_version(wanted: bool) -> None:
    if wanted:
        print(__version__)
        raise typer.Exit


@app.callback()
def _main(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Callback: options of the command as a whole."""


@app.command()
def up(
    window: Annotated[int | None, typer.Option(help="Chunk reads in flight per upstream.")] = None,
    chunk_nbytes: Annotated[int | None, typer.Option(help="Bytes of a chunk; by the shard's size otherwise.")] = None,
    stall_seconds: Annotated[float | None, typer.Option(help="An upstream without progress so long is left.")] = None,
    egress_rate: Annotated[
        float | None, typer.Option(help="Bytes per second that one transfer actor may send; 0: one flow fills it.")
    ] = None,
    receive_rate: Annotated[
        float | None, typer.Option(help="Bytes per second that one receiver reads at most; 0: no limit.")
    ] = None,
    gather_seconds: Annotated[
        float | None, typer.Option(help="How long receivers that come together are gathered.")
    ] = None,
    max_arenas: Annotated[int | None, typer.Option(help="Arenas in one transfer actor.")] = None,
    memory_reserve_nbytes: Annotated[int | None, typer.Option(help="Memory of a node that arenas leave free.")] = None,
    digest: Annotated[
        str | None, typer.Option(help="How chunks in host memory are checked: xxh3-128, or blake3-128 against forgery.")
    ] = None,
    verify_threads: Annotated[int | None, typer.Option(help="Threads that check chunks in one transfer actor.")] = None,
    progress_delay_us: Annotated[
        int | None, typer.Option(help="Sleep of NIXL's idle progress thread in microseconds; 0 spins on a core.")
    ] = None,
    nixl_backend: Annotated[str | None, typer.Option(help="NIXL plugin that moves the bytes.")] = None,
    label: Annotated[
        list[str] | None,
        typer.Option(help="Ray node label that says where a node stands; repeat it from the outermost inwards."),
    ] = None,
    timeout: Timeout = 60.0,
    as_json: Json = False,
) -> None:
    """Start the coordinator on the cluster, once. Works as `ray job submit -- ray-weights up`.

    What is not given comes from RAY_WEIGHTS_<NAME> variables, or has its default. Running it again is harmless; asking
    a running coordinator for other settings is an error.
    """
    from ray_weights.cli.output import show
    from ray_weights.cli.service import start
    from ray_weights.cli.service_view import render_started
    from ray_weights.cli.settings import merged_settings

    settings = merged_settings(
        {
            "window": window,
            "chunk_nbytes": chunk_nbytes,
            "stall_seconds": stall_seconds,
            "egress_rate": egress_rate,
            "receive_rate": receive_rate,
            "gather_seconds": gather_seconds,
            "max_arenas": max_arenas,
            "memory_reserve_nbytes": memory_reserve_nbytes,
            "digest": digest,
            "verify_threads": verify_threads,
            "progress_delay_us": progress_delay_us,
            "nixl_backend": nixl_backend,
            "labels": tuple((name, "") for name in label) if label else None,
        }
    )
    started = start(settings, timeout)
    show(started, render_started(started), as_json)


@app.command()
def down(timeout: Timeout = 30.0, as_json: Json = False) -> None:
    """End the coordinator and every transfer actor of this cluster, and free their memory."""
    from ray_weights.cli.output import show
    from ray_weights.cli.service import end
    from ray_weights.cli.service_view import render_ended

    ended = end(timeout)
    show(ended, render_ended(ended), as_json)


@app.command()
def status(
    watch: Annotated[bool, typer.Option("--watch", "-w", help="Show it again and again, until Ctrl-C.")] = False,
    interval: Annotated[float, typer.Option(min=0.1, help="Seconds between two looks of --watch.")] = 1.0,
    timeout: Timeout = 10.0,
    as_json: Json = False,
) -> None:
    """Show every key and version, who reads from whom, and how far they are. Exit code 1 without a coordinator."""
    from ray_weights import observe
    from ray_weights.actors.connect import connect
    from ray_weights.cli.output import show
    from ray_weights.cli.status_view import render_status

    if not watch:
        view = observe.status(timeout)
        show(view, render_status(view), as_json)
        if view.coordinator is None:
            raise typer.Exit(1)
        return
    with connect(time.monotonic() + timeout), contextlib.suppress(KeyboardInterrupt):
        _watch(interval, timeout, as_json)


def _watch(interval: float, timeout: float, as_json: bool) -> None:
    from rich.live import Live

    from ray_weights import observe
    from ray_weights.cli.output import console
    from ray_weights.cli.status_view import render_status

    if as_json:
        while True:
            print(observe.status(timeout).model_dump_json(), flush=True)
            time.sleep(interval)
    with Live(console=console(), auto_refresh=False, vertical_overflow="visible") as live:
        while True:
            live.update(render_status(observe.status(timeout)), refresh=True)
            time.sleep(interval)


@app.command()
def explain(key: Key, timeout: Timeout = 10.0, as_json: Json = False) -> None:
    """Tell why each replica got its weights where it did, and which fields keep keys of one model apart."""
    from ray_weights import observe
    from ray_weights.cli.explain_view import render_explanation
    from ray_weights.cli.output import show

    explanation = observe.explain(key, timeout)
    show(explanation, render_explanation(explanation), as_json)


@app.command()
def doctor(timeout: Timeout = 15.0, as_json: Json = False) -> None:
    """Look at NIXL, the network, memory, versions and the cluster, and say what to do. Starts nothing.

    Exit code 1 when there is a problem; warnings do not count. --timeout is for each probe.
    """
    from ray_weights.cli.doctor_view import render_report
    from ray_weights.cli.output import show
    from ray_weights.doctor.examine import examine

    report = examine(timeout)
    show(report, render_report(report), as_json)
    if report.count("problem"):
        raise typer.Exit(1)


@app.command()
def drop(
    key: Key,
    version: Annotated[int | None, typer.Option(min=0, help="Only this version.")] = None,
    timeout: Timeout = 30.0,
    as_json: Json = False,
) -> None:
    """Free every complete copy of one model. Engines that have mapped theirs go on; receivers are left alone.

    Exit code 1 when a complete copy could not be freed.
    """
    from ray_weights.cli.output import show
    from ray_weights.cli.service import drop as drop_copies
    from ray_weights.cli.service_view import render_dropped

    result = drop_copies(key, version, timeout)
    show(result, render_dropped(result), as_json)
    if result.failed:
        raise typer.Exit(1)


@app.command(
    add_help_option=False,
    context_settings={"allow_extra_args": True, "ignore_unknown_options": True},
    help="Run a broadcast in the simulator: no cluster, no bytes. See `ray-weights simulate --help`.",
)
def simulate(ctx: typer.Context) -> None:
    """Hand everything on, so that the simulator is imported only when it is asked for."""
    from ray_weights.cli.simulation import run

    run(ctx.args)
