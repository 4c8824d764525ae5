"""Options of the load format, as vLLM passes them in model_loader_extra_config."""

from __future__ import annotations

from collections.abc import Mapping

from pydantic import Field, JsonValue, ValidationError

from ray_weights.errors import ConfigError
from ray_weights.schemas.base import Frozen


class LoaderOptions(Frozen):
    """Every option has a default that suits most; `{}` is a complete configuration."""

    timeout_s: float = Field(default=900.0, gt=0)
    """Seconds to wait for weights, including the wait for the replica that reads storage. Then this one reads too."""
    connect_timeout_s: float = Field(default=30.0, gt=0)
    """Seconds to wait for Ray, the coordinator and the node's transfer actor."""
    fallback: bool = True
    """Read storage when the weights cannot be had from another replica. False: fail, saying why."""
    fallback_load_format: str = "auto"
    """vLLM load format by which the origin reads storage, and every replica that falls back."""
    fallback_extra_config: dict[str, JsonValue] = Field(default_factory=dict)
    """model_loader_extra_config of that load format."""
    model_name: str | None = None
    """Name of the model in keys, where replicas know one checkpoint under different paths. None: as vLLM has it."""
    version: int | None = Field(default=None, ge=1)
    """Version to load; None: the newest there is."""
    weights_uri: str | None = None
    """Object store URI of the weights (s3://, gs://, az://), where the model's directory has none. Only the origin
    reads it, by vLLM's runai_streamer unless fallback_load_format says otherwise."""


def parse_options(extra_config: object) -> LoaderOptions:
    """Validate model_loader_extra_config.

    Raises:
        ConfigError: names what is wrong, and for an unknown option the known ones.
    """
    if not isinstance(extra_config, Mapping):
        raise ConfigError(f"model_loader_extra_config must be a dict, not {type(extra_config).__name__}")
    known = sorted(LoaderOptions.model_fields)
    if unknown := sorted(str(k) for k in extra_config if k not in LoaderOptions.model_fields):
        raise ConfigError(
            f"model_loader_extra_config has unknown options for load format ray_weights: {', '.join(unknown)}. "
            f"Known are: {', '.join(known)}"
        )
    try:
        options = LoaderOptions.model_validate(dict(extra_config))
    except ValidationError as e:
        faults = "; ".join(f"{'.'.join(map(str, f['loc']))}: {f['msg']}" for f in e.errors())
        raise ConfigError(f"model_loader_extra_config for load format ray_weights: {faults}") from e
    if options.fallback_load_format.lower() == "ray_weights":
        raise ConfigError("fallback_load_format must be one of vLLM's own load formats, not ray_weights")
    return options
