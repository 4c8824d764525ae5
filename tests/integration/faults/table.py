"""Writes the table of docs/reliability.md from what the fault tests recorded last:

python -m pytest tests/integration/faults tests/integration/bench && python -m tests.integration.faults.table
"""

from __future__ import annotations

import json
from pathlib import Path

from tests.integration.faults.record import CACHE_KEY, Row

ROOT = Path(__file__).parents[3]
PAGE = ROOT / "docs" / "reliability.md"
BEGIN, END = "<!-- faults: begin -->", "<!-- faults: end -->"


def main() -> None:
    stored = json.loads((ROOT / ".pytest_cache" / "v" / CACHE_KEY).read_text())
    rows = sorted((Row(**r) for r in stored), key=lambda r: (r.test, r.fault))
    head, _, rest = PAGE.read_text().partition(BEGIN)
    _, _, tail = rest.partition(END)
    PAGE.write_text(f"{head}{BEGIN}\n{table(rows)}\n{END}{tail}")
    print(f"{len(rows)} rows in {PAGE}")


def table(rows: list[Row]) -> str:
    lines = [
        "| fault | how it was injected | what happened | added seconds | MB read again | wrong bytes | test |",
        "|---|---|---|---:|---:|---:|---|",
    ]
    for r in rows:
        file, _, name = r.test.rpartition("/")[2].partition("::")
        lines.append(
            f"| {r.fault} | {r.how} | {r.happened} | {r.added_seconds:.1f} | {r.read_again_nbytes / 1e6:.2f} "
            f"| {r.wrong_bytes} | `{file}::{name}` |"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    main()
