"""Reading the layout off modules and dicts of tensors."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from ray_weights.core.layout import first_difference
from ray_weights.errors import CaptureUnsupported
from ray_weights.integrations.tensors.facts import layout_of, tensors_of, view_of


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(8, 4)
        self.head = nn.Linear(4, 8, bias=False)
        self.head.weight = self.embed.weight
        self.register_buffer("cache", torch.arange(6.0), persistent=False)
        self.empty = nn.Parameter(torch.empty(0, 4))


def test_parameters_buffers_and_both_names_of_a_tie_are_found_in_the_modules_order():
    assert list(tensors_of(Tied())) == ["empty", "embed.weight", "head.weight", "cache"]


def test_a_tie_occupies_its_bytes_once():
    layout = layout_of(tensors_of(Tied()))
    specs = {t.name: t for t in layout.tensors}
    assert specs["embed.weight"].offset == specs["head.weight"].offset
    assert specs["embed.weight"].nbytes == 8 * 4 * 4
    assert layout.nbytes == 256 + 256


def test_a_tensor_without_elements_occupies_nothing():
    specs = {t.name: t for t in layout_of(tensors_of(Tied())).tensors}
    assert (specs["empty"].shape, specs["empty"].nbytes) == ((0, 4), 0)


def test_two_builds_of_one_module_have_equal_layouts():
    one, other = Tied(), Tied()
    assert layout_of(tensors_of(one)).digest() == layout_of(tensors_of(other)).digest()


def test_a_slice_of_a_large_storage_does_not_drag_the_rest_along():
    large = torch.zeros(1_000_000)
    layout = layout_of({"slice": large[500:510]})
    assert layout.tensors[0].offset == 0
    assert layout.nbytes == 256


def test_a_slice_and_a_fresh_tensor_of_its_form_have_equal_layouts():
    assert layout_of({"a": torch.zeros(99)[7:9]}) == layout_of({"a": torch.zeros(2)})


def test_two_slices_of_one_storage_keep_their_distance():
    storage = torch.arange(10.0)
    layout = layout_of({"first": storage[2:4], "second": storage[3:6]})
    assert [t.offset for t in layout.tensors] == [0, 4]


def test_slices_of_different_widths_stay_aligned_for_the_widest():
    storage = torch.zeros(64, dtype=torch.uint8)
    tensors = {"bytes": storage[3:5], "floats": storage[8:16].view(torch.float32)}
    layout = layout_of(tensors)
    arena = torch.zeros(layout.nbytes, dtype=torch.uint8)
    assert [view_of(arena, t).dtype for t in layout.tensors] == [torch.uint8, torch.float32]


def test_a_transposed_tensor_keeps_its_strides():
    layout = layout_of({"t": torch.zeros(3, 5).t()})
    assert (layout.tensors[0].shape, layout.tensors[0].stride) == ((5, 3), (1, 5))


@pytest.mark.parametrize("dtype", [torch.bool, torch.int8, torch.bfloat16, torch.float8_e4m3fn, torch.complex64])
def test_a_view_of_the_arena_has_the_dtype_of_the_tensor(dtype):
    layout = layout_of({"x": torch.zeros(3, dtype=dtype)})
    assert view_of(torch.zeros(layout.nbytes, dtype=torch.uint8), layout.tensors[0]).dtype == dtype


@pytest.mark.parametrize(
    ("tensor", "words"),
    [
        (torch.empty(3, device="meta"), "meta"),
        (torch.zeros(3, 3).to_sparse(), "sparse"),
        (nn.parameter.UninitializedParameter(), "no shape"),
    ],
)
def test_a_tensor_without_plain_memory_is_refused_by_name(tensor, words):
    with pytest.raises(CaptureUnsupported, match=f"'odd'.*{words}"):
        layout_of({"odd": tensor})


def test_a_tensor_whose_memory_was_freed_is_refused():
    freed = torch.zeros(4)
    freed.untyped_storage().resize_(0)
    with pytest.raises(CaptureUnsupported, match="'odd' has been freed"):
        layout_of({"odd": freed})


def test_a_tensor_on_another_device_is_refused():
    with pytest.raises(CaptureUnsupported, match="on cpu, not on cuda"):
        layout_of({"x": torch.zeros(1)}, device=torch.device("cuda", 0))


def test_a_difference_is_named_by_tensor_and_field():
    here, there = layout_of({"w": torch.zeros(2, 3)}), layout_of({"w": torch.zeros(2, 4)})
    assert first_difference(here, there) == "tensor 'w': shape is [2, 3] here and [2, 4] at the source"
