"""Options of the load format."""

from __future__ import annotations

import pytest

from ray_weights.errors import ConfigError
from ray_weights.integrations.vllm.options import LoaderOptions, parse_options


def test_no_options_are_a_complete_configuration():
    assert parse_options({}) == LoaderOptions()


def test_an_unknown_option_is_refused_with_the_known_ones():
    with pytest.raises(ConfigError, match=r"unknown options.*: timeout\. Known are: connect_timeout_s, .*timeout_s"):
        parse_options({"timeout": 3})


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"timeout_s": 0}, "timeout_s: .*greater than 0"),
        ({"version": 0}, "version: "),
        ({"fallback": "perhaps"}, "fallback: "),
        ({"fallback_load_format": "Ray_Weights"}, "not ray_weights"),
        ([], "must be a dict, not list"),
    ],
)
def test_an_impossible_value_is_named(given, words):
    with pytest.raises(ConfigError, match=words):
        parse_options(given)
