"""A few hundred random worlds of faults; `make soak` runs as many as fit into the time it is given."""

from __future__ import annotations

import pytest

from tests.simulation.world import Violation, World

BLOCK = 30


@pytest.mark.parametrize("block", range(10))
def test_everybody_ends_with_the_right_bytes_or_a_typed_error(block: int) -> None:
    for seed in range(block * BLOCK, (block + 1) * BLOCK):
        World(seed).run()


@pytest.mark.parametrize("seed", [196, 249])
def test_a_source_frees_nothing_while_a_read_that_was_given_up_on_may_still_touch_it(seed: int) -> None:
    World(seed).run()


def test_one_that_ended_says_so_when_it_is_told_to_go_on() -> None:
    World(101364).run()


def test_one_that_completes_while_an_epoch_begins_is_a_source_of_the_new_one() -> None:
    World(300966).run()


def test_a_question_that_overtakes_the_seal_after_it_does_not_unseat_the_source() -> None:
    World(1795351112).run()


def test_a_seed_replays_exactly() -> None:
    first, second = World(249), World(249)
    first.run()
    second.run()
    assert first.told == second.told and first.events == second.events


def test_a_violation_names_the_seed_and_tells_the_story() -> None:
    world = World(249)

    def rot_after_the_end() -> None:
        world.require(False, "on purpose")

    world.at(8.0, rot_after_the_end)
    with pytest.raises(Violation) as caught:
        world.run()
    assert "on purpose" in str(caught.value)
    assert "--seed 249" in str(caught.value) and "What happened:" in str(caught.value)


def test_wrong_bytes_would_be_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever believes every chunk is caught: the check of the worlds themselves works."""
    from ray_weights.core import receiving as r
    from tests.simulation.member import Member

    def believe(self: Member, chunk: int, generation: int) -> None:
        if self.receiver is not None and generation == self.receiver.generation:
            self.handle(r.Verified(chunk, generation))

    monkeypatch.setattr(Member, "_verify", believe)
    with pytest.raises(Violation, match="wrong chunk"):
        for seed in range(300):
            World(seed).run()
