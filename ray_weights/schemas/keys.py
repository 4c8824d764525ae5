"""Which weights (ModelKey) and which rank's part of them (ShardKey)."""

from __future__ import annotations

from typing import Literal

from ray_weights.schemas.base import Frozen

CapturePoint = Literal["raw", "processed"]


class ModelKey(Frozen):
    """Names one set of weights exactly: two replicas match only if every field is equal."""

    model: str
    """Name or path of the model as the user wrote it."""
    revision: str = ""
    """Commit, or the fingerprint of a local checkpoint."""
    dtype: str = ""
    """Data type that the engine runs in, for example "bfloat16"."""
    quantization: str = ""
    """Quantization method and its settings; "" for none."""
    parallel: str = ""
    """Sizes of the parallel groups, for example "tp2"."""
    capture: CapturePoint = "raw"
    """Where in loading the bytes were taken: before or after the engine repacks them."""
    engine: str = "torch"
    """Engine and version, for example "vllm 0.32.0": another version may lay tensors out differently."""
    device: str = ""
    """Device architecture, for example "cpu" or "sm_90"."""
    role: Literal["target", "draft"] = "target"
    """Target model, or draft model of speculative decoding."""

    def differing_fields(self, other: ModelKey) -> tuple[str, ...]:
        """Names of the fields in which the two keys differ, in declaration order."""
        return tuple(f for f in type(self).model_fields if getattr(self, f) != getattr(other, f))

    def __str__(self) -> str:
        details = [self.revision[:19], self.dtype, self.quantization, self.parallel, self.engine, self.device]
        if self.role == "draft":
            details.append("draft")
        shown = ", ".join(d for d in details if d)
        return f"{self.model} ({shown})" if shown else self.model


class ShardKey(Frozen):
    """One rank's part of a model: the unit of matching and of transfer."""

    model: ModelKey
    rank: str = ""
    """Position in every parallel dimension, for example "tp1"; "" where there is only one."""

    def __str__(self) -> str:
        return f"{self.model} rank {self.rank}" if self.rank else str(self.model)
