"""Every test here runs on an event loop of its own."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from tests.unit.actors.house import House

Story = Callable[[House], Awaitable[None]]


@pytest.fixture
def live(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """live(story, *members): run story(house) with these members; what it leaves behind is stopped."""

    def run(story: Story, *members: str, **options: Any) -> None:
        async def whole() -> None:
            house = House(*members, **options)
            monkeypatch.setattr("ray.get_actor", house.get_actor)
            try:
                await asyncio.wait_for(story(house), 50)
            finally:
                house.close()

        asyncio.run(whole())

    return run
