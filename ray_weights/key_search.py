"""Which keys a person means by a few letters."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import combinations

from ray_weights.core.lookup import closest_keys, explain_difference, unknown_key_message
from ray_weights.errors import UnknownKey
from ray_weights.schemas.keys import ModelKey, ShardKey


def select_shards(query: str, known: Sequence[ShardKey]) -> tuple[ShardKey, ...]:
    """Shards that `query` names: the whole name if there is one, else names that begin so, else that contain it.

    A key's own text, as `status` prints it, counts as a name. Order is kept.

    Raises:
        UnknownKey: none does; the message names the closest.
    """
    wanted = query.strip().casefold()
    tests: tuple[Callable[[str], bool], ...] = (
        lambda name: name == wanted,
        lambda name: name.startswith(wanted),
        lambda name: wanted in name,
    )
    for test in tests if wanted else ():
        found = tuple(s for s in known if any(test(name) for name in _names(s)))
        if found:
            return found
    asked = ShardKey(model=ModelKey(model=query))
    closest = closest_keys(asked, tuple(known))
    if not closest:
        raise UnknownKey(unknown_key_message(asked, None, (), ()))
    names = dict.fromkeys(k.model.model for k in closest)
    raise UnknownKey(f"no key is named like {query!r}. The closest known: {', '.join(names)}")


def models_of(shards: Sequence[ShardKey]) -> tuple[ModelKey, ...]:
    """The distinct models, in order."""
    return tuple(dict.fromkeys(s.model for s in shards))


def namesakes(models: Sequence[ModelKey]) -> tuple[tuple[ModelKey, ModelKey, str], ...]:
    """Pairs of keys that seem to be one model (the last part of their names is equal), and what keeps them apart."""
    return tuple(
        (a, b, explain_difference(ShardKey(model=a), ShardKey(model=b)))
        for a, b in combinations(models, 2)
        if _last_part(a.model) == _last_part(b.model)
    )


def _names(shard: ShardKey) -> tuple[str, ...]:
    return tuple(
        name.casefold() for name in (shard.model.model, _last_part(shard.model.model), str(shard.model), str(shard))
    )


def _last_part(name: str) -> str:
    return name.rstrip("/").rpartition("/")[2]
