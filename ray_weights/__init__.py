"""Ray-native distribution of model weights: from the replicas that have them to the replicas that need them."""

from __future__ import annotations

__version__ = "0.1.0"
