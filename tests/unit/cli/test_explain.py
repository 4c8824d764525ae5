"""How `explain` puts stories together and shows them."""

from __future__ import annotations

from ray_weights.cli.explain_view import render_explanation
from ray_weights.observe import explanation
from ray_weights.schemas.keys import ModelKey, ShardKey
from ray_weights.schemas.status import StoryLine
from tests.unit.cli.views import COMPLETE, MEMBERS, ORIGIN, SHARD, drawn, record

OTHER = ShardKey(model=ModelKey(model="org/tiny", dtype="bfloat16", engine="vllm 0.32.0"))


def line(at: float, member: str, what: str) -> StoryLine:
    return StoryLine(at=at, shard=SHARD, version=1, member=member, node=f"node-{member}", what=what)


STORY = (
    line(1000.0, "a", "asked for it"),
    line(1000.5, "b", "asked for it"),
    line(1002.25, "a", "loaded from storage in 2.0 s: now a source"),
    line(1003.0, "gone", "asked for it"),
    line(1004.0, "gone", f"died on {'0123456789abcdef' * 3}01234567"),
)


def explained():  # type: ignore[no-untyped-def]
    now = record(ORIGIN, COMPLETE, members=MEMBERS)
    return explanation("tiny", (SHARD,), (SHARD, OTHER), now, {SHARD: STORY})


def test_each_replica_has_its_own_lines_in_order_and_its_present_state() -> None:
    (shard,) = explained().shards
    told = {r.member: ([x.what for x in r.lines], r.status.state if r.status else None) for r in shard.replicas}
    assert told["a"] == (["asked for it", "loaded from storage in 2.0 s: now a source"], "ready")
    assert told["b"] == (["asked for it"], "ready")
    assert told["gone"][1] is None and len(told["gone"][0]) == 2


def test_times_count_from_the_first_line_of_the_shard() -> None:
    shown = drawn(render_explanation(explained()))
    assert "0.000 s  asked for it" in shown
    assert "2.250 s  loaded from storage" in shown
    assert "no longer there" in shown and "storage read once" in shown


def test_the_reason_of_the_last_placement_is_shown() -> None:
    assert "ready: complete source" in drawn(render_explanation(explained()))


def test_long_node_ids_are_cut_to_what_tells_them_apart() -> None:
    shown = drawn(render_explanation(explained()))
    assert "died on 01234567" in shown and "0123456789abcdef" not in shown


def test_keys_of_one_model_say_which_fields_differ() -> None:
    (difference,) = explained().differences
    assert difference.fields == ("dtype",)
    assert "dtype is 'float32' here and 'bfloat16' there" in drawn(render_explanation(explained()))
