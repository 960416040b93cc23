"""What every family owes a trimmed vocabulary: the same logits for the tokens that stay, however it is saved."""

from __future__ import annotations

import copy

import pytest
import torch
from peft import LoraConfig, get_peft_model
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    GPT2Config,
    GPT2ForSequenceClassification,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
)

import niwaki
from helpers_tasks import PAIRS, model_of
from niwaki.adapters import merge_
from niwaki.anatomy import count, is_language_model, longest_input
from niwaki.checkpoint import write_adapter
from niwaki.export import export_remote_code
from tiny import VOCABULARY, auto_class, batches, configs, decoders, encoders, logits, tiny, transposed, with_lora

WORDS = [f"w{index}" for index in range(VOCABULARY)]
CORPUS = [" ".join(WORDS[3::4]), " ".join(WORDS[40:50])]


def tokenizer(pad=0, words=WORDS):
    made = Tokenizer(models.WordLevel({word: index for index, word in enumerate(words)}, unk_token="w1"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=made, pad_token=words[pad], unk_token="w1", eos_token="w2")


def trim(model, pad=0):
    """The new tokenizer, the old ids of its tokens, the result."""
    old = tokenizer(pad)
    new, result = niwaki.trim_vocabulary_(model, old, CORPUS)
    return new, torch.tensor(old.convert_tokens_to_ids(new.convert_ids_to_tokens(range(len(new))))), result


def pair(kept, old_pad=0, family="distilbert"):
    """The same batch in new and in old ids, padded."""
    batch = batches(1, family=family)[0]
    new = batch["input_ids"] % len(kept)
    new[batch["attention_mask"] == 0] = int((kept == old_pad).nonzero())
    if family in decoders():
        batch["labels"] = new.masked_fill(batch["attention_mask"] == 0, -100)
    return {**batch, "input_ids": new}, {**batch, "input_ids": kept[new]}


def wanted(model, batch, kept):
    found = logits(model, batch)
    return found[:, kept] if is_language_model(model) else found


def close(found, expected):
    """A narrower product may be summed in another order elsewhere; here the two are the same bits."""
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    ("family", "lora"),
    [
        *((family, False) for family in configs()),
        *((family, True) for family in ("distilbert", "llama", "phi3", "gpt2")),
    ],
)
def test_logits_stay(family, lora, tmp_path):
    model = with_lora(tiny(family)) if lora else tiny(family)
    dense = copy.deepcopy(model)
    new, kept, result = trim(model)
    assert {0, 1, 2, 3, 40, 43} <= set(kept.tolist()) < set(range(VOCABULARY))
    assert result.achieved == len(kept) / VOCABULARY
    batch, before = pair(kept, family=family)
    found = logits(model, batch)
    close(found, wanted(dense, before, kept))
    fewer = count(dense, 9.0).embedding_params - count(model, 9.0).embedding_params
    assert fewer == (VOCABULARY - len(kept)) * dense.get_input_embeddings().weight.shape[1]
    niwaki.save(model, tmp_path / "saved", new)
    plain = merge_(copy.deepcopy(model))
    for again in (niwaki.load(tmp_path / "saved"), auto_class(family).from_pretrained(tmp_path / "saved")):
        assert torch.equal(logits(again.eval(), batch), logits(plain, batch))
        for key in ("vocab_size", "pad_token_id", "bos_token_id", "eos_token_id"):
            assert getattr(again.config, key, None) == getattr(plain.config, key, None)
    if not lora and family not in ("gpt_neox", "mobilellm"):
        unscored = {"head_score": "random", "neuron_score": "random", "repair": "none"}
        niwaki.prune_(model, niwaki.Structured(flops=0.7, **unscored), [batch])
        export_remote_code(model, tmp_path / "code", new)
        again = niwaki.load(tmp_path / "code")
        assert torch.equal(logits(again, batch), logits(merge_(model), batch))


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("family", decoders())
def test_a_head_goes_with_its_embedding(family, tied, tmp_path):
    config = decoders()[family]
    config.tie_word_embeddings = tied
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config).eval()
    dense = copy.deepcopy(model)
    new, kept, _ = trim(model)
    first, last = model.get_input_embeddings(), model.get_output_embeddings()
    assert (last.weight is first.weight) == tied
    assert last.weight.shape[0] == first.weight.shape[0] == len(kept)
    batch, before = pair(kept, family=family)
    close(logits(model, batch), wanted(dense, before, kept))
    niwaki.save(model, tmp_path / "saved", new)
    again = niwaki.load(tmp_path / "saved")
    assert (again.get_input_embeddings().weight is again.get_output_embeddings().weight) == tied
    assert torch.equal(logits(again, batch), logits(model, batch))
    assert again.generate(batch["input_ids"][:1], max_new_tokens=3, eos_token_id=None).max() < len(kept)


def test_the_bias_of_a_head_goes_too():
    model = LlamaForCausalLM(LlamaConfig(**decoders()["llama"].to_dict())).eval()
    model.lm_head = torch.nn.Linear(32, VOCABULARY)
    dense = copy.deepcopy(model)
    _, kept, _ = trim(model)
    batch, before = pair(kept, family="llama")
    close(logits(model, batch), wanted(dense, before, kept))


@pytest.mark.parametrize("family", encoders())
def test_padding_with_another_id(family, tmp_path):
    """Where positions are counted from the id of the padding on, that stays where it is, and all below it."""
    config, pad = encoders()[family], 9
    config.pad_token_id = pad
    torch.manual_seed(0)
    model = AutoModelForSequenceClassification.from_config(config).eval()
    dense = copy.deepcopy(model)
    new, kept, _ = trim(model, pad)
    fixed = family in ("roberta", "xlm-roberta", "camembert")
    assert model.config.pad_token_id == new.pad_token_id == (pad if fixed else int((kept == pad).nonzero()))
    assert longest_input(model) == longest_input(dense)
    batch, before = pair(kept, pad)
    assert torch.equal(logits(model, batch), logits(dense, before))
    niwaki.save(model, tmp_path / "saved", new)
    again = niwaki.load(tmp_path / "saved")
    assert torch.equal(logits(again, batch), logits(dense, before))
    assert again.get_input_embeddings().padding_idx == model.get_input_embeddings().padding_idx is not None


def test_a_decoder_that_classifies():
    config = GPT2Config(vocab_size=VOCABULARY, n_embd=32, n_layer=2, n_head=4, pad_token_id=7, num_labels=3)
    model = GPT2ForSequenceClassification(config).eval()
    dense = copy.deepcopy(model)
    _, kept, _ = trim(model, pad=7)
    batch, before = pair(kept, 7)
    assert model.config.pad_token_id == int((kept == 7).nonzero()) != 7
    assert torch.equal(logits(model, batch), logits(dense, before))


def test_ids_in_the_configs_are_numbered_anew(tmp_path):
    model = tiny("llama")
    model.config.eos_token_id = [2, 30, 59]
    generation = model.generation_config
    generation.eos_token_id, generation.pad_token_id = [2, 30, 59], 58
    generation.suppress_tokens, generation.bad_words_ids = [17], [[18, 21], [22]]
    new, kept, _ = trim(model)
    place = {int(old): index for index, old in enumerate(kept)}
    assert model.config.eos_token_id == generation.eos_token_id == [place[2], place[30], place[59]]
    assert generation.pad_token_id == place[58]
    assert generation.suppress_tokens == [place[17]]
    assert generation.bad_words_ids == [[place[18], place[21]], [place[22]]]
    niwaki.save(model, tmp_path / "saved", new)
    again = niwaki.load(tmp_path / "saved")
    assert again.config.eos_token_id == again.generation_config.eos_token_id == model.config.eos_token_id
    model.generation_config.sequence_bias = {(3,): -1.0}
    with pytest.raises(niwaki.RequestError, match="sequence_bias"):
        niwaki.trim_vocabulary_(model, new, CORPUS)


def test_a_row_that_only_the_config_names_comes_last():
    model = tiny("llama")
    model.config.pad_token_id = 55
    dense = model.get_input_embeddings().weight.detach().clone()
    old = tokenizer(words=WORDS[:50])
    new, result = niwaki.trim_vocabulary_(model, old, CORPUS)
    assert result.details["rows_without_token"] == 9
    assert model.config.pad_token_id == len(new) == model.config.vocab_size - 1
    assert torch.equal(model.get_input_embeddings().weight[-1], dense[55])


@pytest.mark.parametrize(
    "options",
    [
        {"target_modules": ["q_proj", "embed_tokens"]},
        {"target_modules": ["q_proj"], "modules_to_save": ["embed_tokens"]},
        {"target_modules": ["q_proj"], "modules_to_save": ["lm_head"]},
        {"target_modules": ["q_proj"], "trainable_token_indices": [3, 4]},
    ],
)
def test_adapters_on_the_embeddings_are_refused(options):
    model = get_peft_model(tiny("llama"), LoraConfig(task_type="CAUSAL_LM", r=2, **options))
    with pytest.raises(niwaki.RequestError, match=r"adapter must not be on the embeddings .* 'default'"):
        trim(model)


@pytest.mark.parametrize("family", ["distilbert", "llama"])
def test_an_adapter_beside_its_trimmed_base(family, tmp_path):
    model = with_lora(tiny(family))
    new, kept, _ = trim(model)
    batch, _ = pair(kept, family=family)
    before = logits(model, batch)
    (tmp_path / "kept").mkdir()
    write_adapter(model, tmp_path / "kept", tmp_path / "kept", new)
    again = niwaki.load(tmp_path / "kept")
    assert torch.equal(logits(again, batch), before)
    assert transposed(again) is False


@pytest.mark.parametrize(("task", "family"), [pair for pair in PAIRS if pair.values[0].name == "masked"])
def test_heads_of_masked_words_load_again_and_say_what_they_said(task, family, tmp_path):
    model = model_of(task, family)
    whole, old = copy.deepcopy(model), tokenizer(model.config.pad_token_id or 0)
    new, _ = niwaki.trim_vocabulary_(model, old, CORPUS)
    kept = torch.tensor(old.convert_tokens_to_ids(new.convert_ids_to_tokens(range(len(new)))))
    niwaki.save(model, tmp_path / "small", new)
    again = niwaki.load(tmp_path / "small")
    for name, value in again.state_dict().items():
        assert VOCABULARY not in value.shape, name
    ids = torch.arange(len(kept))[None, -12:]
    with torch.no_grad():
        close(again(input_ids=ids).logits, whole(input_ids=kept[ids]).logits[..., kept])
