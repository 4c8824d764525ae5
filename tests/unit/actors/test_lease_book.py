"""Leases end by word, never by the clock, and there is a most of them."""

from __future__ import annotations

import pytest

from ray_weights.actors.lease_book import LeaseBook
from ray_weights.errors import LimitReached


def test_a_full_book_refuses_and_loses_nothing() -> None:
    book = LeaseBook(limit=2)
    book.grant("a", "reader", "transfer-1", "arena")
    book.grant("b", "reader", "transfer-1", "arena")
    with pytest.raises(LimitReached, match="2 leases are granted"):
        book.grant("c", "reader", "transfer-1", "arena")
    assert [g.lease for g in book.of_arena("arena")] == ["a", "b"]
    book.end("a")
    book.grant("c", "reader", "transfer-1", "arena")
    assert book.counts() == (2, 0)


def test_an_arena_is_read_until_its_last_lease_has_ended() -> None:
    book = LeaseBook()
    book.grant("a", "reader", "transfer-1", "one")
    book.grant("b", "reader", "transfer-1", "other")
    book.end("a")
    book.end("a")
    assert not book.of_arena("one") and book.of_arena("other")
    assert book.older_than(0.0) and not book.older_than(60.0)


def test_what_is_held_is_held_until_it_is_given_back() -> None:
    book = LeaseBook()
    book.hold("a")
    assert book.holds("a") and book.counts() == (0, 1)
    book.give_back("a")
    assert not book.holds("a")
