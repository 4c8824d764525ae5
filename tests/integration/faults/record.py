"""What each fault did, kept by pytest's cache; `python -m tests.integration.faults.table` makes a table of it."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

from tests.integration.faults.engines import Opening

if TYPE_CHECKING:
    import pytest

CACHE_KEY = "ray_weights/faults"


@dataclass(frozen=True, slots=True)
class Row:
    """One fault that was tried."""

    fault: str
    how: str
    happened: str
    added_seconds: float
    read_again_nbytes: int
    wrong_bytes: int
    test: str


@dataclass(frozen=True, slots=True)
class Recorder:
    """Of one test; undisturbed(n) is how long n receivers take when nothing breaks."""

    config: pytest.Config
    test: str
    undisturbed_seconds: dict[int, float]

    def row(
        self, fault: str, *, how: str, happened: str, openings: list[Opening], wrong_bytes: int, seconds: float = 0.0
    ) -> None:
        """`openings` of the receivers that were to go on; `seconds` where another time than theirs counts."""
        taken = seconds or max(o.seconds for o in openings)
        usual = self.undisturbed_seconds[min(max(1, len(openings)), max(self.undisturbed_seconds))]
        row = Row(
            fault=fault,
            how=how,
            happened=happened,
            added_seconds=round(max(0.0, taken - usual), 1),
            read_again_nbytes=sum(o.stats.read_again_nbytes for o in openings if o.stats),
            wrong_bytes=wrong_bytes,
            test=self.test,
        )
        keep(row, self.config)


def keep(row: Row, config: pytest.Config) -> None:
    """In the place of the one that the same test kept before."""
    assert config.cache is not None
    rows = [r for r in config.cache.get(CACHE_KEY, []) if (r["test"], r["fault"]) != (row.test, row.fault)]
    config.cache.set(CACHE_KEY, [*rows, asdict(row)])
