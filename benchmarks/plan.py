"""What a run does, and how large; the driver gets it as JSON."""

from __future__ import annotations

from benchmarks.results import Record

MIB = 1 << 20


class Plan(Record):
    """The full measurement, unless `quick` shrinks it."""

    owner_pid: int
    """Process that made the namespaces: their names carry it."""
    quick: bool = False
    cases: tuple[str, ...] = ()
    """Names of cases to measure, all if empty."""
    receivers: int = 7
    nbytes: int = 80 * MIB
    link_rate: float = 15e6
    """Bytes per second of each link and direction: slow enough for eight hosts on two cores."""
    repeats: int = 3
    lone_repeats: int = 5
    baseline_repeats: int = 2
    pair_nbytes: int = 1024 * MIB
    pair_repeats: int = 5
    chunk_nbytes: int | None = None
    """None for what the service would choose for this size."""
    window: int = 3

    @property
    def swarm_hosts(self) -> tuple[str, ...]:
        return tuple(f"h{i}" for i in range(self.receivers + 1))

    @property
    def hosts(self) -> tuple[str, ...]:
        """The origin first; the cluster's head and the pair's host have no shaped link."""
        return (*self.swarm_hosts, "head", "pair")

    def wants(self, case: str) -> bool:
        """Whether a case is to be measured; a lone receiver always is, as everything is divided by it."""
        return not self.cases or case == "lone" or any(case.startswith(c) for c in self.cases)


def quick_plan(owner_pid: int, cases: tuple[str, ...] = ()) -> Plan:
    """Small and once, to see that everything works; its numbers say little."""
    return Plan(
        owner_pid=owner_pid, quick=True, cases=cases, receivers=3, nbytes=24 * MIB, repeats=1, lone_repeats=2,
        baseline_repeats=1, pair_nbytes=256 * MIB, pair_repeats=2,
    )  # fmt: skip
