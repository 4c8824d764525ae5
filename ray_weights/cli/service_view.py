"""Says what `up`, `down` and `drop` did."""

from __future__ import annotations

from rich.console import Group, RenderableType
from rich.text import Text

from ray_weights.cli import units
from ray_weights.cli.answers import DropResult, Ended, Started


def render_started(started: Started) -> RenderableType:
    """Where the coordinator runs, and the settings that are not at their defaults."""
    did = "The coordinator runs already" if started.already_running else "Started the coordinator"
    fields = type(started.settings).model_fields
    changed = [
        f"{name}={getattr(started.settings, name)}"
        for name, field in fields.items()
        if getattr(started.settings, name) != field.get_default(call_default_factory=True)
    ]
    return Text(
        f"{did} in the cluster at {started.address} (epoch {started.epoch}).\n"
        f"Settings: {', '.join(changed) or 'all at their defaults'}."
    )


def render_ended(ended: Ended) -> RenderableType:
    """What was ended and freed."""
    if not ended.coordinator and not ended.actors:
        return Text("Nothing was running.")
    lines = [Text("Ended the coordinator." if ended.coordinator else "No coordinator was running.")]
    if ended.actors:
        held = f"{units.counted(ended.shards, 'shard')}, {units.nbytes(ended.nbytes)}"
        lines.append(Text(f"Ended {units.counted(len(ended.actors), 'transfer actor')} that held {held}:"))
        lines += [Text(f"  {name}") for name in ended.actors]
        lines.append(Text("Engines that run keep the weights that they have mapped.", style="dim"))
    return Group(*lines)


def render_dropped(result: DropResult) -> RenderableType:
    """Each copy that was freed, and each that was not with the reason."""
    lines = [
        Text(f"Dropped {c.shard} v{c.version} on {c.node}: {units.nbytes(c.nbytes)}, freed once nobody reads it")
        for c in result.dropped
    ]
    lines += [
        Text(f"Kept {c.shard} v{c.version} on {c.node}: {c.problem}", style="yellow")
        for c in (*result.failed, *result.busy)
    ]
    return Group(*(lines or [Text("Nobody has a copy of it.")]))
