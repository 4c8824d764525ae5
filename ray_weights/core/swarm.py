"""Who reads one shard version from whom: the graph that the planner extends.

Each receiver has one upstream per stripe; chunk i belongs to stripe i mod stripes. Stripes are counted per
receiver, so chains (one stripe) and trees (two) may share members. Invariants, checked by validate():
children mirror upstreams, the graph of each stripe is acyclic, a complete member has depth 0 and no upstream.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

MAX_STRIPES = 2


@dataclass(slots=True)
class Vertex:
    """One member's place in the graph."""

    member: str
    complete: bool
    upstreams: tuple[str, ...] = ()
    """One per stripe of this member; empty while it has none."""
    interior: int | None = None
    """The one stripe in which this member may have children while it is incomplete; None for either."""
    barred: bool = False
    """Quarantined, or on its way out: takes no new children."""
    children: dict[str, int] = field(default_factory=dict)
    """Child -> how many of its stripes are read from here."""
    load: float = 0.0
    """Egress in whole flows: a child that reads one of two stripes here counts as half."""
    depth: int = 0
    """Hops from a complete member: in its own tree for an interior member, else the longest of its
    stripes."""
    used_at: float = 0.0


class Swarm:
    """The members that hold or receive one shard version."""

    def __init__(self) -> None:
        self._vertices: dict[str, Vertex] = {}
        # Members by depth, so that the planner finds the shallow ones without looking at all of them.
        self._levels: dict[int, dict[str, None]] = {}

    def __contains__(self, member: str) -> bool:
        return member in self._vertices

    def __len__(self) -> int:
        return len(self._vertices)

    def vertex(self, member: str) -> Vertex:
        return self._vertices[member]

    def members(self) -> tuple[str, ...]:
        return tuple(self._vertices)

    def complete_members(self) -> tuple[str, ...]:
        return tuple(m for m in self._levels.get(0, ()) if self._vertices[m].complete)

    def levels(self) -> Iterator[tuple[int, tuple[Vertex, ...]]]:
        """(depth, vertices) from the shallowest on, each level least recently used first."""
        for depth in sorted(self._levels):
            if self._levels[depth]:
                yield depth, tuple(self._vertices[m] for m in self._levels[depth])

    def add_complete(self, member: str) -> None:
        """Add a source, or turn a receiver into one."""
        if member not in self._vertices:
            self._vertices[member] = Vertex(member, complete=True)
            self._levels.setdefault(0, {})[member] = None
            return
        vertex = self._vertices[member]
        self._unlink(vertex)
        vertex.complete, vertex.interior = True, None
        self._relevel(member)

    def attach(self, member: str, upstreams: tuple[str, ...], now: float, interior: int | None = None) -> None:
        """Put a receiver under its upstreams, one per stripe, or move it there."""
        vertex = self._vertices.get(member)
        if vertex is None:
            vertex = self._vertices[member] = Vertex(member, complete=False, interior=interior)
            self._levels.setdefault(0, {})[member] = None
        assert not vertex.complete, f"{member} is complete and reads from nobody"
        self._unlink(vertex)
        vertex.interior = interior
        for upstream in upstreams:
            parent = self._vertices[upstream]
            parent.children[member] = parent.children.get(member, 0) + 1
            parent.load += 1 / len(upstreams)
            parent.used_at = now
            # Most recently used goes last in its level.
            level = self._levels[parent.depth]
            del level[upstream]
            level[upstream] = None
        vertex.upstreams = upstreams
        self._relevel(member)

    def detach(self, member: str) -> None:
        """Take a receiver's upstreams away; its children stay."""
        vertex = self._vertices[member]
        self._unlink(vertex)
        self._relevel(member)

    def remove(self, member: str) -> tuple[str, ...]:
        """Remove a member; returns its children, which keep it as upstream in name until they are attached
        anew."""
        vertex = self._vertices.pop(member)
        del self._levels[vertex.depth][member]
        self._unlink(vertex)
        return tuple(vertex.children)

    def children_of(self, member: str, stripe: int) -> tuple[str, ...]:
        """Children that read `stripe` (modulo their own stripes) from a member."""
        return tuple(
            c
            for c in self._vertices[member].children
            if c in self._vertices and self._upstream(self._vertices[c], stripe) == member
        )

    def reaches(self, ancestor: str, member: str) -> bool:
        """Whether `member` reads, directly or through others, in any stripe, from `ancestor`."""
        seen: set[str] = set()
        queue = [member]
        while queue:
            current = queue.pop()
            if current == ancestor:
                return True
            if current in seen or current not in self._vertices:
                continue
            seen.add(current)
            queue.extend(self._vertices[current].upstreams)
        return False

    def path(self, member: str, stripe: int) -> Iterator[str]:
        """A member and those that it reads one stripe of two from, directly or through others, nearest
        first."""
        seen: set[str] = set()
        current: str | None = member
        while current is not None and current in self._vertices and current not in seen:
            yield current
            seen.add(current)
            current = self._upstream(self._vertices[current], stripe)

    def reaches_in_stripe(self, ancestor: str, member: str, stripe: int) -> bool:
        """As reaches(), along the upstreams of one stripe of two."""
        return ancestor in self.path(member, stripe)

    def validate(self) -> None:
        """Raise AssertionError where an index does not match the upstreams. Called by tests after every
        event."""
        load: dict[str, float] = dict.fromkeys(self._vertices, 0.0)
        for v in self._vertices.values():
            assert v.member in self._levels[v.depth], f"{v.member} is not in level {v.depth}"
            assert not (v.complete and v.upstreams), f"{v.member} is complete and has upstreams"
            for upstream in v.upstreams:
                if upstream in load:
                    load[upstream] += 1 / len(v.upstreams)
                    assert v.member in self._vertices[upstream].children
            for stripe in range(MAX_STRIPES):
                up = self._upstream(v, stripe)
                assert up is None or not self.reaches_in_stripe(v.member, up, stripe), f"cycle through {v.member}"
        for member, expected in load.items():
            assert abs(self._vertices[member].load - expected) < 1e-6, f"load of {member}"
            for child in self._vertices[member].children:
                assert member in self._vertices[child].upstreams, f"{child} is no child of {member}"
        assert sum(len(level) for level in self._levels.values()) == len(self._vertices)

    @staticmethod
    def _upstream(vertex: Vertex, stripe: int) -> str | None:
        return vertex.upstreams[stripe % len(vertex.upstreams)] if vertex.upstreams else None

    def _unlink(self, vertex: Vertex) -> None:
        for upstream in vertex.upstreams:
            parent = self._vertices.get(upstream)
            if parent is None:
                continue
            parent.load -= 1 / len(vertex.upstreams)
            parent.children[vertex.member] -= 1
            if parent.children[vertex.member] == 0:
                del parent.children[vertex.member]
        vertex.upstreams = ()

    def _relevel(self, member: str) -> None:
        """Recompute the depth of a member and of all below it."""
        queue = [member]
        budget = 4 * MAX_STRIPES * len(self._vertices) + 4
        while queue and budget:
            budget -= 1
            vertex = self._vertices[queue.pop()]
            depth = 0
            if not vertex.complete:
                # Two interleaved trees may read from each other, so an interior member counts in its own tree
                # only.
                counted = vertex.upstreams
                if vertex.interior is not None and counted:
                    counted = (counted[vertex.interior % len(counted)],)
                depth = 1 + max((self._vertices[u].depth for u in counted if u in self._vertices), default=0)
            if depth == vertex.depth:
                continue
            del self._levels[vertex.depth][vertex.member]
            vertex.depth = depth
            self._levels.setdefault(depth, {})[vertex.member] = None
            queue.extend(c for c in vertex.children if c in self._vertices)
