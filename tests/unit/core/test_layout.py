"""Where tensors lie: ties and views share, strides are kept, emptiness costs nothing, differences have
names."""

from __future__ import annotations

import pytest

from ray_weights.core.layout import ALIGNMENT, Layout, TensorFacts, build_layout, first_difference, span_nbytes
from ray_weights.errors import LayoutMismatch

SIZES = {"float32": 4, "bfloat16": 2, "uint8": 1}


def tensor(
    name: str,
    shape: tuple[int, ...] = (8, 16),
    *,
    dtype: str = "float32",
    stride: tuple[int, ...] | None = None,
    storage: int | None = None,
    offset: int = 0,
    storage_nbytes: int | None = None,
) -> TensorFacts:
    if stride is None:
        stride = tuple(_product(shape[i + 1 :]) for i in range(len(shape)))
    nbytes = span_nbytes(shape, stride, SIZES[dtype])
    return TensorFacts(
        name, shape, dtype, stride, storage or hash(name), offset, storage_nbytes or max(nbytes + offset, 0)
    )


def _product(numbers: tuple[int, ...]) -> int:
    result = 1
    for n in numbers:
        result *= n
    return result


def layout(*tensors: TensorFacts) -> Layout:
    return build_layout(tensors, SIZES)


def test_tensors_are_laid_end_to_end_and_aligned() -> None:
    built = layout(tensor("a", (3,), dtype="uint8"), tensor("b"))
    assert [t.offset for t in built.tensors] == [0, ALIGNMENT]
    assert built.nbytes == ALIGNMENT + 512


def test_tied_tensors_share_their_bytes() -> None:
    built = layout(tensor("embedding", storage=1), tensor("head", storage=1))
    assert built.tensors[0].offset == built.tensors[1].offset
    assert built.nbytes == 512


def test_a_view_lies_within_the_storage_of_its_base() -> None:
    built = layout(
        tensor("base", storage=1), tensor("view", (8,), storage=1, offset=64, storage_nbytes=512), tensor("other")
    )
    assert built.tensors[1].offset == 64
    assert built.tensors[2].offset == 512


def test_a_non_contiguous_tensor_keeps_its_strides() -> None:
    built = layout(tensor("t", (16, 8), stride=(1, 16)))
    assert built.tensors[0].stride == (1, 16)
    assert built.tensors[0].nbytes == 512


def test_a_tensor_without_elements_occupies_nothing() -> None:
    built = layout(tensor("empty", (0, 4)), tensor("a", (64,)))
    assert built.tensors[0].nbytes == 0 and built.tensors[1].offset == 0 and built.nbytes == 256


def test_a_scalar_is_one_element() -> None:
    assert layout(tensor("scale", ())).tensors[0].nbytes == 4


def test_a_name_that_comes_twice_is_refused() -> None:
    with pytest.raises(LayoutMismatch, match="'a'"):
        layout(tensor("a"), tensor("a"))


def test_a_tensor_that_reaches_past_its_storage_is_refused() -> None:
    with pytest.raises(LayoutMismatch, match="past its storage"):
        layout(tensor("a", storage_nbytes=511))


def test_the_digest_does_not_depend_on_which_numbers_name_the_storages() -> None:
    assert layout(tensor("a", storage=1)).digest() == layout(tensor("a", storage=99)).digest()


@pytest.mark.parametrize(
    ("other", "says"),
    [
        ([tensor("a"), tensor("b", (16, 8))], "tensor 'b': shape is [8, 16] here and [16, 8] at the source"),
        ([tensor("a"), tensor("b", dtype="bfloat16")], "tensor 'b': dtype is float32 here and bfloat16"),
        ([tensor("a"), tensor("b", stride=(1, 8))], "tensor 'b': stride is [16, 1] here and [1, 8]"),
        ([tensor("a")], "tensor 'b' is here but not at the source"),
        ([tensor("a"), tensor("b"), tensor("c")], "tensor 'c' is at the source but not here"),
        ([tensor("a"), tensor("c")], "tensor 'b' is not in the source"),
        ([tensor("b"), tensor("a")], "tensor 'b' of the source stands where the receiver has 'a'"),
    ],
)
def test_the_first_difference_is_named(other: list[TensorFacts], says: str) -> None:
    mine = layout(tensor("a"), tensor("b"))
    theirs = layout(*other)
    assert says in first_difference(mine, theirs)
    assert mine.digest() != theirs.digest()


def test_equal_layouts_have_no_difference() -> None:
    assert first_difference(layout(tensor("a")), layout(tensor("a"))) == ""


def test_a_tie_on_one_side_only_is_a_difference() -> None:
    tied = layout(tensor("a", storage=1), tensor("b", storage=1))
    apart = layout(tensor("a", storage=1), tensor("b", storage=2))
    assert "offset" in first_difference(tied, apart)
