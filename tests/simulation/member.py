"""One transfer actor and its engine in the world of faults: carries out what the real machines decide."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Literal

from ray_weights.core import receiving as r
from ray_weights.core.link import ReceiverOptions
from ray_weights.core.receiver import Receiver
from ray_weights.schemas import messages as m
from ray_weights.schemas.members import Holding, MemberInfo, ReceiveStats, Receiving
from tests.simulation.arenas import Arena, Arenas, right
from tests.simulation.reads import Reads
from tests.simulation.world import SHARD

if TYPE_CHECKING:
    from tests.simulation.world import World

GRANT_SECONDS = 5.0
"""How long a member that has yet to make its arena keeps a reader waiting for a lease."""
OPTIONS = ReceiverOptions(measure_chunks=4)
State = Literal["new", "asked", "waiting", "receiving", "loading", "sealing", "ready", "ended"]


class Member:
    """One incarnation of one process."""

    def __init__(self, world: World, actor: str, started: float, honest: bool, may_load: bool) -> None:
        self.world = world
        self.actor = actor
        self.honest = honest
        """One that is not has other tensors than everybody else, and cannot load."""
        self.may_load = may_load and honest
        self.name = f"{actor}#{world.starts.count(actor)}"
        self.alive = True
        self.speed = 1.0
        self.state: State = "new"
        self.outcome = ""
        self.epoch = 0
        self._joins = 0
        self._joining: set[int] = set()
        self._held: list[m.Command] = []
        self.arenas = Arenas(self.name, world.faults.chunks, world.seal().manifest_digest)
        self.receiver: Receiver | None = None
        self.upstreams: tuple[str, ...] = ()
        self._frozen_until = 0.0
        self._deferred: list[Callable[[], None]] = []
        self._reads = Reads(self)
        self._tick_at = float("inf")
        self.deadline = world.faults.quiet_at + world.PATIENCE - 20

    # The process

    @property
    def arena(self) -> Arena | None:
        """What it serves, or receives into."""
        return self.arenas.current

    def freeze(self, until: float) -> None:
        self._frozen_until = max(self._frozen_until, until)

    @property
    def frozen(self) -> bool:
        return self.world.now < self._frozen_until

    def soon(self, act: Callable[[], None]) -> None:
        """Run in this process: at once, or when it is no longer frozen; never once it is dead."""
        if not self.alive:
            return
        if self.frozen:
            self.world.at(self._frozen_until, lambda: self.soon(act))
            return
        act()

    def after(self, seconds: float, act: Callable[[], None]) -> None:
        self.world.after(seconds, lambda: self.soon(act))

    def begin(self) -> None:
        self.state = "asked"
        self.after(self.deadline - self.world.now, self._deadline)
        self.join(lambda: self.post(self._open))

    def rot(self) -> None:
        if self.arena is not None and self.state == "ready":
            self.arena.contents[self.world.rng.randrange(len(self.arena.contents))] = "rotten"
            self.world.tell(f"{self.name}: memory rots")

    # The coordinator

    def join(self, then: Callable[[], None] | None = None) -> None:
        # From its word of what it holds until it knows the epoch, commands wait: one of an earlier epoch would undo
        # what it said.
        self._joins += 1
        joining = self._joins
        self._joining.add(joining)

        def joined(epoch: int) -> None:
            def apply() -> None:
                newer = epoch > self.epoch > 0
                self.epoch = max(self.epoch, epoch)
                self._joining.discard(joining)
                if not self._joining:
                    held, self._held = self._held, []
                    for command in held:
                        self.command(command)
                if then is not None:
                    then()
                if newer and self.state in ("asked", "waiting"):
                    self.post(self._open)
                elif newer and self.state == "sealing":
                    self.post(self._sealed)

            self.soon(apply)

        seal = self.world.seal()
        holdings = (Holding(shard=SHARD, version=1, seal=seal),) if self.state == "ready" else ()
        receiving = ()
        if self.state == "receiving" and self.receiver is not None and not self.receiver.done:
            may_load = self.may_load
            receiving = (Receiving(shard=SHARD, version=1, seal=seal, upstreams=self.upstreams, may_load=may_load),)
        info = MemberInfo(
            member=self.name, actor_name=self.actor, node_id=self.actor, node_name=self.actor, device="cpu"
        )
        self.world.join(
            self.name,
            lambda epoch: m.Join(epoch=epoch, member=self.name, info=info, holdings=holdings, receiving=receiving),
            joined,
        )

    def join_and_repeat(self, make: Callable[[int], m.Event]) -> None:
        self.join(lambda: self.post(make))

    def post(self, make: Callable[[int], m.Event]) -> None:
        self.world.post(self.name, make, self.epoch)

    def _open(self, epoch: int) -> m.Event:
        layout = "layout" if self.honest else "other"
        return m.Open(epoch=epoch, member=self.name, shard=SHARD, layout_digest=layout, may_load=self.may_load)

    def _sealed(self, epoch: int) -> m.Event:
        return m.Sealed(epoch=epoch, member=self.name, shard=SHARD, version=1, seal=self.world.seal())

    def _completed(self, epoch: int) -> m.Event:
        stats = ReceiveStats(nbytes=100, seconds=1.0)
        return m.Completed(epoch=epoch, member=self.name, shard=SHARD, version=1, stats=stats)

    def _dropped(self, epoch: int) -> m.Event:
        return m.Dropped(epoch=epoch, member=self.name, shard=SHARD, version=1)

    def command(self, command: m.Command) -> None:
        if self._joining:
            self._held.append(command)
            return
        if command.epoch < self.epoch:
            return  # fenced
        if self.state == "ended" and isinstance(command, m.BecomeOrigin | m.Wait | m.Receive):
            self.post(self._dropped)  # a late word made the coordinator believe that it is still wanted here
            return
        match command:
            case m.BecomeOrigin():
                self._become_origin()
            case m.Wait() if self.state == "asked":
                self.state = "waiting"
            case m.Receive():
                self._receive(command)
            case m.Accepted() if command.sealed and self.state == "sealing":
                self.state = "ready"
                self._end("loaded from storage")
            case m.Accepted() if not command.sealed and self.state in ("asked", "waiting"):
                self.post(self._dropped)  # the coordinator believes that it holds what it asks for
                self.post(self._open)
            case m.Refuse():
                if self.state not in ("ready", "ended"):
                    self._stop_receiving()
                    self.state = "ended"
                    self._end(f"refused: {command.error}")
            case m.Reverify():
                self.after(0.1, self._reverify)

    # Loading

    def _become_origin(self) -> None:
        if self.state in ("ready", "sealing"):
            self.post(self._sealed)  # its word was overtaken by an older one
        if self.state in ("ready", "ended", "loading", "sealing"):
            return
        self.world.require(self.may_load, f"{self.name}, which cannot read storage, is told to")
        self._stop_receiving()
        self.state = "loading"
        self.after(self.world.rng.uniform(0.1, 3.0), self._loaded)

    def _loaded(self) -> None:
        if self.state != "loading":
            return
        if self.world.chance(self.world.faults.origin_fails):
            self.state = "ended"
            self.post(lambda epoch: m.OriginError(epoch=epoch, member=self.name, shard=SHARD, version=1, error="disk"))
            self._end("error: disk")
            return
        arena = self.arenas.make()
        for chunk in range(self.world.faults.chunks):
            arena.contents[chunk] = right(chunk)
            arena.advertise(chunk)
        self.state = "sealing"
        self.post(self._sealed)

    def _reverify(self) -> None:
        if self.state != "ready" or self.arena is None:
            self.post(self._dropped)
            return
        bad = sum(have != right(c) for c, have in enumerate(self.arena.contents))
        self.post(lambda epoch: m.Reverified(epoch=epoch, member=self.name, shard=SHARD, version=1, bad_chunks=bad))
        if bad:
            self.arenas.close()
            self.state = "ended"

    def drop(self) -> None:
        if self.state == "ready" and self.arena is not None:
            self.world.tell(f"{self.name} drops it")
            self.arenas.close()
            self.state = "ended"
            self.post(self._dropped)

    # Serving

    def grant(self, reader: str, lease: str, answer: Callable[[Arena | None], None], since: float) -> None:
        """A lease, at once or as soon as there is an arena: a child may ask before its parent has heard of
        the shard."""
        if self.arena is not None and self.state in ("ready", "receiving"):
            self.arena.leases[lease] = reader
            answer(self.arena)
        elif self.state == "ended" or self.world.now > since + GRANT_SECONDS:
            answer(None)
        else:
            self.after(0.05, lambda: self.grant(reader, lease, answer, since))

    # Receiving

    def _receive(self, command: m.Receive) -> None:
        if self.state == "ready":
            self.post(self._completed)
            return
        if self.state in ("loading", "sealing", "ended", "new"):
            return
        self.world.require(self.honest, f"{self.name} with another layout is told to receive")
        self.world.require(self.name not in command.upstreams, "told to read from itself")
        self.upstreams = command.upstreams
        if self.receiver is None:
            self.arenas.make()
            self.receiver = Receiver(self.world.faults.chunks, self.world.now, OPTIONS)
        self.state = "receiving"
        self.handle(r.Assigned(command.upstreams))

    def handle(self, event: r.Event) -> None:
        receiver = self.receiver
        if receiver is None:
            return
        for command in receiver.handle(event, self.world.now):
            self._carry_out(command)
        if self.receiver is receiver and not receiver.done:
            self._arm(receiver)

    def _arm(self, receiver: Receiver) -> None:
        at = receiver.next_wakeup()
        if at == float("inf") or (self.world.now < self._tick_at <= at):
            return
        self._tick_at = at

        def ring() -> None:
            if self.receiver is receiver and self._tick_at <= self.world.now:
                self._tick_at = float("inf")
                self.handle(r.Tick())

        self.world.at(at, lambda: self.soon(ring))

    def _carry_out(self, command: r.Command) -> None:
        match command:
            case r.Connect(upstream):
                self._reads.connect(upstream)
            case r.Disconnect(upstream):
                self._reads.disconnect(upstream)
            case r.ReadPage(upstream, at):
                self.world.at(at, lambda: self.soon(lambda: self._reads.read_page(upstream)))
            case r.ReadChunk(chunk, upstream, generation):
                self._reads.read_chunk(chunk, upstream, generation)
            case r.Verify(chunk, generation):
                self.after(0.001, lambda: self._verify(chunk, generation))
            case r.Advertise(chunk):
                assert self.arena is not None
                self.world.require(self.arena.contents[chunk] == right(chunk), f"{self.name} offers a wrong chunk")
                self.arena.advertise(chunk)
            case r.Report(upstream, kind, detail):
                self._report(upstream, kind, detail)
            case r.Measured(upstream, rate):
                self.post(
                    lambda epoch: m.Measured(
                        epoch=epoch, member=self.name, shard=SHARD, version=1, upstream=upstream, rate=100 * rate
                    )
                )
            case r.Relocate(generation, verified, detail):
                self._relocate(generation, verified, detail)
            case r.Finish():
                self._finish()

    def _report(self, upstream: str, kind: m.LossKind, detail: str) -> None:
        self.world.tell(f"{self.name} reports {upstream}: {kind} {detail}")
        have = self.receiver.verified_count if self.receiver else 0
        self.post(
            lambda epoch: m.UpstreamLost(
                epoch=epoch,
                member=self.name,
                shard=SHARD,
                version=1,
                upstream=upstream,
                kind=kind,
                detail=detail,
                chunks_verified=have,
            )
        )

    def _verify(self, chunk: int, generation: int) -> None:
        if self.receiver is None or self.arena is None or generation != self.receiver.generation:
            return
        good = self.arena.contents[chunk] == right(chunk)
        self.handle(r.Verified(chunk, generation) if good else r.Corrupt(chunk, generation))

    def _relocate(self, generation: int, verified: tuple[int, ...], detail: str) -> None:
        self.world.tell(f"{self.name} leaves its arena: {detail}")
        self.arenas.move(verified)
        receiver = self.receiver
        self.after(0.05, lambda: self.receiver is receiver and self.handle(r.Relocated(generation)))

    def _finish(self) -> None:
        assert self.arena is not None and self.receiver is not None
        wrong = [c for c, have in enumerate(self.arena.contents) if have != right(c)]
        self.world.require(not wrong, f"{self.name} is ready with wrong chunks {wrong}")
        self.world.require(self.honest, f"{self.name} is ready with another layout")
        self.world.require(not self._reads.upstreams, "ready while it still reads")
        self.receiver = None
        self.state = "ready"
        self._end("received")
        self.post(self._completed)

    def _stop_receiving(self) -> None:
        """Leave everything: what is in flight may still be written, so the arena is never used again."""
        self._reads.disconnect_all()
        self.receiver = None
        self.arenas.close()

    # Ending

    def _deadline(self) -> None:
        if not self.outcome:
            self._stop_receiving()
            self.state = "ended"
            self.post(
                lambda epoch: m.GaveUp(
                    epoch=epoch, member=self.name, shard=SHARD, reason="deadline", read_storage=self.honest
                )
            )
            self._end("deadline")

    def _end(self, how: str) -> None:
        self.outcome = self.outcome or how
        self.world.tell(f"{self.name}: {how}")

    def check_end(self) -> None:
        """Called when the world ends: without faults, everybody got there before the deadline."""
        self.world.require(bool(self.outcome), f"{self.name} never ends: it is {self.state}")
        self.world.require(self.outcome != "deadline", f"{self.name} only ended by its deadline")
        if not self.honest:
            self.world.require(self.outcome.startswith("refused"), f"{self.name} with other tensors: {self.outcome}")
