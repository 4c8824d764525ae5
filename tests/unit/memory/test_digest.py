from __future__ import annotations

import random
import struct

import pytest
import torch

from ray_weights.memory import digest
from ray_weights.memory.digest import sum64x2


def tensor(data: bytes) -> torch.Tensor:
    return torch.tensor(list(data), dtype=torch.uint8)


def by_the_book(data: bytes) -> bytes:
    """The definition, word by word."""
    mask = (1 << 64) - 1
    padded = data + bytes(-len(data) % 8)
    sum_t = sum_u = len(data)
    for index, (word,) in enumerate(struct.iter_unpack("<Q", padded)):
        t = (word ^ ((index + 1) * 0x9E3779B97F4A7C15 & mask)) * 0xBF58476D1CE4E5B9 & mask
        t = (t ^ t >> 32) * 0x94D049BB133111EB & mask
        u = (t ^ t >> 29) * 0xD6E8FEB86659FD93 & mask
        sum_t, sum_u = sum_t + t, sum_u + u
    return struct.pack("<2Q", sum_t & mask, sum_u & mask)


def some_bytes(count: int) -> bytes:
    return random.Random(count).randbytes(count)


@pytest.mark.parametrize("count", [0, 1, 7, 8, 9, 15, 16, 17, 1000, 4096])
@pytest.mark.parametrize("fill", ["random", "zeros", "ones"])
def test_the_digest_is_as_defined(count: int, fill: str) -> None:
    data = {"random": some_bytes(count), "zeros": bytes(count), "ones": b"\xff" * count}[fill]
    assert sum64x2(tensor(data)) == by_the_book(data)


def test_long_data_is_digested_in_passes_with_the_same_result(monkeypatch: pytest.MonkeyPatch) -> None:
    data = tensor(some_bytes(10_003))
    whole = sum64x2(data)
    monkeypatch.setattr(digest, "_BLOCK_WORDS", 100)
    assert sum64x2(data) == whole


@pytest.mark.parametrize("offset", range(1, 9))
def test_a_slice_has_the_digest_of_its_bytes_wherever_it_begins(offset: int) -> None:
    data = tensor(some_bytes(200))
    assert sum64x2(data[offset:]) == sum64x2(data[offset:].clone())


def test_every_flipped_bit_shows() -> None:
    data = bytearray(some_bytes(61))
    seen = {sum64x2(tensor(bytes(data)))}
    for bit in range(len(data) * 8):
        data[bit // 8] ^= 1 << bit % 8
        seen.add(sum64x2(tensor(bytes(data))))
        data[bit // 8] ^= 1 << bit % 8
    assert len(seen) == 1 + 61 * 8


def test_every_two_swapped_words_show_even_when_only_their_top_bits_differ() -> None:
    top = struct.pack("<Q", 1 << 63)
    words = [bytes(8)] * 16 + [top] * 16
    seen = {sum64x2(tensor(b"".join(words)))}
    for low in range(16):
        for high in range(16, 32):
            swapped = list(words)
            swapped[low], swapped[high] = swapped[high], swapped[low]
            seen.add(sum64x2(tensor(b"".join(swapped))))
    assert len(seen) == 1 + 16 * 16


def test_shifted_data_and_other_lengths_of_the_same_zeros_show() -> None:
    data = some_bytes(128)
    rotated = {sum64x2(tensor(data[n:] + data[:n])) for n in range(128)}
    zeros = {sum64x2(tensor(bytes(n))) for n in range(33)}
    assert (len(rotated), len(zeros)) == (128, 33)


def test_random_damage_never_goes_unseen() -> None:
    rng = random.Random(1)
    data = torch.randint(0, 256, (1 << 12,), dtype=torch.uint8)
    seen = {sum64x2(data)}
    for _ in range(500):
        damaged = data.clone()
        for _ in range(rng.randint(1, 64)):
            damaged[rng.randrange(1 << 12)] ^= rng.randint(1, 255)
        seen.add(sum64x2(damaged))
    assert len(seen) == 501


@pytest.mark.parametrize(
    "wrong", [torch.zeros(8), torch.zeros((2, 8), dtype=torch.uint8), torch.zeros(16, dtype=torch.uint8)[::2]]
)
def test_other_tensors_are_refused(wrong: torch.Tensor) -> None:
    with pytest.raises(ValueError, match="contiguous 1-D uint8"):
        sum64x2(wrong)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_a_gpu_computes_the_same_digest() -> None:
    data = torch.randint(0, 256, (10_003,), dtype=torch.uint8)
    assert sum64x2(data.cuda()) == sum64x2(data)
