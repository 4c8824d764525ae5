"""A real READ between two processes of this host, through the transport that transfer actors use.

Arguments: "source" or "reader", the backend, DRAM or VRAM. The source writes its card as one line and serves until its
standard input ends; the reader reads that line, then the memory, and answers.
"""

from __future__ import annotations

import base64
import json
import os
import sys
import time

import numpy as np

from ray_weights.doctor.facts import ReadFacts
from ray_weights.doctor.isolated import answer
from ray_weights.errors import TransportError
from ray_weights.memory.arena import Region

NBYTES = 32 << 20
_DEADLINE_SECONDS = 20.0
_CARD = "RAY_WEIGHTS_CARD "


def main(role: str, backend: str, kind: str) -> None:
    if role == "reader":
        os.environ["UCX_PROTO_INFO"] = "y"
        os.environ["UCX_LOG_LEVEL"] = "info"
    region, keep = _memory(kind)
    from ray_weights.transports.nixl import NixlSettings, NixlTransport

    transport = NixlTransport(f"doctor-{role}", NixlSettings(backend=backend))
    transport.register(region)
    if role == "source":
        card = base64.b64encode(transport.card()).decode()
        print(f"\n{_CARD}{json.dumps({'address': region.address, 'card': card})}", flush=True)
        sys.stdin.read()
    else:
        answer(_read(transport, region, kind).model_dump_json())
    del keep
    os._exit(0)  # nothing to tidy up, and NIXL's own end has been known to hang


def _memory(kind: str) -> tuple[Region, object]:
    if kind == "VRAM":
        import torch

        from ray_weights.memory.device import DeviceArena

        uuid = f"GPU-{torch.cuda.get_device_properties(0).uuid}"
        arena = DeviceArena.create("doctor", NBYTES, 4096, uuid)
        return arena.data, arena
    block = np.ones(NBYTES, dtype=np.uint8)
    return Region(block.ctypes.data, NBYTES, 0, "DRAM"), block


def _read(transport, region: Region, kind: str) -> ReadFacts:  # type: ignore[no-untyped-def]
    line = next((x for x in sys.stdin if x.startswith(_CARD)), "")
    if not line:
        return ReadFacts(memory=kind, error="the source did not start")
    source = json.loads(line.removeprefix(_CARD))
    deadline = time.monotonic() + _DEADLINE_SECONDS
    rate = 0.0
    try:
        peer = transport.connect(base64.b64decode(source["card"]))
        remote = Region(source["address"], region.nbytes, region.device_index, region.kind)
        plan = transport.prepare(peer, [region], [remote])
        for _ in range(3):
            started = time.monotonic()
            ticket = transport.start(plan, 0)
            while (state := transport.poll(ticket)).status.value == "pending":
                if time.monotonic() > deadline:
                    return ReadFacts(memory=kind, error=f"no end within {_DEADLINE_SECONDS:.0f} s")
                time.sleep(0.0005)
            if state.status.value == "failed":
                return ReadFacts(memory=kind, error=state.reason)
            transport.release(ticket)
            rate = max(rate, region.nbytes / (time.monotonic() - started))
    except TransportError as e:
        return ReadFacts(memory=kind, error=str(e))
    return ReadFacts(memory=kind, rate=rate)


if __name__ == "__main__":
    main(*sys.argv[1:4])
