"""What every language model owes: it generates the same tokens masked and sliced, with every kind of cache, padded."""

from __future__ import annotations

import pytest
import torch

import niwaki
from niwaki.anatomy import is_language_model, longest_input, sites_of
from niwaki.checkpoint import shapes_of
from niwaki.surgery import cut_
from tiny import auto_class, batches, decoders, logits, tiny, with_lora

CACHES = {
    "none": {"use_cache": False},
    "dynamic": {"use_cache": True},
    "static": {"use_cache": True, "cache_implementation": "static", "disable_compile": True},
}


def uneven_plan(model):
    """Layer 0 loses its heads, layer 1 its neurons, and layer 2 some of both."""
    gone = {"layer.0.attention", "layer.1.ffn"}
    return {site.name: torch.arange(0 if site.name in gone else site.units - site.layer) for site in sites_of(model)}


def mask_(model, plan):
    """Hooks that zero the units which `plan` does not keep."""
    for site in sites_of(model):
        mask = torch.zeros(site.units, site.width)
        mask[plan[site.name]] = 1
        site.output.register_forward_pre_hook(lambda _m, args, mask=mask: (args[0] * mask.flatten(),))


def generated(model, cache, rows=3):
    """Tokens `[rows, 18]` after prompts of several lengths, padded on the left."""
    ids = torch.randint(5, 60, (rows, 8), generator=torch.Generator().manual_seed(4))
    mask = (torch.arange(8)[None] >= torch.tensor([[0], [3], [5]])[:rows]).long()
    return model.generate(
        input_ids=ids * mask,
        attention_mask=mask,
        max_new_tokens=10,
        do_sample=False,
        eos_token_id=None,
        **CACHES[cache],
    )


@pytest.mark.parametrize("cache", CACHES)
@pytest.mark.parametrize("family", decoders())
def test_masked_and_sliced_generate_the_same(family, cache):
    model, masked = tiny(family), tiny(family)
    assert is_language_model(model)
    assert longest_input(model) == 40
    dense = generated(model, "none")
    plan = uneven_plan(model)
    mask_(masked, plan)
    cut_(model, plan)
    found = generated(model, cache)
    assert torch.equal(found, generated(masked, "none"))
    assert not torch.equal(found, dense)


@pytest.mark.parametrize("family", decoders())
def test_padding_does_not_change_what_is_generated(family):
    model = tiny(family)
    cut_(model, uneven_plan(model))
    ids = torch.randint(5, 60, (1, 5), generator=torch.Generator().manual_seed(4))
    alone = model.generate(input_ids=ids, max_new_tokens=8, do_sample=False, eos_token_id=None)
    padded = torch.cat([torch.zeros(1, 3, dtype=torch.long), ids], 1)
    mask = (torch.arange(8)[None] >= 3).long()
    beside = model.generate(input_ids=padded, attention_mask=mask, max_new_tokens=8, do_sample=False, eos_token_id=None)
    assert torch.equal(beside[:, 8:], alone[:, 5:])


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_a_loaded_model_generates_and_so_does_one_with_an_adapter(family, tmp_path):
    model = with_lora(tiny(family))
    cut_(model, uneven_plan(model))
    expected = generated(model, "dynamic")
    niwaki.save(model, tmp_path / "a")
    for other in (niwaki.load(tmp_path / "a"), auto_class(family).from_pretrained(tmp_path / "a")):
        assert shapes_of(other) == shapes_of(model)
        for cache in CACHES:
            assert torch.equal(generated(other, cache), expected)


@pytest.mark.parametrize("family", ["mistral", "qwen2", "qwen3", "smollm3", "phi3", "llama4_text"])
def test_groups_that_go_in_every_layer_leave_a_plain_config(family, tmp_path):
    model = tiny(family)
    cut_(model, {s.name: torch.arange(1, 4) if s.kind == "attention" else torch.arange(40) for s in sites_of(model)})
    niwaki.save(model, tmp_path / "b")
    before = model.config.to_dict()
    niwaki.save(model, tmp_path / "a")
    assert model.config.to_dict() == before
    assert before["num_attention_heads"] == 6
    assert "niwaki" not in (tmp_path / "a" / "config.json").read_text()
    loaded = niwaki.load(tmp_path / "a")
    assert [site.units for site in sites_of(loaded)] == [3, 40] * 3
    assert torch.equal(logits(loaded, batches()[0]), logits(model, batches()[0]))
    for cache in CACHES:
        assert torch.equal(generated(loaded, cache), generated(model, "none"))
