"""A source in a process of its own: `python source_process.py NBYTES busy|idle`. An idle one ends with its
standard input; the interpreter of a busy one is in one endless call, so it has to be killed.

Prints one line of JSON: its card in hex, where its data lies, and its pid. The data is pattern(NBYTES).
"""

from __future__ import annotations

import collections
import itertools
import json
import os
import sys

from ray_weights.memory.host import HostArena
from ray_weights.transports.nixl import NixlTransport
from tests.integration.transports.reading import pattern


def main(nbytes: int, mode: str) -> None:
    arena = HostArena.create(f"test:{os.getpid()}", nbytes, 4096)
    arena.view(0, nbytes)[:] = pattern(nbytes)
    transport = NixlTransport(f"source-{os.getpid()}")
    transport.register(arena.data)
    print(json.dumps([transport.card().hex(), arena.data.address, os.getpid()]), flush=True)
    if mode == "busy":
        collections.deque(itertools.repeat(0), maxlen=0)  # never ends, never gives the interpreter to a thread
    sys.stdin.read()


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2])
