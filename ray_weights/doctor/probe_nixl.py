"""Makes the agent that a transfer actor would make. Arguments: name of the backend."""

from __future__ import annotations

import importlib
import sys

from ray_weights.doctor.facts import NixlFacts
from ray_weights.doctor.isolated import answer
from ray_weights.errors import TransportError
from ray_weights.transports.nixl import NixlSettings, NixlTransport

_MODULES = ("nixl_cu12", "nixl_cu13", "nixl")


def main(backend: str) -> None:
    module, plugins, error = "", (), ""
    for name in _MODULES:
        try:
            bindings = importlib.import_module(f"{name}._bindings")
        except ImportError as e:
            error = error or f"{name}: {e}"
            continue
        module, error = name, ""
        plugins = tuple(sorted(bindings.nixlAgent("doctor-plugins", bindings.nixlAgentConfig()).getAvailPlugins()))
        break
    if module and backend in plugins:
        try:
            NixlTransport("doctor", NixlSettings(backend=backend)).close()
        except TransportError as e:
            error = str(e)
    answer(NixlFacts(module=module, plugins=plugins, backend=backend, error=error).model_dump_json())


if __name__ == "__main__":
    main(sys.argv[1])
