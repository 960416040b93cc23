"""What families that GGUF is promised for owe: llama.cpp gives what PyTorch gives, even, uneven, padded, cached."""

from __future__ import annotations

import pytest
import torch

from niwaki.anatomy import sites_of
from niwaki.errors import RequestError
from niwaki.evaluate import greedy, perplexity
from niwaki.export import in_llama_cpp
from niwaki.export.gguf.architecture import architecture_of
from niwaki.surgery import cut_
from tiny import auto_class, batches, configs, decoders, logits, tiny

EVEN = {"llama": "llama", "mistral": "llama", "mobilellm": "llama", "qwen2": "qwen2", "qwen3": "qwen3"}
"""Family -> the architecture that its even models are written as."""
UNEVEN = [family for family in EVEN if family != "qwen3"]


def empty_sites(model):
    """The first layer loses its heads, the second its neurons, and the third some of both."""
    gone = {"layer.0.attention", "layer.1.ffn"}
    return {site.name: torch.arange(0 if site.name in gone else site.units - site.layer) for site in sites_of(model)}


def query_heads(model):
    """The first layer loses half the query heads of each group, the second all, the third a group and some neurons."""
    plan = {site.name: torch.arange(site.units - site.layer) for site in sites_of(model, query_heads=True)}
    heads = torch.arange(8).reshape(4, 2)
    return plan | {
        "layer.0.attention": heads[:, 1],
        "layer.1.attention": torch.arange(0),
        "layer.2.attention": heads[1:].flatten(),
    }


def empty_layer(model):
    """Nothing is left of the first layer."""
    return {site.name: torch.arange(site.units if site.layer else 0) for site in sites_of(model)}


PLANS = {"sites": empty_sites, "query heads": query_heads, "layer": empty_layer}


def _same(model, family):
    """Logits of padded rows, and what is generated, against PyTorch; short, as windows slide in some families."""
    there = in_llama_cpp(model).model
    batch = {key: value[:5, :6] for key, value in batches(family=family)[0].items()}
    # llama.cpp keeps keys and values in float16.
    torch.testing.assert_close(logits(there, batch), logits(model, batch), rtol=1e-2, atol=1e-2)
    ids = torch.tensor([7, 30])
    assert torch.equal(greedy(there, ids, 4), greedy(model, ids, 4))
    assert perplexity(there, [batch])["perplexity"] == pytest.approx(perplexity(model, [batch])["perplexity"], rel=1e-2)


@pytest.mark.parametrize("family", EVEN)
def test_even(family):
    model = tiny(family)
    assert architecture_of(model).name == EVEN[family]
    _same(model, family)


@pytest.mark.parametrize("plan", PLANS)
@pytest.mark.parametrize("family", UNEVEN)
def test_uneven(family, plan):
    model = tiny(family)
    cut_(model, PLANS[plan](model), query_heads=plan == "query heads")
    assert (architecture_of(model).name == EVEN[family]) == (plan == "layer")  # the layers that are left are alike
    _same(model, family)


def test_a_family_that_uneven_files_have_no_place_for_is_refused_by_name():
    model = tiny("qwen3")
    cut_(model, empty_sites(model))
    with pytest.raises(RequestError, match=r"qwen3 model whose layers are alike.*no norms of queries.*--allocation"):
        in_llama_cpp(model)


def test_biases_that_llama_cpp_has_no_place_for_are_refused_by_name():
    config = configs()["qwen3"]
    config.attention_bias = True
    with pytest.raises(RequestError, match=r"qwen3 model without biases, .*got attn_q.bias"):
        in_llama_cpp(auto_class("qwen3").from_config(config).eval())


@pytest.mark.parametrize("family", [family for family in decoders() if family not in EVEN])
def test_other_families_are_refused_by_name(family):
    with pytest.raises(RequestError, match=f"to gguf takes models of type llama, .*, got {family}"):
        in_llama_cpp(tiny(family))
