"""Who a receiver reads from: shortest chain first, or two interleaved trees for a large burst.

Decisions are functions that return (choice, reason); the registry carries them out. See Hoplite (SIGCOMM'21)
for the chains and NCCL's double binary trees for the stripes.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass

from ray_weights.core.swarm import Swarm, Vertex

_SLACK = 1e-6
_HALF = 0.5


@dataclass(frozen=True, slots=True)
class Place:
    """Where a member runs."""

    node: str
    labels: tuple[tuple[str, str], ...] = ()
    """From outermost to innermost, for example (("rack", "r1"),)."""
    name: str = ""
    """What people call the node; its id where there is none."""


@dataclass(frozen=True, slots=True)
class PlannerOptions:
    """What a person may tune; the defaults suit one flow that fills a NIC."""

    egress_rate: float = 0.0
    """Bytes per second that a member may send; 0 = one flow fills it."""
    max_slots: int = 4
    stripe_threshold: int = 8
    """Receivers per complete source in one burst from which two trees beat a chain."""
    far_penalty: int = 2
    """Hops that a parent in the same rack may be deeper than one elsewhere and still be chosen."""
    slow_ratio: float = 0.4
    """A member whose measured rate is below this share of the median gets no children while others can take
    them."""


@dataclass(frozen=True, slots=True)
class World:
    """What the planner knows beside the graph."""

    place: Callable[[str], Place]
    rate: Callable[[str], float]
    """Measured bytes per second of a member's last transfer; 0 when unknown."""
    median_rate: float = 0.0


@dataclass(frozen=True, slots=True)
class Placement:
    """Upstreams for one receiver, one per stripe."""

    member: str
    upstreams: tuple[str, ...]
    reason: str
    interior: int | None = None


def slots(member: str, world: World, options: PlannerOptions) -> int:
    """Flows that a member may send at once: more than one only where one cannot fill its egress."""
    rate = world.rate(member)
    if options.egress_rate <= 0 or rate <= 0:
        return 1
    return max(1, min(options.max_slots, int(options.egress_rate / rate)))


def has_room(vertex: Vertex, share: float, world: World, options: PlannerOptions) -> bool:
    """Whether a member can send another `share` of a flow without slowing those that read from it."""
    return vertex.load + share <= slots(vertex.member, world, options) + _SLACK


def leaf_to_replace(swarm: Swarm, member: str, stripe: int, world: World, options: PlannerOptions) -> Vertex | None:
    """In a full tree: a leaf whose place `member` can take, as the leaf itself fits anywhere, also below
    `member`."""
    for _, level in swarm.levels():
        for v in level:
            if v.member == member or len(v.upstreams) != 2 or swarm.children_of(v.member, stripe):
                continue
            parent = v.upstreams[stripe]
            if parent == member or any(u not in swarm for u in v.upstreams) or swarm.vertex(parent).barred:
                continue
            if not is_slow(parent, world, options) and not swarm.reaches_in_stripe(member, parent, stripe):
                return v
    return None


def stripes_for(receivers: int, sources: int, options: PlannerOptions) -> tuple[int, str]:
    """How many stripes a burst should use."""
    if sources and receivers / sources > options.stripe_threshold:
        return 2, f"{receivers} receivers for {sources} source(s): two interleaved trees"
    return 1, f"{receivers} receiver(s) for {sources} source(s): chains"


def plan_burst(
    swarm: Swarm, receivers: Sequence[str], world: World, options: PlannerOptions, now: float
) -> list[Placement]:
    """Place receivers that wait at the same time, and attach them to the graph.

    One member of each node is placed among the nodes; the others of the node read from it in a chain, so that
    each node's NIC carries the weights in only once.
    """
    heads, followers = _by_node(receivers, world, options)
    placements = _plan_heads(swarm, heads, world, options, now)
    for leader, member in followers:
        if leader in swarm:
            swarm.attach(member, (leader,), now)
            placements.append(Placement(member, (leader,), "receiver on this node, in a chain"))
    return placements


def _by_node(
    receivers: Sequence[str], world: World, options: PlannerOptions
) -> tuple[list[str], list[tuple[str, str]]]:
    """The first of each node, and (leader, member) for the others: each reads from the one before it."""
    heads: list[str] = []
    followers: list[tuple[str, str]] = []
    last: dict[str, str] = {}
    for member in sorted(receivers, key=lambda m: is_slow(m, world, options)):
        node = world.place(member).node
        if node in last:
            followers.append((last[node], member))
        else:
            heads.append(member)
        last[node] = member
    return heads, followers


def _plan_heads(
    swarm: Swarm, receivers: Sequence[str], world: World, options: PlannerOptions, now: float
) -> list[Placement]:
    sources = [m for m in swarm.complete_members() if not swarm.vertex(m).barred]
    stripes, why = stripes_for(len(receivers), len(sources), options)
    # A slow member ahead of others would slow all of them: slow ones go last, where the leaves are.
    ordered = sorted(receivers, key=lambda m: (is_slow(m, world, options), world.place(m).labels, world.place(m).node))
    if stripes == 2:
        return _plan_trees(swarm, ordered, world, options, now, why)
    placements = []
    for member in ordered:
        parent, reason = choose_upstream(swarm, member, world, options)
        if parent is None:
            continue
        swarm.attach(member, (parent,), now)
        placements.append(Placement(member, (parent,), f"{reason}; {why}"))
    return placements


def _plan_trees(
    swarm: Swarm, receivers: Sequence[str], world: World, options: PlannerOptions, now: float, why: str
) -> list[Placement]:
    """Two trees: even receivers are interior in stripe 0 and leaves of stripe 1, odd ones the other way
    round.

    The interior of each tree is placed first, then the leaves, since a leaf of one tree may be the parent of
    its own parent in the other.
    """
    fast = [m for m in receivers if not is_slow(m, world, options)]
    inner = {m: i % 2 for i, m in enumerate(fast)}
    chosen: dict[str, list[str]] = {m: ["", ""] for m in receivers}
    trees = [_Tree(swarm, stripe, world, options) for stripe in (0, 1)]
    for interior in (True, False):
        for member in receivers:
            for stripe, tree in enumerate(trees):
                if (inner.get(member) == stripe) is interior:
                    chosen[member][stripe] = tree.place(member, interior=interior)
    # Everybody becomes a vertex before anybody gets upstreams: a parent may come later in the order.
    for member in receivers:
        swarm.attach(member, (), now)
    placements = [move for tree in trees for move in tree.make_room(now)]
    for member in receivers:
        # Both stripes from one parent are a chain: all that it reads comes in order, for any stripe below it.
        upstreams = tuple(dict.fromkeys(chosen[member]))
        role = inner.get(member) if len(upstreams) == 2 else None
        swarm.attach(member, upstreams, now, interior=role)
        placements.append(Placement(member, upstreams, why, interior=role))
    return placements


class _Tree:
    """One stripe's tree while it is being planned: who can still take half a flow, shallowest first."""

    def __init__(self, swarm: Swarm, stripe: int, world: World, options: PlannerOptions) -> None:
        self._swarm = swarm
        self._stripe = stripe
        self._open: deque[tuple[str, float]] = deque()
        self._moved: tuple[str, str] | None = None
        """A leaf, and the newcomer that takes its place and becomes its parent."""
        usable: list[Vertex] = []
        for _, level in swarm.levels():
            for v in level:
                if v.barred or v.interior not in (None, stripe) or not (v.complete or v.upstreams):
                    continue
                usable.append(v)
                # One that is interior here gives all that is free to this tree, the others half of it.
                free = (slots(v.member, world, options) - v.load) / (1 if v.interior == stripe else 2)
                if free + _SLACK >= _HALF:
                    self._open.append((v.member, free))
        self._full = not self._open
        if self._full:  # share the shallowest rather than leave anyone without
            self._open.append((usable[0].member, _HALF))

    def place(self, member: str, *, interior: bool) -> str:
        parent, free = self._open[0]
        taken = 0.0
        if self._full and interior:
            # Everybody's egress is used, as two trees do: the newcomer takes the place of a leaf, which moves
            # below it.
            self._full = False
            leaf = self._shallowest_leaf()
            if leaf is not None:
                self._open.clear()
                self._moved, taken = (leaf.member, member), _HALF
                parent, free = leaf.upstreams[self._stripe], 0.0
        if interior:
            # It has one whole flow to give: two children that read one of two stripes each.
            self._open.append((member, 2 * _HALF - taken))
        if free - _HALF + _SLACK >= _HALF:
            self._open[0] = (parent, free - _HALF)
        elif len(self._open) > 1:
            self._open.popleft()
        return parent

    def make_room(self, now: float) -> list[Placement]:
        """Move the leaf whose place was taken; call when the newcomers are in the graph."""
        if self._moved is None:
            return []
        leaf, newcomer = self._moved
        vertex = self._swarm.vertex(leaf)
        upstreams = tuple(newcomer if s == self._stripe else u for s, u in enumerate(vertex.upstreams))
        self._swarm.attach(leaf, upstreams, now, interior=vertex.interior)
        return [Placement(leaf, upstreams, "makes room for newcomers", interior=vertex.interior)]

    def _shallowest_leaf(self) -> Vertex | None:
        for _, level in self._swarm.levels():
            for v in level:
                if len(v.upstreams) == 2 and v.interior == 1 - self._stripe and self._is_leaf(v):
                    return v
        return None

    def _is_leaf(self, vertex: Vertex) -> bool:
        parent = vertex.upstreams[self._stripe]
        return parent in self._swarm and not self._swarm.children_of(vertex.member, self._stripe)


def choose_upstream(
    swarm: Swarm,
    member: str,
    world: World,
    options: PlannerOptions,
    *,
    stripe: int = 0,
    stripes: int = 1,
    avoid: Collection[str] = (),
) -> tuple[str | None, str]:
    """The best parent for one stripe of one receiver: near, then shallow, then idle.

    Never a member that reads from the receiver itself, and never one in `avoid`. A member with a free slot is
    preferred to any without; when all are busy the least loaded one is shared rather than leaving the
    receiver idle.

    Returns:
        (parent or None when there is no candidate at all, reason).
    """
    here = world.place(member)
    share = 1 / stripes
    best: tuple[tuple[float, ...], Vertex] | None = None
    for depth, level in swarm.levels():
        if best is not None and not any(best[0][:3]) and depth > best[0][4] + options.far_penalty:
            break  # nothing deeper can be better than a free parent this much shallower
        for v in level:
            if v.member == member or v.barred or v.member in avoid:
                continue
            if not v.complete and not v.upstreams:
                continue  # it has nothing to read from itself
            # Interior in the other tree: its egress belongs there, unless some of it is idle and nobody else
            # has any.
            other = stripes == 2 and v.interior == 1 - stripe
            there = world.place(v.member)
            same_node = here.node == there.node
            full = not has_room(v, share, world, options)
            slow = not v.complete and is_slow(v.member, world, options)
            hops = depth + (0 if same_node or here.labels == there.labels else options.far_penalty)
            if full:
                hops = -hops  # whoever shares slows all that read below: the fewer the better
            score = (slow, full, other, not same_node, float(hops), v.load, v.used_at)
            if (best is None or score < best[0]) and not _reads_from(swarm, v, member, stripe, stripes):
                best = (score, v)
    if best is None:
        return None, "nobody else has or receives these weights"
    return best[1].member, _describe(best[1], best[0], here, world)


def _reads_from(swarm: Swarm, candidate: Vertex, member: str, stripe: int, stripes: int) -> bool:
    if member not in swarm or candidate.complete:
        return False
    if stripes == 2:
        return swarm.reaches_in_stripe(member, candidate.member, stripe)
    return swarm.reaches(member, candidate.member)


def is_slow(member: str, world: World, options: PlannerOptions) -> bool:
    rate = world.rate(member)
    return 0 < rate < options.slow_ratio * world.median_rate


def _describe(vertex: Vertex, score: tuple[float, ...], here: Place, world: World) -> str:
    there = world.place(vertex.member)
    what = "complete source" if vertex.complete else f"receiver {vertex.depth} hop(s) from a source"
    where = "on this node" if here.node == there.node else f"on {there.name or there.node}"
    if here.node != there.node and here.labels and here.labels == there.labels:
        where += " in the same rack"
    how = "shared, as everybody is busy" if score[1] else "with a free slot"
    return f"{what} {where}, {how}"
