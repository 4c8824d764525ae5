"""Ray-native distribution of model weights: from the replicas that have them to the replicas that need them."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ray_weights.api import Fetched, Published, explain, fetch, publish, status
    from ray_weights.integrations.vllm.attach import attach

__version__ = "0.1.0"
__all__ = ["Fetched", "Published", "attach", "explain", "fetch", "publish", "status"]

_HOMES = {name: "ray_weights.api" for name in __all__} | {"attach": "ray_weights.integrations.vllm.attach"}


def __getattr__(name: str) -> object:
    # On first use: importing this package must stay light, since vLLM does it in every process, before it forks.
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
