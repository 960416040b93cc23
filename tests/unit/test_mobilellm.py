"""MobileLLM: published configs are understood, blocks run twice, their statistics add up, a plain one is a Llama."""

from __future__ import annotations

import json

import pytest
import torch
from transformers import AutoConfig, LlamaForCausalLM

import niwaki
from niwaki.anatomy import linears_of, sites_of
from niwaki.anatomy.modeling_mobilellm import MobileLLMConfig, MobileLLMForCausalLM
from niwaki.observe import Need, observe
from niwaki.observe.moments import input_moments
from tiny import batches, logits, tiny

PUBLISHED = {
    "architectures": ["MobileLLMForCausalLM"],
    "auto_map": {"AutoConfig": "configuration_mobilellm.MobileLLMConfig"},
    "model_type": "mobilellm",
    "vocab_size": 60,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "max_position_embeddings": 40,
    "share_embedding": True,
    "tie_word_embeddings": False,
    "pad_token_id": 0,
}


def _published(folder, layer_sharing):
    """A checkpoint as it is published: no output layer, and code that must not be run."""
    model = tiny("mobilellm")
    model.save_pretrained(folder)
    config = {**PUBLISHED, "layer_sharing": layer_sharing}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "configuration_mobilellm.py").write_text("raise SystemExit")
    return model


def _by_hand(model, ids):
    """Logits of a decoder whose blocks are run twice each, one by one."""
    hidden, length = model.model.embed_tokens(ids), ids.shape[1]
    positions = model.model.rotary_emb(hidden, position_ids=torch.arange(length)[None])
    mask = torch.full((length, length), -1e9).triu(1)[None, None]
    for index in range(3):
        for _ in range(2):
            hidden = model.model.layers[index](hidden, position_embeddings=positions, attention_mask=mask)
    return model.lm_head(model.model.norm(hidden))


def test_every_block_runs_twice():
    model = tiny("mobilellm")
    ids = batches()[0]["input_ids"]
    torch.testing.assert_close(model(ids).logits, _by_hand(model, ids))
    assert len(sites_of(model)) == 6
    assert sum(p.numel() for p in model.parameters()) == sum(p.numel() for p in tiny("llama").parameters()) - 60 * 32


def test_a_published_checkpoint_loads_without_its_code(tmp_path):
    model, batch = _published(tmp_path / "ls", layer_sharing=True), batches()[0]
    loaded = niwaki.load(tmp_path / "ls")
    assert isinstance(loaded, MobileLLMForCausalLM)
    assert torch.equal(logits(loaded, batch), logits(model, batch))
    assert (loaded.config.repeats, loaded.config.num_hidden_layers) == (2, 6)
    niwaki.save(loaded, tmp_path / "again")
    again = niwaki.load(tmp_path / "again")
    assert torch.equal(logits(again, batch), logits(model, batch))
    assert AutoConfig.from_pretrained(tmp_path / "again").repeats == 2


def test_one_that_repeats_nothing_is_a_llama(tmp_path):
    model, batch = _published(tmp_path / "plain", layer_sharing=False), batches()[0]
    loaded = niwaki.load(tmp_path / "plain")
    assert isinstance(loaded, LlamaForCausalLM)
    assert not isinstance(loaded, MobileLLMForCausalLM)
    assert loaded.config.tie_word_embeddings
    assert torch.equal(loaded.model.layers[2].mlp.up_proj.weight, model.model.layers[2].mlp.up_proj.weight)
    niwaki.save(loaded, tmp_path / "again")
    assert json.loads((tmp_path / "again" / "config.json").read_text())["model_type"] == "llama"
    assert torch.equal(logits(LlamaForCausalLM.from_pretrained(tmp_path / "again"), batch), logits(loaded, batch))


@pytest.mark.parametrize("repeats", [0, 4])
def test_repeats_that_do_not_fit_are_refused(repeats):
    with pytest.raises(Exception, match="repeats must divide the 6 num_hidden_layers"):
        MobileLLMConfig(num_hidden_layers=6, repeats=repeats)


def test_statistics_of_both_runs_add_up():
    model, batch = tiny("mobilellm"), batches(count=1, family="mobilellm")[0]
    keep = batch["attention_mask"].bool()
    seen = {site.name: [] for site in sites_of(model)}
    hooks = [
        site.output.register_forward_pre_hook(lambda _m, args, name=site.name: seen[name].append(args[0][keep]))
        for site in sites_of(model)
    ]
    logits(model, batch)
    for hook in hooks:
        hook.remove()
    found = observe(model, [batch], Need(attention=True))
    moments = {linear.name: value for linear, value in input_moments(model, [batch])}
    for name, parts in seen.items():
        assert len(parts) == 2
        x = torch.cat(parts)
        linear = name.replace("attention", "output").replace("ffn", "down")
        torch.testing.assert_close(moments[linear].float(), x.T @ x, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(found.linears[linear].input_squares.float(), x.square().sum(0), rtol=1e-4, atol=1e-4)
    pairs = found.sites["layer.0.attention"].attention[:, 2]
    assert pairs.tolist() == [2 * float(keep.sum()) * 2] * 4  # two runs, two query heads a group


def test_tokens_weigh_in_the_order_of_the_runs():
    model, batch = tiny("mobilellm"), batches(count=1, family="mobilellm")[0]
    seen = observe(model, [batch], Need(token_sizes=True), seed=3)
    whole, streamed = seen.token_weights[0], seen.token_sizes[0]
    for linear in linears_of(model):
        sizes = streamed[linear.name].sqrt()
        assert len(sizes) == 2 * int(batch["attention_mask"].sum())
        torch.testing.assert_close(whole[linear.name], sizes / sizes.mean() + 0.3)


@pytest.mark.parametrize("config", [niwaki.Structured(flops=0.6), niwaki.LayerAdaptive(sparsity=0.6)])
def test_repair_brings_the_pruned_model_nearer(config):
    data, dense, distances = batches(rows=24, family="mobilellm"), tiny("mobilellm"), {}
    for repair in ("none", config.repair):
        model = tiny("mobilellm")
        niwaki.prune_(model, type(config)(**{**vars(config), "repair": repair}), data)
        distances[repair] = sum(float((logits(model, b) - logits(dense, b)).square().mean()) for b in data)
    assert distances[config.repair] < distances["none"]
