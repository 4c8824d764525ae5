"""What a peer publishes so that others can read its memory."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass

from ray_weights.memory.arena import Region
from ray_weights.transports.regions import first_uncovered, overlap
from ray_weights.transports.transport import PeerUnknown


@dataclass(frozen=True, slots=True)
class Card:
    """A snapshot of one transport: one line of JSON, then what the transport itself needs."""

    transport: str
    peer: str
    regions: dict[int, Region]
    """Registered memory by serial number. A number is never used again, an address is."""
    metadata: bytes = b""

    def to_bytes(self) -> bytes:
        regions = {serial: asdict(region) for serial, region in self.regions.items()}
        head = {"transport": self.transport, "peer": self.peer, "regions": regions}
        return json.dumps(head).encode() + b"\n" + self.metadata

    @classmethod
    def parse(cls, data: bytes, transport: str) -> Card:
        """PeerUnknown unless it is a card of this kind of transport."""
        head, _, metadata = data.partition(b"\n")
        try:
            content = json.loads(head)
            regions = {int(serial): Region(**region) for serial, region in content["regions"].items()}
            card = cls(content["transport"], content["peer"], regions, metadata)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise PeerUnknown("this is no peer's card") from error
        if card.transport != transport:
            raise PeerUnknown(f"this is a card for {card.transport!r}, not for {transport!r}")
        return card

    def reuses(self, loaded: dict[int, Region]) -> bool:
        """Whether memory was registered anew that had been known under a number that is gone."""
        gone = [region for serial, region in loaded.items() if serial not in self.regions]
        new = [region for serial, region in self.regions.items() if serial not in loaded]
        return any(overlap(old, fresh) for old in gone for fresh in new)


def check_registered(
    peer: str, local: Sequence[Region], own: Iterable[Region], remote: Sequence[Region], readable: Iterable[Region]
) -> None:
    """ValueError for a local region that is not registered here, PeerUnknown for a remote one that is not there."""
    if (index := first_uncovered(local, own)) is not None:
        raise ValueError(f"local region {index} is not registered")
    if (index := first_uncovered(remote, readable)) is not None:
        raise PeerUnknown(f"peer {peer!r} has not registered remote region {index}: is its card old?")
