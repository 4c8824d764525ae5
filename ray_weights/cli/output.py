"""Answers go to stdout, everything else to stderr."""

from __future__ import annotations

import sys

from pydantic import BaseModel
from rich.console import Console, RenderableType

_WIDTH_IN_A_FILE = 160


def console() -> Console:
    """Stdout. In a pipe or a log, where there is no width to fit into, lines stay whole."""
    if sys.stdout.isatty():
        return Console(highlight=False)
    return Console(highlight=False, width=_WIDTH_IN_A_FILE)


def show(answer: BaseModel, drawn: RenderableType, as_json: bool) -> None:
    """Print an answer: drawn for people, or as JSON."""
    if as_json:
        print(answer.model_dump_json(indent=2))
    else:
        console().print(drawn)


def show_error(error: Exception) -> None:
    Console(stderr=True, highlight=False, soft_wrap=True).print(f"{type(error).__name__}: {error}", markup=False)
