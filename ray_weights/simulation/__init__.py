"""A flow-level simulation of broadcasts that drives the real registry, planner and receivers."""

from __future__ import annotations

from ray_weights.simulation.engine import run
from ray_weights.simulation.scenario import Result, Scenario, Strategy

__all__ = ["Result", "Scenario", "Strategy", "run"]
