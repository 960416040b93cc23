"""What every pattern owes: exact counts, the same choice each time, NaN refused; and packing that is bit-equal."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode

import niwaki
from niwaki.masks import Block, NByM, Unstructured, choose, pack, pack_bits, parse_pattern, unpack, unpack_bits

PATTERNS = [Unstructured(), NByM(2, 4), NByM(1, 4), NByM(4, 8), Block(4, 1), Block(1, 8), Block(2, 4)]


@pytest.mark.parametrize("pattern", PATTERNS, ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@settings(max_examples=20, deadline=None)
@given(st.integers(0, 10_000), st.floats(0.0, 1.0), st.booleans())
def test_exact_counts_whatever_the_ties(pattern, dtype, seed, share, tied):
    scores = torch.rand(8, 16, generator=torch.Generator().manual_seed(seed)).to(dtype)
    if tied:
        scores = (scores * 3).round()
    zeros = round(share * scores.numel())
    mask = choose(scores, zeros, pattern, "here")
    assert torch.equal(mask, choose(scores, zeros, pattern, "here"))
    unit = pattern.rows * pattern.columns if isinstance(pattern, Block) else 1
    if isinstance(pattern, NByM):
        assert (mask.reshape(-1, pattern.m).sum(1) == pattern.n).all()
    else:
        assert int((~mask).sum()) == zeros // unit * unit
    if isinstance(pattern, Unstructured) and 0 < zeros < scores.numel():
        assert scores[mask].min() >= scores[~mask].max()


@pytest.mark.parametrize("pattern", PATTERNS, ids=str)
def test_nan_is_refused_by_name(pattern):
    scores = torch.rand(8, 16)
    scores[3, 5] = torch.nan
    with pytest.raises(niwaki.WorkError, match=r"layer\.1\.up.*NaN"):
        choose(scores, 10, pattern, "layer.1.up")


@pytest.mark.parametrize("pattern", PATTERNS, ids=str)
def test_a_pattern_reads_back(pattern):
    assert parse_pattern(str(pattern)) == pattern


@pytest.mark.parametrize(("text", "words"), [("2/4", "2:4"), ("4:2", "keep 1 to"), ("0x4", "at least 1"), ("", "4x1")])
def test_what_is_no_pattern_is_refused(text, words):
    with pytest.raises(niwaki.RequestError, match=words):
        parse_pattern(text)


@pytest.mark.parametrize("pattern", [NByM(2, 3), Block(3, 1)], ids=str)
def test_a_pattern_that_does_not_divide_names_the_linear(pattern):
    with pytest.raises(niwaki.RequestError, match=r"layer\.0\.down"):
        choose(torch.rand(8, 16), 4, pattern, "layer.0.down")


def test_by_row_every_row_loses_as_many():
    mask = choose(torch.rand(6, 10), 31, Unstructured(), "here", by_row=True)
    lost = (~mask).sum(1)
    assert int(lost.sum()) == 31
    assert set(lost.tolist()) == {5, 6}


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 9), st.integers(1, 13), st.integers(0, 1000))
def test_packing_is_bit_equal_and_keeps_a_kept_zero(rows, columns, seed):
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(rows, columns, generator=generator)
    mask = torch.rand(rows, columns, generator=generator) < 0.4
    weight[0, 0], mask[0, 0] = 0.0, True
    found, found_mask = unpack(*pack(weight, mask), (rows, columns))
    assert torch.equal(found, weight * mask)
    assert torch.equal(found_mask, mask)
    bits, values = pack(weight, mask)
    with pytest.raises(niwaki.RequestError, match="values"):
        unpack(bits, values[1:], (rows, columns))


@settings(max_examples=40, deadline=None)
@given(st.lists(st.booleans(), min_size=1, max_size=40))
def test_bits_lie_in_the_file_as_numpy_packs_them(flags):
    assert pack_bits(torch.tensor(flags)).tolist() == np.packbits(flags).tolist()


def test_what_unpacks_goes_to_a_device_once():
    class Moves(TorchDispatchMode):
        count = 0

        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            to = (kwargs or {}).get("device")
            self.count += to is not None and to.type == "meta" and args[0].device.type != "meta"
            return func(*args, **kwargs or {})

    bits = pack_bits(torch.ones(3, 5, dtype=torch.bool, device="meta"))
    with torch.inference_mode():
        unpack_bits(bits, (3, 5))
    with Moves() as moves:
        for _ in range(3):
            pack_bits(unpack_bits(bits, (3, 5)))
    assert moves.count == 0
