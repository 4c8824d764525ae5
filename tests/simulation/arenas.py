"""Memory of a member in the world of faults, with its page; whoever reads it has a lease."""

from __future__ import annotations

from dataclasses import dataclass, field

from ray_weights.core.page import PageIdentity, PageState, mark_ready, page_nbytes, write_header


def right(chunk: int) -> str:
    """What a chunk should contain."""
    return f"chunk {chunk}"


@dataclass(slots=True)
class Arena:
    """Memory of one shard, with its page; whoever reads needs a lease."""

    identity: PageIdentity
    contents: list[str]
    page: bytearray
    leases: dict[str, str] = field(default_factory=dict)
    """Lease -> reader."""
    freed: bool = False

    def advertise(self, chunk: int) -> None:
        mark_ready(memoryview(self.page), chunk)

    def header(self, state: PageState) -> None:
        write_header(memoryview(self.page), self.identity, state, len(self.contents))


class Arenas:
    """All memory of one member: what it uses, and what it has left but others still read."""

    def __init__(self, member: str, chunks: int, manifest_digest: str) -> None:
        self._member = member
        self._chunks = chunks
        self._manifest_digest = manifest_digest
        self._made = 0
        self.current: Arena | None = None
        self._old: list[Arena] = []

    def make(self) -> Arena:
        """A new one is the current one."""
        self._made += 1
        identity = PageIdentity(1, self._manifest_digest, f"{self._made}:{self._member}"[:16])
        self.current = Arena(identity, ["nothing"] * self._chunks, bytearray(page_nbytes(self._chunks)))
        self.current.header(PageState.SERVING)
        return self.current

    def move(self, verified: tuple[int, ...]) -> None:
        """Leave the current one, because late reads may write into it, with these chunks."""
        old = self.current
        assert old is not None
        new = self.make()
        for chunk in verified:
            new.contents[chunk] = old.contents[chunk]
            new.advertise(chunk)
        self._leave(old, PageState.MOVED)

    def close(self) -> None:
        """Serve the current one no longer."""
        old, self.current = self.current, None
        if old is not None:
            self._leave(old, PageState.CLOSED)

    def _leave(self, arena: Arena, state: PageState) -> None:
        """It is freed once the last lease on it has ended."""
        arena.header(state)
        self._old.append(arena)
        self._free_unleased()

    def end_lease(self, lease: str) -> None:
        for arena in self._all():
            arena.leases.pop(lease, None)
        self._free_unleased()

    def end_leases_of(self, reader: str) -> None:
        for arena in self._all():
            for lease in [x for x, holder in arena.leases.items() if holder == reader]:
                del arena.leases[lease]
        self._free_unleased()

    def _all(self) -> list[Arena]:
        return [*([self.current] if self.current is not None else []), *self._old]

    def _free_unleased(self) -> None:
        for arena in [a for a in self._old if not a.leases]:
            self._old.remove(arena)
            arena.freed = True
            arena.contents = ["freed"] * len(arena.contents)
            arena.page = bytearray(len(arena.page))
