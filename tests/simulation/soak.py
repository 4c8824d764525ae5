"""Random worlds of faults, as many as fit into the time: python -m tests.simulation.soak --minutes 10

--seed n replays one and prints what happened.
"""

from __future__ import annotations

import argparse
import sys
import time

from tests.simulation.world import Violation, World


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--first", type=int, default=None, help="first seed; default: from the clock")
    parser.add_argument("--seed", type=int, default=None, help="replay one seed")
    options = parser.parse_args()
    if options.seed is not None:
        world = World(options.seed)
        try:
            world.run()
        except Violation as e:
            print(e)
            return 1
        print(world.report(lines=400))
        return 0
    started = time.monotonic()
    first = options.first if options.first is not None else int(time.time())
    seeds = events = bad = 0
    shown = started
    while (now := time.monotonic()) < started + 60 * options.minutes:
        world = World(first + seeds)
        try:
            world.run()
        except Violation as e:
            bad += 1
            print(f"\n{e}\n", flush=True)
        seeds, events = seeds + 1, events + world.events
        if now - shown > 10:
            shown = now
            print(f"{(now - started) / 60:.1f} min: {seeds} seeds, {events} events, {bad} bad", flush=True)
    print(f"{seeds} seeds from {first} on, {events} events in {options.minutes:g} minutes: {bad} bad")
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
