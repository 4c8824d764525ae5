"""Settings from the command line, over those from the environment."""

from __future__ import annotations

from collections.abc import Mapping

from pydantic import ValidationError

from ray_weights.config import ServiceSettings, settings_from_environment
from ray_weights.errors import ConfigError


def merged_settings(options: Mapping[str, object]) -> ServiceSettings:
    """Options that are not None win. Only what was given anywhere counts as set.

    Raises:
        ConfigError: a value that cannot be.
    """
    given = {name: value for name, value in options.items() if value is not None}
    known = settings_from_environment().model_dump(exclude_unset=True)
    try:
        return ServiceSettings.model_validate(known | given)
    except ValidationError as e:
        first = e.errors()[0]
        name = str(first["loc"][0])
        raise ConfigError(f"--{name.replace('_', '-')}={given.get(name)!r}: {first['msg']}") from e
