"""NIXL between real processes: what a source does that works, dies, stops or never runs Python again."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import pytest

from ray_weights.memory.arena import Region
from ray_weights.memory.host import HostArena
from ray_weights.transports.transport import PeerUnknown, ReadStatus, Transport
from tests.integration.transports.conftest import make_nixl
from tests.integration.transports.reading import READ_TIMEOUT_S, chunks, empty_arena, pattern, read, wait

NBYTES = 32 << 20
CHUNK = 1 << 20


@dataclass
class Source:
    """A source in a process of its own."""

    process: subprocess.Popen[str]
    card: bytes
    data: Region

    def signal(self, number: signal.Signals) -> None:
        os.kill(self.process.pid, number)

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()


MakeSource = Callable[..., Source]


@pytest.fixture(params=["all", "tcp"])
def links(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Which of UCX's transports this process and its sources may use: the best (CMA within a host), or TCP."""
    monkeypatch.setenv("UCX_TLS", request.param)
    return str(request.param)


@pytest.fixture
def tcp(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("UCX_TLS", "tcp")


@pytest.fixture
def make_source() -> Iterator[MakeSource]:
    made: list[Source] = []

    def make(mode: str = "idle") -> Source:
        command = [sys.executable, "-m", "tests.integration.transports.source_process", str(NBYTES), mode]
        process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        assert process.stdout is not None
        card, address, _ = json.loads(process.stdout.readline())
        made.append(Source(process, bytes.fromhex(card), Region(address, NBYTES)))
        return made[-1]

    yield make
    for source in made:
        source.kill()
        for stream in (source.process.stdin, source.process.stdout):
            assert stream is not None
            stream.close()


@pytest.fixture
def reader() -> Iterator[Transport]:
    """Made by the test's first use of it, after the environment is set."""
    transport = make_nixl(f"reader-{os.urandom(4).hex()}")
    yield transport
    transport.close()


@pytest.fixture
def here(reader: Transport) -> Iterator[HostArena]:
    arena = empty_arena(NBYTES)
    reader.register(arena.data)
    yield arena
    arena.close()


def test_another_process_is_read_at_any_offset(
    links: str, make_source: MakeSource, reader: Transport, here: HostArena
) -> None:
    source = make_source()
    peer = reader.connect(source.card)
    plan = reader.prepare(peer, chunks(here.data, CHUNK), chunks(source.data, CHUNK))
    assert read(reader, plan, 17).status is ReadStatus.DONE
    expected = pattern(NBYTES)
    assert here.view(17 * CHUNK, CHUNK) == expected[17 * CHUNK : 18 * CHUNK]
    assert not any(here.view(0, 17 * CHUNK))
    odd = reader.prepare(peer, [here.data.part(3, 12345)], [source.data.part(1001, 12345)])
    assert read(reader, odd, 0).status is ReadStatus.DONE
    assert here.view(3, 12345) == expected[1001 : 1001 + 12345]


def test_a_source_whose_python_is_busy_still_serves(
    links: str, make_source: MakeSource, reader: Transport, here: HostArena
) -> None:
    source = make_source("busy")
    peer = reader.connect(source.card)
    plan = reader.prepare(peer, chunks(here.data, CHUNK), chunks(source.data, CHUNK))
    for index in range(len(plan)):
        assert read(reader, plan, index).status is ReadStatus.DONE
    assert here.view(0, NBYTES) == pattern(NBYTES)


def test_reads_from_a_killed_source_fail_and_others_go_on(
    links: str, make_source: MakeSource, reader: Transport, here: HostArena
) -> None:
    source, other = make_source(), make_source()
    peer, second = reader.connect(source.card), reader.connect(other.card)
    plan = reader.prepare(peer, chunks(here.data, CHUNK), chunks(source.data, CHUNK))
    assert read(reader, plan, 0).status is ReadStatus.DONE
    source.kill()
    state = read(reader, plan, 1)
    assert (state.status, peer in state.reason) == (ReadStatus.FAILED, True)
    assert read(reader, plan, 2).status is ReadStatus.FAILED
    reader.release_plan(plan)
    reader.disconnect(peer)
    spare = reader.prepare(second, chunks(here.data, CHUNK), chunks(other.data, CHUNK))
    assert read(reader, spare, 1).status is ReadStatus.DONE
    assert here.view(0, 2 * CHUNK) == pattern(NBYTES)[: 2 * CHUNK]


def test_reads_under_way_when_their_source_is_killed_all_end(
    links: str, make_source: MakeSource, reader: Transport, here: HostArena
) -> None:
    source = make_source()
    peer = reader.connect(source.card)
    plan = reader.prepare(peer, chunks(here.data, 8 * CHUNK), chunks(source.data, 8 * CHUNK))
    tickets = [reader.start(plan, index) for index in range(len(plan))]
    source.kill()
    for ticket in tickets:
        wait(reader, ticket)
        reader.release(ticket)
    assert read(reader, plan, 0).status is ReadStatus.FAILED


def test_a_card_of_a_dead_source_is_refused(links: str, make_source: MakeSource, reader: Transport) -> None:
    source = make_source()
    source.kill()
    with pytest.raises(PeerUnknown):
        reader.connect(source.card)


def test_a_read_from_a_stopped_source_stays_pending_and_lands_after_it_was_given_up(
    tcp: None, make_source: MakeSource, reader: Transport, here: HostArena
) -> None:
    source, other = make_source(), make_source()
    peer, second = reader.connect(source.card), reader.connect(other.card)
    plan = reader.prepare(peer, [here.data.part(0, CHUNK)], [source.data.part(0, CHUNK)])
    spare = reader.prepare(second, [here.data.part(CHUNK, CHUNK)], [other.data.part(CHUNK, CHUNK)])
    source.signal(signal.SIGSTOP)
    ticket = reader.start(plan, 0)
    assert read(reader, spare, 0).status is ReadStatus.DONE  # others are not held up
    assert reader.poll(ticket).status is ReadStatus.PENDING
    reader.abandon(ticket)
    reader.release_plan(plan)
    reader.disconnect(peer)
    assert not any(here.view(0, CHUNK))
    source.signal(signal.SIGCONT)
    expected, deadline = pattern(NBYTES)[:CHUNK], time.monotonic() + READ_TIMEOUT_S
    while here.view(0, CHUNK) != expected:  # this is why its region is never used again
        assert time.monotonic() < deadline
        os.sched_yield()
