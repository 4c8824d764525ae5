"""Every error that ray_weights raises.

RayWeightsError
├── ConfigError             an option is unknown or has a value that cannot work
├── UnknownKey              nobody has published this key
├── LayoutMismatch          the receiver's tensors differ from the source's
├── VersionConflict         the same version number with different bytes
├── CoordinatorUnavailable  no answer from the coordinator within the deadline
├── DeadlineExceeded        the weights did not arrive in time
├── OriginFailed            the replica that loaded from storage failed, nobody else can
├── SourceLost              every source of the version is gone
├── LimitReached            a bounded queue or table is full
├── Fenced                  a message from another epoch of the coordinator
├── CaptureUnsupported      this model's tensors cannot live in an arena
├── ArenaError
│   ├── ArenaTooLarge       would not fit into the memory limit of its node
│   └── ArenaGone           the owner of the memory has ended
└── TransportError          a transport failed in a way that retrying cannot mend

All of them take one message, so that they survive pickling across actors. Who catches what: the vLLM loader
catches RayWeightsError as a whole and falls back to storage (unless `fallback` is off); Python callers see
them as they are.
"""

from __future__ import annotations


class RayWeightsError(Exception):
    """Base of all errors of this package. Catch it to fall back to another way of getting weights."""


class ConfigError(RayWeightsError, ValueError):
    """An option is unknown or impossible. The caller mends the option named in the message."""


class UnknownKey(RayWeightsError, KeyError):
    """Nobody has published this key. The message names the closest known ones; the caller mends the name."""

    def __str__(self) -> str:  # KeyError would print the repr
        return str(self.args[0]) if self.args else ""


class LayoutMismatch(RayWeightsError):
    """The receiver's tensors are not the source's. The message names the first tensor and field that
    differ."""


class VersionConflict(RayWeightsError):
    """This version exists with other bytes. The caller publishes under a new version number."""


class CoordinatorUnavailable(RayWeightsError):
    """No coordinator answered within the deadline. The loader falls back; a person runs `ray-weights
    doctor`."""


class DeadlineExceeded(RayWeightsError, TimeoutError):
    """The weights did not arrive in time. The caller falls back to storage or asks again with more time."""


class OriginFailed(RayWeightsError):
    """The replica that read storage failed, with the error that it met. Waiting replicas try storage
    themselves."""


class SourceLost(RayWeightsError):
    """Every source of this version is gone. The caller falls back to storage or publishes again."""


class LimitReached(RayWeightsError):
    """A bounded table is full. The caller asks again later, or an operator raises the limit that is named."""


class Fenced(RayWeightsError):
    """The message belongs to another epoch or incarnation. The sender joins again."""


class CaptureUnsupported(RayWeightsError):
    """Some of this model's tensors cannot live in an arena. The replica serves, but is no source."""


class ArenaError(RayWeightsError):
    """Memory for a shard could not be had or was lost."""


class ArenaTooLarge(ArenaError):
    """The shard would not fit into the memory limit of its node. Raised before anything is touched."""


class ArenaGone(ArenaError):
    """The process that owned this memory has ended, or refuses to share it. The caller opens the shard
    again."""


class TransportError(RayWeightsError):
    """A transport failed. The receiver re-parents; when no transport works, the loader falls back."""
