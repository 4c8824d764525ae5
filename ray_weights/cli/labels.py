"""Short names of members that are unique on one screen."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from ray_weights.schemas.members import MemberInfo


def member_labels(members: Sequence[MemberInfo]) -> dict[str, str]:
    """Node and device; where two have the same (several Ray nodes on one machine), the member's own name as well."""
    plain = {m.member: f"{m.node_name} {_short_device(m.device)}" for m in members}
    count = Counter(plain.values())
    return {m: label if count[label] == 1 else f"{label} [{m[:8]}]" for m, label in plain.items()}


def label_of(member: str, labels: dict[str, str], node: str = "") -> str:
    """Of a member that may be gone."""
    if member in labels:
        return labels[member]
    return f"{node} [{member[:8]}]" if node and node != "?" else member


def _short_device(device: str) -> str:
    kind, _, uuid = device.partition(":")
    return f"{kind}:{uuid.removeprefix('GPU-')[:8]}" if uuid else kind
