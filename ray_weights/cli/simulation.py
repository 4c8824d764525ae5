"""Runs the simulator's command."""

from __future__ import annotations

import importlib
from collections.abc import Sequence

import typer

from ray_weights.errors import RayWeightsError

_MODULE = "ray_weights.simulation.command"


def run(arguments: Sequence[str]) -> None:
    """Parse the arguments as the options of simulate() and call it."""
    try:
        command = importlib.import_module(_MODULE)
    except ModuleNotFoundError as e:
        if e.name and e.name.startswith("ray_weights."):
            raise RayWeightsError("this installation has no simulator") from e
        raise
    simulator = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
    simulator.command()(command.simulate)
    simulator(list(arguments), prog_name="ray-weights simulate")
