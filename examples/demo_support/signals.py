"""How this process reacts to being told to end."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def handlers() -> dict[signal.Signals, Any]:
    """Python's handlers of the signals that end a process; none outside the main thread, which alone may set them."""
    if threading.current_thread() is not threading.main_thread():
        return {}
    return {number: signal.getsignal(number) for number in ENDING}


def install(reactions: Mapping[signal.Signals, Any]) -> None:
    for number, handler in reactions.items():
        signal.signal(number, handler)


@contextmanager
def held_back() -> Iterator[None]:
    before = handlers()
    install(dict.fromkeys(before, signal.SIG_IGN))
    try:
        yield
    finally:
        install(before)
