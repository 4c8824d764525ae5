"""Python's garbage collector, kept out of the way of a process that answers many."""

from __future__ import annotations

import gc

_EVERY = 10_000


def collect_seldom() -> None:
    """Look through all objects only once in a long while.

    With the records of ten thousand receivers such a look stops everything for 40 ms. What dies young is collected as
    before.
    """
    young, middle, _ = gc.get_threshold()
    gc.set_threshold(young, middle, _EVERY)
