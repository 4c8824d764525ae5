"""Moving a module's tensors into an arena and back."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from ray_weights.errors import CaptureUnsupported, LayoutMismatch
from ray_weights.integrations.tensors.binding import bind, check_matches, copy_into, release, settle
from ray_weights.integrations.tensors.facts import layout_of, tensors_of
from ray_weights.memory.host import HostArena
from ray_weights.memory.mapping import map_arena


class Model(nn.Module):
    """A tie, a non-persistent buffer, a transposed weight, an empty one and one shared storage."""

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.embed = nn.Embedding(8, 4)
        self.head = nn.Linear(4, 8, bias=False)
        self.head.weight = self.embed.weight
        self.turned = nn.Parameter(torch.randn(3, 5).t())
        self.empty = nn.Parameter(torch.empty(0))
        both = torch.randn(6)
        self.left, self.right = nn.Parameter(both[:4]), nn.Parameter(both[2:])
        self.register_buffer("cache", torch.randn(7), persistent=False)


def new_arena(nbytes: int) -> torch.Tensor:
    return torch.full((nbytes,), 0xEE, dtype=torch.uint8)


def values(module: nn.Module) -> dict[str, torch.Tensor]:
    return {n: t.detach().clone() for n, t in tensors_of(module).items()}


def assert_equal(module: nn.Module, expected: dict[str, torch.Tensor]) -> None:
    for name, t in tensors_of(module).items():
        assert torch.equal(t, expected[name]), name


def bound(module: nn.Module):
    layout = layout_of(tensors_of(module))
    arena = new_arena(layout.nbytes)
    bind(tensors_of(module), layout, arena, keep_values=True)
    return layout, arena


def test_an_origin_keeps_every_value():
    model = Model()
    before = values(model)
    bound(model)
    assert_equal(model, before)


def test_every_tensor_with_elements_lies_in_the_arena():
    model = Model()
    layout, arena = bound(model)
    arena.zero_()
    assert all(not t.any() for t in tensors_of(model).values())
    assert layout == layout_of(tensors_of(Model()))


def test_a_tie_stays_one_parameter_and_a_shared_storage_stays_shared():
    model = Model()
    bound(model)
    assert model.head.weight is model.embed.weight
    with torch.no_grad():
        model.left[3] = 42.0
    assert model.right[1] == 42.0


def test_a_receiver_takes_the_values_of_the_arena():
    origin, receiver = Model(seed=1), Model(seed=2)
    layout, arena = bound(origin)
    bind(tensors_of(receiver), layout, arena, keep_values=False)
    assert_equal(receiver, values(origin))


def test_tensors_to_be_left_stay_where_they_are():
    origin, receiver = Model(seed=1), Model(seed=2)
    own = receiver.cache.clone()
    layout, arena = bound(origin)
    bind(tensors_of(receiver), layout, arena, keep_values=False, leave={"cache"})
    assert torch.equal(receiver.cache, own)
    assert torch.equal(receiver.turned, origin.turned)


def test_binding_to_a_layout_of_another_model_changes_nothing():
    other = Model()
    other.turned = nn.Parameter(torch.zeros(5, 4))
    layout = layout_of(tensors_of(other))
    model = Model()
    before = {n: t.data_ptr() for n, t in tensors_of(model).items()}
    with pytest.raises(LayoutMismatch, match="'turned'"):
        bind(tensors_of(model), layout, new_arena(layout.nbytes), keep_values=False)
    assert before == {n: t.data_ptr() for n, t in tensors_of(model).items()}


def test_a_module_bound_privately_cannot_damage_the_arena():
    model = Model()
    layout = layout_of(tensors_of(model))
    arena = HostArena.create("test-private", layout.nbytes, 4096)
    copy_into(tensors_of(model), layout, arena.tensor())
    before = bytes(arena.view(0, layout.nbytes))
    mapped = map_arena(arena.handle(), writable=False)
    bind(tensors_of(model), layout, mapped.tensor(), keep_values=False)
    with torch.no_grad():
        model.embed.weight.fill_(7.0)
    assert bytes(arena.view(0, layout.nbytes)) == before
    mapped.close()
    assert model.embed.weight[0, 0] == 7.0
    arena.close()


def test_values_written_in_place_need_no_settling():
    model = Model()
    layout, arena = bound(model)
    with torch.no_grad():
        model.embed.weight.copy_(torch.ones(8, 4))
    assert settle(tensors_of(model), layout, arena) == ()


@pytest.mark.parametrize("how", ["data", "parameter"])
def test_a_tensor_that_loading_replaced_is_brought_back(how):
    model = Model()
    layout, arena = bound(model)
    new = torch.randn(3, 5).t()
    if how == "data":
        model.turned.data = new
    else:
        model.turned = nn.Parameter(new)
    assert settle(tensors_of(model), layout, arena) == ("turned",)
    assert torch.equal(model.turned, new)
    model.turned.data.zero_()
    assert settle(tensors_of(model), layout, arena) == ()
    receiver = Model()
    bind(tensors_of(receiver), layout, arena, keep_values=False)
    assert not receiver.turned.any()


def test_a_tie_made_by_loading_fills_both_places():
    class Untied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed, self.head = nn.Embedding(8, 4), nn.Linear(4, 8, bias=False)

    model = Untied()
    layout, arena = bound(model)
    model.head.weight = model.embed.weight
    settle(tensors_of(model), layout, arena)
    assert model.head.weight is model.embed.weight
    receiver = Untied()
    bind(tensors_of(receiver), layout, arena, keep_values=False)
    assert torch.equal(receiver.head.weight, model.embed.weight)
    assert torch.equal(receiver.embed.weight, model.embed.weight)


def change_shape(model: Model) -> None:
    model.turned.data = torch.zeros(5, 4)


def change_strides(model: Model) -> None:
    model.turned.data = model.turned.data.contiguous()


def change_dtype(model: Model) -> None:
    model.turned = nn.Parameter(model.turned.data.to(torch.float16))


def add_one(model: Model) -> None:
    model.register_buffer("turned2", torch.zeros(1))


def remove_one(model: Model) -> None:
    del model.turned


@pytest.mark.parametrize("change", [change_shape, change_strides, change_dtype, add_one, remove_one])
def test_a_tensor_that_loading_gave_another_form_is_named(change):
    model = Model()
    layout, arena = bound(model)
    change(model)
    with pytest.raises(CaptureUnsupported, match="turned"):
        settle(tensors_of(model), layout, arena)


def test_released_tensors_keep_values_and_ties_and_leave_the_arena():
    model = Model()
    before = values(model)
    _, arena = bound(model)
    release(tensors_of(model), arena)
    arena.zero_()
    assert_equal(model, before)
    assert model.head.weight is model.embed.weight
    with torch.no_grad():
        model.left[3] = 42.0
    assert model.right[1] == 42.0


def test_an_expanded_tensor_travels():
    source = {"wide": torch.tensor([[3.0]]).expand(4, 5)}
    layout = layout_of(source)
    arena = new_arena(layout.nbytes)
    copy_into(source, layout, arena)
    target = {"wide": torch.tensor([[0.0]]).expand(4, 5)}
    bind(target, layout, arena, keep_values=False)
    assert torch.equal(target["wide"], source["wide"])


def test_a_source_may_lack_the_second_name_of_a_tie():
    model = Model()
    source = {n: t for n, t in tensors_of(model).items() if n != "head.weight"}
    check_matches(tensors_of(model), layout_of(source))


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ({"a": torch.zeros(2)}, "'b' is not in the source"),
        ({"a": torch.zeros(2), "b": torch.zeros(3), "c": torch.zeros(1)}, "'c' is at the source but not here"),
        ({"a": torch.zeros(2), "b": torch.zeros(4)}, r"'b': shape is \[3\] here and \[4\] at the source"),
        ({"a": torch.zeros(2).half(), "b": torch.zeros(3)}, "'a': dtype is float32 here and float16 at the source"),
    ],
)
def test_a_source_with_other_tensors_is_refused(source, words):
    with pytest.raises(LayoutMismatch, match=words):
        check_matches({"a": torch.zeros(2), "b": torch.zeros(3)}, layout_of(source))
