"""What a run has measured, as it is written to JSON."""

from __future__ import annotations

from collections.abc import Iterable

from pydantic import BaseModel, ConfigDict


class Record(BaseModel):
    """Immutable, and nothing but the fields declared."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Trial(Record):
    """One case measured once."""

    case: str
    label: str
    """The case in words, for tables."""
    baseline: bool = False
    """Not the service, but what it is compared with."""
    repeat: int
    receivers: int
    nbytes: int
    """M: what each receiver gets."""
    seconds: tuple[float, ...]
    """Per receiver: from its asking until all is there and verified, as its process sees it."""
    span: float
    """Seconds from the first receiver's asking until the last one is done."""
    transfer_seconds: tuple[float, ...] = ()
    """Per receiver: the part that its transfer actor has measured, from its assignment on."""
    first_chunk_seconds: tuple[float, ...] = ()
    """Per receiver: until its first chunk was there."""
    origin_sent: int = 0
    """Bytes that left the origin's link, all headers and Ray's own messages included."""
    received: tuple[int, ...] = ()
    """Bytes that came in over each receiver's link."""
    cpu_busy: float = 0.0
    """Share of all cores of the machine that was in use, by anybody."""
    cpu_by_host: tuple[tuple[str, float], ...] = ()
    """CPU seconds of the transfer actor of each host."""
    cpu_by_thread: tuple[tuple[str, float], ...] = ()
    """CPU seconds of the receivers' transfer actors together, by the name of the thread."""
    coordinator_calls: int = 0
    facts: tuple[tuple[str, float], ...] = ()
    """What only this case has."""


def add_up(shares: Iterable[Iterable[tuple[str, float]]]) -> tuple[tuple[str, float], ...]:
    """Sums by name."""
    sums: dict[str, float] = {}
    for named in shares:
        for name, number in named:
            sums[name] = sums.get(name, 0.0) + number
    return tuple(sums.items())


class Missed(Record):
    """A case that could not be measured."""

    case: str
    reason: str


class Machine(Record):
    cpu: str
    cores: int
    memory_gib: float
    kernel: str
    load_before: float
    """Load average over the minute before the run."""
    versions: tuple[tuple[str, str], ...]


class Results(Record):
    started: str
    """ISO 8601, UTC."""
    seconds: float
    quick: bool
    machine: Machine
    link_bytes_per_second: float
    nbytes: int
    chunk_nbytes: int
    window: int
    trials: tuple[Trial, ...]
    missed: tuple[Missed, ...] = ()
    interrupted: bool = False

    def of(self, case: str) -> tuple[Trial, ...]:
        return tuple(t for t in self.trials if t.case == case)
