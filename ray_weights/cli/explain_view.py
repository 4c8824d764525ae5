"""Draws an Explanation."""

from __future__ import annotations

import re
from datetime import datetime

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text
from rich.tree import Tree

from ray_weights.cli import units
from ray_weights.schemas.status import StoryLine
from ray_weights.schemas.view import Explanation, ReplicaStory, ShardExplanation


def render_explanation(explanation: Explanation) -> RenderableType:
    """The whole output of `explain`."""
    parts: list[RenderableType] = [_shard(s) for s in explanation.shards]
    if explanation.differences:
        tree = Tree(Text("Keys of one model that differ share nothing", style="bold"))
        for d in explanation.differences:
            branch = tree.add(Text(f"{d.first}  and  {d.second}"))
            for part in d.difference.split("; "):
                branch.add(Text(part, style="yellow"))
        parts.append(tree)
    return Group(*parts)


def _shard(shard: ShardExplanation) -> Tree:
    tree = Tree(Text(str(shard.shard), style="bold"))
    lines = [line for r in shard.replicas for line in r.lines]
    start = min((line.at for line in lines), default=0.0)
    if lines:
        tree.add(Text(f"0.000 s is {datetime.fromtimestamp(start):%Y-%m-%d %H:%M:%S}", style="dim"))
    for v in shard.versions:
        tree.add(Text(f"version {v.version}: storage read {units.times(v.storage_reads)}"))
    for replica in shard.replicas:
        branch = tree.add(_headline(replica))
        if replica.lines:
            branch.add(_story(replica.lines, start))
    return tree


def _headline(replica: ReplicaStory) -> Text:
    version = "" if replica.version is None else f" v{replica.version}"
    text = Text.assemble((f"{replica.node} [{replica.member}]", "bold"), version, "  ")
    now = replica.status
    if now is None:
        return text.append("no longer there", style="dim")
    text.append(now.state, style="green" if now.state == "ready" else "yellow")
    if now.reason:
        text.append(f": {_short(now.reason)}")
    return text


def _story(lines: tuple[StoryLine, ...], start: float) -> Table:
    table = Table.grid(padding=(0, 2))
    table.add_column(justify="right", no_wrap=True, style="dim")
    table.add_column()
    for line in lines:
        table.add_row(f"{line.at - start:.3f} s", _short(line.what))
    return table


def _short(text: str) -> str:
    """Ray's node ids are 56 digits long; the first eight tell them apart, and are what member names begin with."""
    return re.sub(r"\b([0-9a-f]{8})[0-9a-f]{48}\b", r"\1", text)
