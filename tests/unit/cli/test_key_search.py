"""Which keys a few letters name."""

from __future__ import annotations

import pytest

from ray_weights.errors import UnknownKey
from ray_weights.key_search import namesakes, select_shards
from ray_weights.schemas.keys import ModelKey, ShardKey


def shard(model: str, rank: str = "", **fields: str) -> ShardKey:
    return ShardKey(model=ModelKey.model_validate({"model": model, **fields}), rank=rank)


KNOWN = (
    shard("meta/llama-8b", "tp0"),
    shard("meta/llama-8b", "tp1"),
    shard("meta/llama-8b-chat"),
    shard("/models/qwen", dtype="float32"),
)


@pytest.mark.parametrize(
    ("query", "expected"),
    [
        ("meta/llama-8b", KNOWN[:2]),
        ("META/LLAMA-8B", KNOWN[:2]),
        ("llama-8b", KNOWN[:2]),
        ("meta/llama-8b-c", KNOWN[2:3]),
        ("meta", KNOWN[:3]),
        ("lama", KNOWN[:3]),
        ("float32", KNOWN[3:]),
        ("qwen", KNOWN[3:]),
        (str(KNOWN[1]), KNOWN[1:2]),
    ],
)
def test_a_whole_name_wins_over_a_beginning_and_that_over_a_part(query: str, expected: tuple[ShardKey, ...]) -> None:
    assert select_shards(query, KNOWN) == expected


@pytest.mark.parametrize("query", ["meta/lama-9b", "", "  "])
def test_an_unknown_key_names_the_closest(query: str) -> None:
    with pytest.raises(UnknownKey, match=r"closest known: .*meta/llama-8b"):
        select_shards(query, KNOWN)


def test_with_nothing_known_that_is_said() -> None:
    with pytest.raises(UnknownKey, match="no other key is known"):
        select_shards("x", ())


def test_namesakes_are_keys_whose_last_name_is_equal_and_say_what_differs() -> None:
    here, there = ModelKey(model="/a/llama", dtype="float32"), ModelKey(model="b/llama", dtype="bfloat16")
    ((first, second, why),) = namesakes((here, ModelKey(model="other"), there))
    assert (first, second) == (here, there)
    assert "dtype is 'float32' here and 'bfloat16' there" in why
