"""What makes a pass over the layers cheap changes nothing: folded weights, joined batches, half a product."""

from __future__ import annotations

import torch

from niwaki.adapters import apply_mask_, materialized_weights
from niwaki.anatomy import linears_of
from niwaki.observe.moments import STRIP, gram
from niwaki.observe.stream import TOGETHER, rebatch
from tiny import batches, logits, tiny, with_lora


def test_folded_linears_give_the_same_and_are_let_go():
    batch = batches()[0]
    for model in (with_lora(tiny(), lora_bias=True), with_lora(tiny(), use_rslora=True), tiny()):
        for linear in linears_of(model)[::2]:
            apply_mask_(linear.module, torch.rand(linear.shape) < 0.4)
        wanted = logits(model, batch)
        with materialized_weights(model):
            torch.testing.assert_close(logits(model, batch), wanted, rtol=0, atol=1e-5)
        assert torch.equal(logits(model, batch), wanted)
        assert not any("forward" in vars(module) for module in model.modules())


def test_the_product_is_whole():
    x = torch.randn(50, 2 * STRIP + 5)
    torch.testing.assert_close(gram(x), x.T @ x, rtol=1e-4, atol=1e-4)


def test_joined_batches_hold_the_same_rows():
    parts = [{"x": torch.full((rows, 2), float(rows)), "w": torch.ones(rows)} for rows in (3, TOGETHER, 1, 4)]
    joined = list(rebatch(parts))
    assert [len(part["x"]) for part in joined] == [TOGETHER + 3, 5]
    for key in ("x", "w"):
        assert torch.equal(torch.cat([part[key] for part in joined]), torch.cat([part[key] for part in parts]))
