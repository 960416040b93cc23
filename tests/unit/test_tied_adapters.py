"""Adapters around weights that two modules share: what is merged and saved computes what the adapters do."""

from __future__ import annotations

import copy

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForMaskedLM, BertConfig

import niwaki
from tiny import batches, tiny

pytestmark = pytest.mark.filterwarnings("ignore:Model has `tie_word_embeddings=True`:UserWarning")  # PEFT's own


def tied(kind):
    if kind != "bert":
        model = tiny(kind)
        model.config.tie_word_embeddings = True
        model.tie_weights()
        return model
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=60, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=48,
        max_position_embeddings=40,
    )  # fmt: skip
    model = AutoModelForMaskedLM.from_config(config)
    with torch.no_grad():
        model.cls.predictions.bias.normal_()
    return model.eval()


def adapted(kind, targets, **options):
    model = get_peft_model(tied(kind), LoraConfig(r=4, target_modules=targets, **options))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_" in name:
                parameter.normal_(0, 0.1)
    return model.eval()


@torch.no_grad()
def said(model):
    batch = batches()[0]
    return model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits


@pytest.mark.parametrize(
    ("kind", "targets"),
    [
        ("llama", ["q_proj", "lm_head"]),
        ("llama", ["embed_tokens"]),
        ("llama", ["embed_tokens", "lm_head"]),
        ("gpt2", ["lm_head"]),
        ("bert", ["query", "decoder"]),
    ],
)
def test_an_adapter_around_one_of_two_is_that_of_one(kind, targets, tmp_path):
    model = adapted(kind, targets)
    wanted = said(model)
    merged = niwaki.merge_(copy.deepcopy(model))
    torch.testing.assert_close(said(merged), wanted, rtol=1e-4, atol=1e-5)
    niwaki.save(model, tmp_path / "a")
    torch.testing.assert_close(said(type(merged).from_pretrained(tmp_path / "a").eval()), wanted, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(said(model), wanted, rtol=0, atol=0)


def test_the_teacher_is_the_model_that_came(tmp_path):
    data = batches(count=2, family="llama")
    model = adapted("llama", ["q_proj", "lm_head"])
    wanted = said(model)
    niwaki.prune_(model, niwaki.Structured(flops=0.98, round_to=1), data)
    assert float((said(model) - wanted).abs().max()) < 0.5  # 1.3 by the wrong teacher


def test_what_is_tied_stays_tied_where_no_adapter_is(tmp_path):
    merged = niwaki.merge_(adapted("llama", ["q_proj"]))
    assert merged.lm_head.weight is merged.model.embed_tokens.weight
    assert merged.config.tie_word_embeddings


def test_tied_adapters_are_refused_in_a_line(tmp_path):
    model = adapted("llama", ["lm_head"], ensure_weight_tying=True)
    with pytest.raises(niwaki.RequestError, match=r"must be made without ensure_weight_tying, .* merge it first"):
        niwaki.save(model, tmp_path / "a")
