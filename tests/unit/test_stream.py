"""What makes a pass over the layers cheap changes nothing: folded weights, joined batches, half a product."""

from __future__ import annotations

import pytest
import torch

from niwaki.adapters import apply_mask_, materialized_weights
from niwaki.anatomy import layer_calls, layers_of, linears_of
from niwaki.numerics.gram import STRIP, TOGETHER, gram, rebatch
from niwaki.observe.stream import Stream
from tiny import batches, logits, tiny, with_lora

KINDS = ["bert", "llama", "gemma2", "modernbert"]
"""Layers that are all alike, and layers of two kinds with masks of their own."""


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


def held(thing: object) -> int:
    """Bytes of the tensors that are reached from here, other than a model's."""
    if isinstance(thing, torch.Tensor):
        return thing.untyped_storage().nbytes()
    if isinstance(thing, torch.nn.Module):
        return 0
    inside = thing.values() if isinstance(thing, dict) else thing if isinstance(thing, list | tuple) else ()
    return sum(map(held, inside))


@pytest.mark.parametrize("family", KINDS)
@torch.no_grad()
def test_memory_holds_one_batch_however_many_there_are(family):
    model, most = tiny(family), []
    for count in (2, 5):
        with Stream(model, (batch for batch in batches(1, family=family) * count)) as run:
            assert held(vars(run)) == 0
            sizes = []
            for linear in linears_of(model)[::4]:
                seen = run.seen(linear.layer, {"x": linear.module}, {}, advance=True)
                sizes += [held(part) + held(dict(seen.gi_frame.f_locals)) for part in seen]
                assert held(vars(run)) == 0
        most.append(max(sizes))
    assert most[0] == most[1] > 0


@pytest.mark.parametrize("family", KINDS)
@torch.no_grad()
def test_a_layer_sees_what_it_sees_in_the_model(family):
    model, data = tiny(family), batches(2, family=family)
    seen: dict[int, list] = {}
    layers = list(layers_of(model))
    with Stream(model, data) as run:
        for index, layer in enumerate(layers):
            hook = layer.register_forward_hook(lambda _m, _a, y, i=index: seen.setdefault(i, []).append(y))
            for batch in data:
                model(**batch)
            hook.remove()
            wanted = [y[0] if isinstance(y, tuple) else y for y in seen[index]]
            parts = list(run.seen(index, {}, {"y": layer}, advance=True))
            for batch, whole, part in zip(data, wanted, parts, strict=True):
                assert torch.equal(part["y"], whole[batch["attention_mask"].bool()])
    assert not any(layer._forward_hooks or layer._forward_pre_hooks for layer in layers)


@pytest.mark.parametrize("family", KINDS)
def test_nothing_after_the_layers_is_run_to_see_what_they_are_called_with(family):
    model, batch = tiny(family), batches(family=family)[0]
    head = model.get_output_embeddings() or model.classifier
    head.register_forward_hook(lambda *_: pytest.fail("the task head was run"))
    calls = layer_calls(model, {name: batch[name] for name in ("input_ids", "attention_mask")})
    assert len(calls) == len(layers_of(model))
