"""Draws a ClusterView."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text
from rich.tree import Tree

from ray_weights.cli import units
from ray_weights.cli.labels import label_of, member_labels
from ray_weights.cli.reading_tree import Reading, reading_trees
from ray_weights.schemas.keys import ShardKey
from ray_weights.schemas.status import CoordinatorStatus, ReplicaStatus, ShardStatus, TransferProgress, VersionStatus
from ray_weights.schemas.view import ClusterView

BAR_CELLS = 24
_STYLE = {
    "ready": "green",
    "receiving": "cyan",
    "loading": "yellow",
    "waiting": "dim",
    "quarantined": "bold red",
}
_Copy = tuple[str, ShardKey, int | None]


@dataclass(frozen=True, slots=True)
class _Scene:
    """What every line may need."""

    labels: dict[str, str]
    progress: dict[_Copy, TransferProgress]
    """By member, shard and version."""
    silent: dict[str, str]
    """Member -> why its actor did not answer."""


def render_status(view: ClusterView) -> RenderableType:
    """The whole screen of `status`."""
    parts: list[RenderableType] = []
    record = view.coordinator
    if record is None:
        parts.append(Text(view.coordinator_problem, style="bold red"))
        parts.append(_actors_only(view))
        return Group(*parts)
    parts.append(_headline(view, record))
    scene = _scene(view, record)
    if not record.shards:
        parts.append(Text("No weights are held or asked for.", style="dim"))
    parts += [_shard(s, scene) for s in record.shards]
    if record.members or view.actors:
        parts.append(_members(view, record, scene))
    return Group(*parts)


def _headline(view: ClusterView, record: CoordinatorStatus) -> Text:
    up = units.seconds(max(0.0, view.taken_at - record.started_at))
    members = units.counted(len(record.members), "transfer actor")
    return Text.assemble(
        ("coordinator", "bold"), f" up {up} · epoch {record.epoch} · {units.counted(record.calls, 'call')} · {members}"
    )


def _scene(view: ClusterView, record: CoordinatorStatus) -> _Scene:
    member_of = {m.actor_name: m.member for m in record.members}
    return _Scene(
        labels=member_labels(record.members),
        progress={
            (member_of.get(a.actor_name, a.actor_name), p.shard, p.version): p for a in view.actors for p in a.progress
        },
        silent={member_of.get(a.actor_name, a.actor_name): a.problem for a in view.actors if a.problem},
    )


def _shard(status: ShardStatus, scene: _Scene) -> Tree:
    tree = Tree(Text(str(status.shard), style="bold"))
    for version in status.versions:
        branch = tree.add(_version_line(version))
        for reading in reading_trees(version.replicas):
            _add(branch, reading, status.shard, version, None, scene)
    return tree


def _version_line(version: VersionStatus) -> Text:
    parts = [f"version {version.version}"]
    if version.seal is not None:
        parts.append(f"{units.nbytes(version.seal.nbytes)} in {units.counted(version.seal.chunks, 'chunk')}")
    parts.append(f"storage read {units.times(version.storage_reads)}")
    ready = sum(r.state == "ready" for r in version.replicas)
    parts.append(f"{ready} of {units.counted(len(version.replicas), 'replica')} ready")
    return Text(" · ".join(parts))


def _add(
    branch: Tree, reading: Reading, shard: ShardKey, version: VersionStatus, parent: str | None, scene: _Scene
) -> None:
    line = _replica_line(reading.replica, shard, version, parent, scene)
    below = branch.add(line)
    for reader in reading.readers:
        _add(below, reader, shard, version, reading.replica.member, scene)


def _replica_line(
    replica: ReplicaStatus, shard: ShardKey, version: VersionStatus, parent: str | None, scene: _Scene
) -> Text:
    said = scene.progress.get((replica.member, shard, version.version)) or scene.progress.get(
        (replica.member, shard, None)
    )
    text = Text.assemble(
        (label_of(replica.member, scene.labels, replica.node), "bold"),
        "  ",
        (replica.state, _STYLE[replica.state]),
        "  ",
    )
    text.append(" · ".join(_details(replica, version, parent, said, scene)))
    if replica.member in scene.silent:
        text.append(f"  its transfer actor {scene.silent[replica.member]}", style="red")
    return text


def _details(
    replica: ReplicaStatus,
    version: VersionStatus,
    parent: str | None,
    said: TransferProgress | None,
    scene: _Scene,
) -> Iterator[str]:
    if replica.state == "receiving" and said is not None:
        yield progress_text(said)
    elif replica.state == "receiving" and version.seal is not None:
        yield f"of {units.nbytes(version.seal.nbytes)}"
    elif replica.state == "loading":
        yield "from storage"
        if said is not None:
            yield units.seconds(said.seconds)
    elif replica.stats is not None:
        stats = replica.stats
        yield f"{units.nbytes(stats.nbytes)} in {units.seconds(stats.seconds)} at {units.rate(stats.rate)}"
        if stats.chunks_from_receivers:
            yield f"{units.counted(stats.chunks_from_receivers, 'chunk')} from replicas still receiving"
        if stats.read_again_nbytes:
            yield f"{units.nbytes(stats.read_again_nbytes)} read again"
    elif replica.from_storage:
        yield "from storage"
    others = [label_of(u, scene.labels) for u in replica.upstreams if u != parent]
    if others:
        yield f"{'also ' if parent is not None else ''}from {', '.join(others)}"
    if replica.reason and replica.stats is None and not replica.from_storage and replica.state != "receiving":
        yield replica.reason


def progress_text(said: TransferProgress) -> str:
    """Bar, percent, bytes, rate and seconds of one transfer."""
    if not said.nbytes:
        return f"{units.seconds(said.seconds)}, size not known yet"
    part = min(1.0, said.nbytes_verified / said.nbytes)
    full = int(part * BAR_CELLS)
    bar = "━" * full + "╌" * (BAR_CELLS - full)
    return (
        f"{bar} {part:4.0%} · {units.nbytes(said.nbytes_verified)} of {units.nbytes(said.nbytes)}"
        f" at {units.rate(said.rate)} · {units.seconds(said.seconds)}"
    )


def _members(view: ClusterView, record: CoordinatorStatus, scene: _Scene) -> Table:
    table = Table(title="transfer actors", title_justify="left", title_style="bold", box=None, pad_edge=False)
    for column in ("node and device", "pid", "shards", "memory", "read by", "actor", ""):
        table.add_column(column, justify="right" if column in ("pid", "shards", "memory", "read by") else "left")
    answers = {a.actor_name: a for a in view.actors}
    for m in record.members:
        said = answers.pop(m.actor_name, None)
        note = Text("" if said is not None else "gone", style="red")
        cells = ["?", "?", "?"]
        if said is not None and said.problem:
            note = Text(said.problem, style="red")
        elif said is not None:
            cells = [
                str(len(said.progress)),
                units.nbytes(sum(p.nbytes for p in said.progress)),
                str(sum(len(p.children) for p in said.progress)),
            ]
        table.add_row(scene.labels[m.member], str(m.pid), *cells, m.actor_name, note)
    for a in answers.values():
        note = Text(a.problem or "has not joined this coordinator yet", style="red" if a.problem else "yellow")
        table.add_row("?", "?", str(len(a.progress)), "?", "?", a.actor_name, note)
    return table


def _actors_only(view: ClusterView) -> RenderableType:
    tree = Tree(Text("transfer actors", style="bold"))
    for a in view.actors:
        branch = tree.add(Text(a.actor_name))
        if a.problem:
            branch.add(Text(a.problem, style="red"))
        for p in a.progress:
            branch.add(Text(f"{p.shard} v{p.version}: {p.state}, {progress_text(p)}"))
    return tree if view.actors else Text("No transfer actor runs either.", style="dim")
