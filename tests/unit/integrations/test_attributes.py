"""Plain Python values that loading sets, and buffers that it writes."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from ray_weights.errors import CaptureUnsupported
from ray_weights.integrations.tensors.attributes import (
    LOADED_BUFFERS,
    apply_attributes,
    changed_by_loading,
    check_no_hidden_views,
    snapshot,
    untouched_buffers,
)


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(2, 2)
        self.owns_embeddings = False
        self.inner.scale = 1.0
        self.register_buffer("cache", torch.tensor([math.nan, 1.0]), persistent=False)
        self.register_buffer("statistics", torch.zeros(2))
        self.hung = torch.zeros(2)
        self.listed = [torch.zeros(2)]


def changes(load) -> dict[str, str]:
    model = Model()
    before = snapshot(model)
    load(model)
    return dict(changed_by_loading(model, before))


def test_what_loading_left_alone_does_not_travel():
    assert changes(lambda m: None) == {}


def test_scalars_that_loading_changed_or_added_travel():
    def load(model):
        model.owns_embeddings = True
        model.inner.scale = 0.25
        model.inner.kind = "int8"
        model.inner.limit = None

    assert changes(load) == {
        "inner.kind": '"int8"',
        "inner.limit": "null",
        "inner.scale": "0.25",
        "owns_embeddings": "true",
    }


def test_a_receiver_gets_the_same_values():
    origin, receiver = Model(), Model()
    before = snapshot(origin)
    origin.owns_embeddings, origin.inner.scale = True, math.inf
    apply_attributes(receiver, changed_by_loading(origin, before))
    assert (receiver.owns_embeddings, receiver.inner.scale) == (True, math.inf)


def test_nothing_is_set_when_one_submodule_is_missing():
    model = Model()
    with pytest.raises(CaptureUnsupported, match="'absent'"):
        apply_attributes(model, (("owns_embeddings", "true"), ("absent.flag", "true")))
    assert model.owns_embeddings is False


def test_computed_buffers_that_loading_wrote_are_listed():
    found = changes(lambda m: m.cache.data.fill_(2.0))
    assert found == {LOADED_BUFFERS: '["cache"]'}


def test_a_receiver_keeps_computed_buffers_that_loading_left_alone():
    assert untouched_buffers(Model(), ()) == {"cache"}
    assert untouched_buffers(Model(), ((LOADED_BUFFERS, '["cache"]'),)) == frozenset()


def set_new(model):
    model.fresh = torch.ones(1)


def write_in_place(model):
    model.hung.fill_(1.0)


def replace(model):
    model.listed[0] = torch.ones(2)


@pytest.mark.parametrize(("load", "name"), [(set_new, "fresh"), (write_in_place, "hung"), (replace, r"listed\[0\]")])
def test_a_plain_tensor_that_loading_set_cannot_travel(load, name):
    with pytest.raises(CaptureUnsupported, match=name):
        changes(load)


def test_a_plain_attribute_that_shares_a_parameters_memory_is_refused():
    model = Model()
    check_no_hidden_views(model)
    model.shortcut = model.inner.weight.data[0]
    with pytest.raises(CaptureUnsupported, match=r"'shortcut' shares memory with 'inner.weight'"):
        check_no_hidden_views(model)


def test_a_second_reference_to_a_parameter_is_no_hidden_view():
    model = Model()
    model.listed.append(model.inner.weight)
    check_no_hidden_views(model)
