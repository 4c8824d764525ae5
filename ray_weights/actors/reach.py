"""Whether anything listens at a cluster's address: asked first, because ray.init() has no deadline of its own.

Given an address where nothing answers, ray.init() (2.60) retries for more than ten minutes.
"""

from __future__ import annotations

import socket
import time

from ray._private.services import canonicalize_bootstrap_address

from ray_weights.errors import CoordinatorUnavailable

_LONGEST_WAIT = 10.0
"""A listener on the same network answers in far less."""


def check_reachable(address: str, deadline: float) -> None:
    """Raise CoordinatorUnavailable when the address that ray.init(address) would use does not accept connections.

    Where Ray itself has to say what is wrong ("auto" finds nothing, or a `ray://` address), nothing is checked.

    Args:
        address: as for ray.init(), "auto" included.
        deadline: of time.monotonic().
    """
    if "://" in address:
        return
    try:
        found = canonicalize_bootstrap_address(address)
    except (ConnectionError, ValueError, OSError):
        return
    host, _, port = (found or "").rpartition(":")
    if not port.isdigit():
        return
    left = max(0.1, min(_LONGEST_WAIT, deadline - time.monotonic()))
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=left).close()
    except OSError as e:
        raise CoordinatorUnavailable(f"no Ray cluster can be reached: nothing answers at {found} ({e})") from e
