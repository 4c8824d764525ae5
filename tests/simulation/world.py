"""A seeded world of faults around the real Registry and Receiver machines.

One heap of events, one random generator: a seed replays exactly. Processes die, freeze and come back;
messages to and from the coordinator are late, doubled and overtake each other; reads fail, stall, land late;
chunks arrive broken; memory rots; the coordinator restarts. After some time the faults end, and everybody
must come to an end.
"""

from __future__ import annotations

import heapq
import random
from collections.abc import Callable
from dataclasses import dataclass

from ray_weights.core.outbox import Outgoing
from ray_weights.core.placing import PlacingOptions
from ray_weights.core.planner import PlannerOptions
from ray_weights.core.registry import Registry, RegistryOptions
from ray_weights.errors import Fenced
from ray_weights.schemas import messages as m
from ray_weights.schemas.keys import ModelKey, ShardKey
from ray_weights.schemas.members import Seal

SHARD = ShardKey(model=ModelKey(model="org/model"))


class Violation(AssertionError):
    """An invariant does not hold. The message has the seed and the story."""


@dataclass(frozen=True, slots=True)
class Faults:
    """How bad a world is; drawn from the seed."""

    receivers: int
    chunks: int
    kills: int
    freezes: int
    slow: int
    restarts: int
    drops: int
    rot: int
    corrupt: float
    """Share of chunk reads that arrive broken."""
    read_error: float
    double: float
    """Share of messages that arrive twice."""
    overtake: bool
    """Whether messages may overtake each other."""
    delay: float
    """Longest delay of a message, seconds."""
    origin_fails: float
    chunk_seconds: float
    quiet_at: float
    """When the faults end."""

    @classmethod
    def drawn(cls, rng: random.Random) -> Faults:
        def some(most: int) -> int:
            return rng.choice([0, 0, rng.randint(0, most)])

        receivers = rng.choice([1, 2, 3, 5, 8, 13])
        return cls(
            receivers=receivers,
            chunks=rng.choice([1, 2, 7, 16, 32]),
            kills=some(3),
            freezes=some(3),
            slow=some(2),
            restarts=some(2),
            drops=some(2),
            rot=some(1),
            corrupt=rng.choice([0.0, 0.0, 0.02]),
            read_error=rng.choice([0.0, 0.0, 0.02]),
            double=rng.choice([0.0, 0.2]),
            overtake=rng.random() < 0.3,
            delay=rng.choice([0.001, 0.02, 1.0]),
            origin_fails=rng.choice([0.0, 0.0, 0.5]),
            chunk_seconds=rng.choice([0.02, 0.1, 0.4]),
            quiet_at=rng.choice([4.0, 12.0, 40.0]),
        )


class World:
    """Time, chance, messages, and the coordinator."""

    PATIENCE = 150.0
    """Seconds after the faults have ended within which everybody must have ended too."""

    def __init__(self, seed: int) -> None:
        from tests.simulation.member import Member  # the two know each other

        self.seed = seed
        self.rng = random.Random(seed)
        self.faults = Faults.drawn(self.rng)
        self.now = 0.0
        self.events = 0
        self.told: list[str] = []
        self.epoch = 1
        self.up = True
        self.options = RegistryOptions(
            placing=PlacingOptions(planner=PlannerOptions(stripe_threshold=self.rng.choice([2, 8]))),
            recovery_seconds=self.rng.choice([0.5, 5.0]),
        )
        self.registry = Registry(1, 0.0, self.options)
        self.members: dict[str, Member] = {}
        """Living processes by member name."""
        self.starts: list[str] = []
        """Actor of each process that was ever started."""
        self._heap: list[tuple[float, int, Callable[[], None]]] = []
        self._last_arrival: dict[tuple[str, str], float] = {}
        self._make_member = lambda *a: Member(self, *a)
        self._wakeup: float | None = None

    # Running

    def run(self) -> None:
        faults, rng = self.faults, self.rng
        for i in range(faults.receivers + 1):
            self.at(rng.uniform(0, rng.choice([0.01, 3.0])), lambda i=i: self.start(i))
        for count, what in (
            (faults.kills, self._kill),
            (faults.freezes, self._freeze),
            (faults.slow, self._slow),
            (faults.restarts, self._restart_coordinator),
            (faults.drops, self._drop),
            (faults.rot, self._rot),
        ):
            for _ in range(count):
                self.at(rng.uniform(0.0, faults.quiet_at), what)
        self.at(faults.quiet_at, self._quiet)
        end = faults.quiet_at + self.PATIENCE
        try:
            while self._heap and self._heap[0][0] <= end:
                self.now, _, act = heapq.heappop(self._heap)
                self.events += 1
                act()
                if self.events > 400_000:
                    raise Violation("it never comes to rest")
                if all(x.outcome for x in self.members.values()) and self.now > faults.quiet_at + 3:
                    break
            for member in self.members.values():
                member.check_end()
        except (AssertionError, KeyError, IndexError, ValueError, RuntimeError) as e:
            raise Violation(f"{type(e).__name__}: {e}\n{self.report()}") from e

    def report(self, lines: int = 60) -> str:
        story = [f"{s.at:9.3f} {s.member}: {s.what}" for s in self.registry.story(SHARD)]
        return "\n".join(
            [
                f"seed {self.seed}: python -m tests.simulation.soak --seed {self.seed}",
                str(self.faults),
                "The coordinator's story:",
                *story[-lines:],
                "What happened:",
                *self.told[-lines:],
            ]
        )

    def tell(self, what: str) -> None:
        self.told.append(f"{self.now:9.3f} {what}")

    def require(self, holds: bool, what: str) -> None:
        if not holds:
            raise AssertionError(what)

    def at(self, when: float, act: Callable[[], None]) -> None:
        heapq.heappush(self._heap, (max(when, self.now), self.rng.getrandbits(30), act))

    def after(self, seconds: float, act: Callable[[], None]) -> None:
        self.at(self.now + seconds, act)

    @property
    def quiet(self) -> bool:
        return self.now >= self.faults.quiet_at

    def chance(self, share: float) -> bool:
        return not self.quiet and self.rng.random() < share

    # Messages

    def message(self, frm: str, to: str, act: Callable[[], None]) -> None:
        """Deliver late; now and then twice; in order unless this world lets messages overtake each other."""
        copies = 2 if self.chance(self.faults.double) else 1
        for _ in range(copies):
            arrival = self.now + self.rng.uniform(0.0002, 0.001 if self.quiet else self.faults.delay)
            if not self.faults.overtake:
                arrival = max(arrival, self._last_arrival.get((frm, to), 0.0) + 1e-9)
                self._last_arrival[(frm, to)] = arrival
            self.at(arrival, act)

    def post(self, member: str, make: Callable[[int], m.Event], epoch: int) -> None:
        """Send an event to the coordinator; a fenced sender joins and repeats, one without answer tries
        again."""
        self.message(member, "coordinator", lambda: self._arrived_at_coordinator(member, make, epoch))

    def _arrived_at_coordinator(self, member: str, make: Callable[[int], m.Event], epoch: int) -> None:
        if member not in self.members:
            return  # its process has ended, and with it the connection
        if not self.up:
            self.after(0.5, lambda: self.members[member].post(make) if member in self.members else None)
            return
        try:
            out = self.registry.handle(make(epoch), self.now)
        except Fenced:
            self.registry.validate()
            self.message("coordinator", member, lambda: self._fenced(member, make))
            return
        self._send(out)

    def _fenced(self, member: str, make: Callable[[int], m.Event]) -> None:
        if member in self.members:
            self.members[member].soon(lambda: self.members[member].join_and_repeat(make))

    def join(self, member: str, make: Callable[[int], m.Event], then: Callable[[int], None]) -> None:
        def arrive() -> None:
            if member not in self.members:
                return
            if not self.up:
                self.after(0.5, lambda: self.join(member, make, then))
                return
            self._send(self.registry.handle(make(self.epoch), self.now))
            epoch = self.epoch
            self.message("coordinator", member, lambda: then(epoch))

        self.message(member, "coordinator", arrive)

    def _send(self, out: list[Outgoing]) -> None:
        self.registry.validate()
        for o in out:
            self.message("coordinator", o.member, lambda o=o: self._deliver(o))
        at = self.registry.next_wakeup()
        if at is not None and at != self._wakeup:
            self._wakeup, registry = at, self.registry
            self.at(at, lambda: self._tick(registry))

    def _tick(self, registry: Registry) -> None:
        if registry is self.registry and self.up:
            self._wakeup = None
            self._send(registry.tick(self.now))

    def _deliver(self, o: Outgoing) -> None:
        member = self.members.get(o.member)
        if member is not None:
            member.soon(lambda: member.command(o.command))

    # Members

    def start(self, number: int) -> None:
        """Some have other tensors than the rest; in some worlds, some cannot read storage."""
        actor, may_load = f"actor{number}", self.seed % 4 != 3 or number % 3 == 0
        member = self._make_member(actor, self.now, number % 7 != 5, may_load)
        self.starts.append(actor)
        self.members[member.name] = member
        self.tell(f"{member.name} starts")
        member.begin()

    def living(self) -> list[str]:
        return list(self.members)

    # Faults

    def _pick(self) -> str | None:
        return self.rng.choice(self.living()) if self.members else None

    def _kill(self) -> None:
        name = self._pick()
        if name is None:
            return
        member = self.members.pop(name)
        member.alive = False
        self.tell(f"{name} is killed")
        for other in list(self.members.values()):
            self.after(0.03, lambda o=other: o.soon(lambda: o.arenas.end_leases_of(name)))

        def noticed() -> None:
            if self.up:
                self._send(self.registry.member_died(name, self.now))

        self.after(self.rng.choice([0.01, 0.5]), noticed)
        if self.rng.random() < 0.7:
            self.after(self.rng.uniform(0.005, 3.0), lambda: self.start(int(member.actor.removeprefix("actor"))))

    def _freeze(self) -> None:
        name = self._pick()
        if name is not None:
            until = min(self.now + self.rng.choice([0.5, 5.0, 30.0]), self.faults.quiet_at)
            self.members[name].freeze(until)
            self.tell(f"{name} freezes until {until:.3f}")

    def _slow(self) -> None:
        name = self._pick()
        if name is not None:
            self.members[name].speed = 0.25
            self.tell(f"{name} is slow from now on")

    def _drop(self) -> None:
        name = self._pick()
        if name is not None:
            self.members[name].soon(self.members[name].drop)

    def _rot(self) -> None:
        name = self._pick()
        if name is not None:
            self.members[name].rot()

    def _restart_coordinator(self) -> None:
        self.up = False
        self.tell("the coordinator is killed")
        self.after(self.rng.choice([0.01, 1.0, 4.0]), self._coordinator_returns)

    def _coordinator_returns(self) -> None:
        if self.up:
            return
        self.epoch += 1
        self.up, self._wakeup = True, None
        expected = {x.actor: x.name for x in self.members.values()}
        self.registry = Registry(self.epoch, self.now, self.options, frozenset(expected))
        self.tell(f"epoch {self.epoch} begins")
        registry = self.registry
        for actor, name in expected.items():
            self.message("coordinator", name, lambda name=name: self._call_in(name))

            def gone(actor: str = actor, name: str = name) -> None:
                if name not in self.members and registry is self.registry and self.up:
                    self._send(registry.expected_died(actor, self.now))

            self.after(1.0, gone)

    def _call_in(self, name: str) -> None:
        if name in self.members:
            self.members[name].soon(self.members[name].join)

    def _quiet(self) -> None:
        self.tell("the faults end")
        for member in self.members.values():
            member.speed = 1.0

    def seal(self, layout: str = "layout") -> Seal:
        chunks = self.faults.chunks
        return Seal(
            layout_digest=layout, manifest_digest="ab" * 32, nbytes=chunks * 100, chunk_nbytes=100, chunks=chunks
        )
