"""Connects this process to a cluster as a Ray driver, and lets go of it without a trace: another may follow."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from demo_support.signals import handlers, install


@contextmanager
def connected(address: str, *, node_address: str, env: Mapping[str, str]) -> Iterator[None]:
    """Joins the node at node_address. The environment, from which Ray takes its token, is put back at the end."""
    import ray
    from ray.serve import context as serve_context

    environment = dict(os.environ)
    reactions = handlers()
    os.environ.update(env)
    try:
        _read_token_again()
        ray.init(address, _node_ip_address=node_address, logging_level="ERROR", log_to_driver=False)
        # Ray's core aborts the process at SIGTERM, with a stack trace; Python's own way runs `finally` blocks.
        install(reactions)
        yield
    finally:
        serve_context._set_global_client(None)  # it would go on asking this cluster's controller
        ray.shutdown()
        os.environ.clear()
        os.environ.update(environment)
        _read_token_again()


def _read_token_again() -> None:
    """Ray reads mode and token once per process, and this process may have had another cluster before."""
    from ray._raylet import AuthenticationTokenLoader, Config

    Config.initialize("")
    AuthenticationTokenLoader.instance().reset_cache()
