"""Transfer actors without Ray: real shard tables, data planes and arenas around a real registry, in one process."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Awaitable, Callable
from typing import Any

import numpy as np
import torch  # here, because the first import of it takes seconds that a test would wait for
from pydantic import TypeAdapter

from ray_weights.actors.arenas import Arenas
from ray_weights.actors.plane import DataPlane
from ray_weights.actors.shard_table import ShardTable
from ray_weights.actors.surroundings import Surroundings
from ray_weights.config import ServiceSettings
from ray_weights.core.layout import Layout, TensorFacts, build_layout
from ray_weights.core.outbox import Outgoing
from ray_weights.core.registry import Registry, RegistryOptions
from ray_weights.errors import CoordinatorUnavailable, Fenced
from ray_weights.memory.handles import ArenaHandle
from ray_weights.memory.mapping import map_arena
from ray_weights.schemas import messages as m
from ray_weights.schemas.keys import ModelKey, ShardKey
from ray_weights.schemas.leases import LeaseRequest, Opened, OpenRequest, SealRequest
from ray_weights.schemas.members import MemberInfo
from ray_weights.transports.memory import Fabric

SHARD = ShardKey(model=ModelKey(model="policy"))
NBYTES = 40_960
CHUNK_NBYTES = 4096
LAYOUT = build_layout([TensorFacts("w", (NBYTES,), "uint8", (1,), 1, 0, NBYTES)], {"uint8": 1})
_HANDLE: TypeAdapter[Any] = TypeAdapter(ArenaHandle)


def request(
    version: int | None = None,
    *,
    layout: Layout | None = None,
    may_load: bool = False,
    timeout: float = 5.0,
    pid: int | None = None,
) -> OpenRequest:
    packed = layout.model_dump_json().encode() if layout is not None else b""
    pid = pid or os.getpid()
    return OpenRequest(shard=SHARD, version=version, layout=packed, may_load=may_load, timeout=timeout, pid=pid)


def contents(opened: Opened) -> np.ndarray:
    mapped = map_arena(_HANDLE.validate_json(opened.handle), writable=False)
    copy = mapped.tensor().numpy().copy()
    mapped.close()
    return copy


def arena_of(opened: Opened) -> str:
    arena_id: str = _HANDLE.validate_json(opened.handle).arena_id
    return arena_id


def fill(opened: Opened, value: int, nbytes: int = NBYTES) -> None:
    mapped = map_arena(_HANDLE.validate_json(opened.handle), writable=True)
    mapped.tensor()[:nbytes] = torch.tensor(value, dtype=torch.uint8)
    mapped.close()


async def outcome(answer: Awaitable[Opened]) -> str:
    """ "arrived v1", "load v1", or the name of the error."""
    try:
        opened = await answer
    except Exception as e:
        return type(e).__name__
    return f"{opened.outcome} v{opened.version}"


class _Metrics:
    def __getattr__(self, name: str) -> Callable[..., None]:
        return lambda *_, **__: None


class _Remote:
    def __init__(self, call: Callable[..., Any]) -> None:
        self._call = call

    def remote(self, *arguments: Any) -> Any:
        return asyncio.ensure_future(self._call(*arguments))


class _Peer:
    """The handle of another transfer actor."""

    def __init__(self, house: House, member: str) -> None:
        self._house, self._member = house, member

    def __getattr__(self, name: str) -> _Remote:
        async def call(*arguments: Any) -> Any:
            await asyncio.sleep(self._house.delays.get((self._member, name), 0))
            if self._member in self._house.dead:
                raise ValueError("it is dead")
            table = self._house.tables[self._member]
            match name:
                case "grant":
                    lease = await table.serving.grant(LeaseRequest.model_validate_json(arguments[0]))
                    return lease.model_dump_json().encode()
                case "manifest_of":
                    return await table.serving.manifest_of(ShardKey.model_validate_json(arguments[0]), arguments[1])
                case "release":
                    table._here.leases.end(arguments[0])
                case "holds_lease":
                    return table._here.leases.holds(arguments[0])

        return _Remote(call)


class _Here(Surroundings):
    house: House

    def actor(self, member: str) -> Any:
        return _Peer(self.house, member)


class _Link:
    """A member's line to the registry."""

    def __init__(self, house: House) -> None:
        self._house = house
        self.up = asyncio.Event()
        self.up.set()

    async def post(self, make: Callable[[int], m.Event], timeout: float) -> None:
        try:
            await asyncio.wait_for(self.up.wait(), timeout)
        except TimeoutError as e:
            raise CoordinatorUnavailable("the line is cut") from e
        while True:
            event = make(self._house.registry.epoch)
            await asyncio.sleep(self._house.latency)
            try:
                answers = self._house.registry.handle(event, time.monotonic())
            except Fenced:
                self._house.come_back(event.member)
                continue
            self._house.posted.append(event)
            self._house.tell(f"{event.member} -> {event.type} v{getattr(event, 'version', '')}")
            self._house.send(answers)
            return


class House:
    """`latency`: seconds of a message between a member and the registry; `chunk_rate`: chunks per second that a
    receiver reads at most, 0 for no limit."""

    def __init__(self, *members: str, latency: float = 0.0, chunk_rate: float = 0.0) -> None:
        self.fabric = Fabric()
        self.latency = latency
        self.settings = ServiceSettings(chunk_nbytes=CHUNK_NBYTES, receive_rate=chunk_rate * CHUNK_NBYTES)
        self.registry = Registry(1, time.monotonic())
        self.tables: dict[str, ShardTable] = {}
        self.links: dict[str, _Link] = {}
        self.planes: list[DataPlane] = []
        self.delays: dict[tuple[str, str], float] = {}
        """(member, method) -> seconds that this call takes."""
        self.dead: set[str] = set()
        self.posted: list[m.Event] = []
        self.tell: Callable[[str], None] = lambda what: None
        """Hears of every message that arrives."""
        for member in members:
            self.add(member)

    def add(self, member: str) -> ShardTable:
        plane = DataPlane(self.fabric.join(member), 1)
        arenas = Arenas(plane.transport, f"house{os.getpid()}{member}", "cpu", 64, 0)
        link = self.links[member] = _Link(self)
        here = _Here(member, f"actor-{member}", plane, arenas, self.settings, link, _Metrics())  # type: ignore[arg-type]
        _Here.house = self
        self.planes.append(plane)
        self.tables[member] = ShardTable(here)
        self.join(member)
        return self.tables[member]

    def join(self, member: str) -> None:
        self.send(self.registry.handle(self.describe(member), time.monotonic()))
        self.registry.validate()

    def get_actor(self, name: str, namespace: str) -> _Peer:
        """In the place of Ray's."""
        return _Peer(self, name.removeprefix("actor-"))

    def knows(self, member: str) -> bool:
        """Whether it has joined the present epoch."""
        return any(info.member == member for info in self.registry.members())

    def come_back(self, member: str) -> None:
        """Join a new epoch, and ask again for what it was not told of."""
        self.join(member)
        self.tables[member].ask_again()

    def describe(self, member: str) -> m.Join:
        info = MemberInfo(member=member, actor_name=f"actor-{member}", node_id=member, node_name=member, device="cpu")
        holdings, receiving, loading = self.tables[member].describe()
        epoch = self.registry.epoch
        return m.Join(epoch=epoch, member=member, info=info, holdings=holdings, receiving=receiving, loading=loading)

    def send(self, messages: list[Outgoing]) -> None:
        loop = asyncio.get_running_loop()
        for each in messages:
            loop.call_later(self.latency, self._deliver, each)
        at, registry = self.registry.next_wakeup(), self.registry
        if at is not None:
            loop.call_later(max(0.0, at - time.monotonic()) + 0.001, self._tick, registry)

    def restart(self, *expected: str, recovery: float = 0.2) -> None:
        """The coordinator of a new epoch, which knows nothing yet."""
        options = RegistryOptions(recovery_seconds=recovery)
        names = frozenset(f"actor-{x}" for x in expected)
        self.registry = Registry(self.registry.epoch + 1, time.monotonic(), options, names)

    def die(self, member: str) -> None:
        self.dead.add(member)
        self.fabric.kill(member)
        self.send(self.registry.member_died(member, time.monotonic()))

    def states(self, version: int = 1) -> dict[str, str]:
        """State by member, as the registry sees it."""
        versions = [v for s in self.registry.status() for v in s.versions if v.version == version]
        return {r.member: r.state for v in versions for r in v.replicas}

    def here(self, member: str) -> list[tuple[int | None, str]]:
        """(version, state) of every shard of a member."""
        return [(s.version, s.state) for s in self.tables[member].shards.all]

    def open(self, member: str, version: int | None = None, **options: Any) -> asyncio.Task[str]:
        """Ask, and tell how it ends."""
        return asyncio.ensure_future(outcome(self.tables[member].open(request(version, **options))))

    async def create(self, member: str, version: int = 1) -> Opened:
        return await self.tables[member].filling.create(request(version, layout=LAYOUT, may_load=True))

    async def seal(self, member: str, opened: Opened, from_storage: bool = False) -> None:
        await self.tables[member].filling.seal(
            SealRequest(shard=SHARD, version=opened.version, arena_id=arena_of(opened), from_storage=from_storage)
        )

    async def publish(self, member: str, version: int = 1, value: int = 7) -> None:
        opened = await self.create(member, version)
        fill(opened, value)
        await self.seal(member, opened)

    async def until(self, condition: Callable[[], Any], what: str, seconds: float = 10.0) -> None:
        deadline = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < deadline, f"never: {what}"
            await asyncio.sleep(0.005)

    def close(self) -> None:
        for plane in self.planes:
            plane.stop()

    def _deliver(self, each: Outgoing) -> None:
        if each.member not in self.dead and each.command.epoch == self.registry.epoch:
            version = getattr(each.command, "version", "")
            self.tell(f"{each.member} <- {each.command.type} v{version} question {each.command.question}")
            self.tables[each.member].deliver(each.command)

    def _tick(self, registry: Registry) -> None:
        if registry is self.registry:
            self.send(registry.tick(time.monotonic()))
