"""`python -m ray_weights.cli`: the same as `ray-weights`."""

from ray_weights.cli import app

app(prog_name="ray-weights")
