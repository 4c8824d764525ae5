"""A few crowds of engines and publishers; `python -m tests.unit.actors.crowd` runs as many as fit into the time."""

from __future__ import annotations

import pytest

from tests.unit.actors import crowd


@pytest.mark.parametrize("seed", range(12))
def test_whatever_is_asked_for_comes_whole_or_ends_in_a_typed_error_and_nothing_is_left(seed: int) -> None:
    crowd.run(seed)
