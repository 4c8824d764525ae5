"""Whether a Ray cluster answers at an address: asked first, because ray.init() has no deadline of its own.

Where nothing listens, ray.init() (2.60) retries for more than ten minutes, and it drops the reason of a refused token.
"""

from __future__ import annotations

import queue
import socket
import threading
import time

from ray._private.authentication.authentication_token_setup import maybe_enable_token_auth_if_token_available
from ray._private.services import canonicalize_bootstrap_address
from ray._raylet import GcsClient  # type: ignore[attr-defined]

from ray_weights.errors import CoordinatorUnavailable


def check_reachable(address: str, deadline: float) -> None:
    """Raise CoordinatorUnavailable when no cluster answers where ray.init(address) would look for one.

    Where Ray itself says at once what is wrong ("auto" that finds nothing, or a `ray://` address), nothing is checked.

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
    if found is None or not port.isdigit():
        return
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=_left(deadline)).close()
    except OSError as e:
        raise CoordinatorUnavailable(f"no Ray cluster can be reached: nothing answers at {found} ({e})") from e
    _greet(found, deadline)


def _greet(address: str, deadline: float) -> None:
    """Connect as ray.init() does, once. In a thread: it cannot be interrupted."""
    answers: queue.SimpleQueue[Exception | None] = queue.SimpleQueue()

    def connect() -> None:
        try:
            GcsClient(address=address)
        except Exception as e:  # whatever it is, it is the answer
            answers.put(e)
        else:
            answers.put(None)

    maybe_enable_token_auth_if_token_available(warn_if_disabled=False)  # as ray.init() does before it connects
    threading.Thread(target=connect, name="greet-gcs", daemon=True).start()
    try:
        refusal = answers.get(timeout=_left(deadline))
    except queue.Empty:
        raise CoordinatorUnavailable(
            f"no Ray cluster can be reached: {address} accepts connections but does not answer in time"
        ) from None
    if refusal is not None:
        raise CoordinatorUnavailable(
            f"no Ray cluster can be reached: {address} does not let us in ({refusal})"
        ) from refusal


def _left(deadline: float) -> float:
    return max(0.1, deadline - time.monotonic())
