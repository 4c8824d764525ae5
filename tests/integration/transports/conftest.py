"""Transports that can reach each other: every contract test runs on each kind."""

from __future__ import annotations

import uuid
from collections.abc import Iterator

import pytest

from ray_weights.transports.memory import Fabric
from ray_weights.transports.nixl import NixlTransport
from ray_weights.transports.transport import Transport, TransportUnavailable
from tests.integration.transports.reading import MakeTransport


@pytest.fixture(params=["in-memory", "nixl"])
def make(request: pytest.FixtureRequest) -> Iterator[MakeTransport]:
    """Makes transports that can reach each other, under names of their own."""
    made: list[Transport] = []
    fabric = Fabric()

    def make_one(name: str) -> Transport:
        unique = f"{name}-{uuid.uuid4().hex[:8]}"
        transport: Transport
        if request.param == "in-memory":
            transport = fabric.join(unique)
        else:
            transport = make_nixl(unique)
        made.append(transport)
        return transport

    yield make_one
    for transport in made:
        transport.close()


def make_nixl(name: str) -> NixlTransport:
    try:
        return NixlTransport(name)
    except TransportUnavailable as error:
        pytest.skip(str(error))
