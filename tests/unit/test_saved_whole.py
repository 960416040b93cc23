"""However a pruned model is saved, the folder loads: the shapes are in its config from the cut on."""

from __future__ import annotations

import copy
import json

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForSequenceClassification,
    DistilBertForSequenceClassification,
    LlamaForCausalLM,
    Trainer,
    TrainingArguments,
)
from transformers.quantizers import auto

import niwaki
from helpers_text import letter_tokenizer
from niwaki.adapters import masks_of
from niwaki.anatomy import body_of, linears_of, sites_of, weight_of
from niwaki.checkpoint import shapes_of, write_adapter
from niwaki.surgery import cut_
from tiny import auto_class, batches, configs, logits, tiny, with_lora

BATCH = batches(count=1)[0]


def keep(model, neurons, heads=None):
    """Cut every layer to so many neurons (a list: one a layer) and, if given, heads."""
    plan = {}
    for site in sites_of(model):
        wanted = heads if site.kind == "attention" else neurons
        wanted = wanted[site.layer] if isinstance(wanted, list) else wanted
        plan[site.name] = torch.arange(site.units)[: site.units if wanted is None else wanted]
    cut_(model, plan)
    return model


def assert_loads(folder, model, family="distilbert"):
    batch = batches(count=1, family=family)[0]
    for load in (niwaki.load, auto_class(family).from_pretrained):
        again = load(folder).eval()
        assert shapes_of(again) == shapes_of(model)
        assert torch.equal(logits(again, batch), logits(model, batch))
    return again


@pytest.mark.parametrize("family", configs())
def test_save_pretrained_after_a_cut(family, tmp_path):
    model = tiny(family)
    keep(model, [0, 7, 20], None if sites_of(model)[0].fixed else [2, 1, 0])
    model.save_pretrained(tmp_path)
    assert_loads(tmp_path, model, family)


def test_a_cut_that_leaves_layers_alike_is_a_plain_config_from_then_on(tmp_path):
    model = keep(tiny("llama"), 16, 2)
    assert model.config.intermediate_size == 16
    assert model.config.num_key_value_heads == 2
    assert not hasattr(model.config, "quantization_config")
    model.save_pretrained(tmp_path / "a")
    assert "niwaki" not in (tmp_path / "a" / "config.json").read_text()
    again = assert_loads(tmp_path / "a", model, "llama")
    keep(again, [16, 3, 5], [2, 1, 2]).save_pretrained(tmp_path / "b")
    again = assert_loads(tmp_path / "b", again, "llama")
    keep(again, 3, 1).save_pretrained(tmp_path / "c")
    assert "niwaki" not in (tmp_path / "c" / "config.json").read_text()
    assert_loads(tmp_path / "c", again, "llama")


def test_cut_again_loaded_and_cut_again(tmp_path):
    model = keep(tiny(), [40, 30, 20], [4, 3, 2])
    keep(model, [40, 10, 20], [4, 3, 1]).save_pretrained(tmp_path / "a")
    again = assert_loads(tmp_path / "a", model)
    keep(again, [5, 10, 0], [4, 0, 1]).save_pretrained(tmp_path / "b")
    assert_loads(tmp_path / "b", again)


def test_the_trainer_trains_and_saves_a_pruned_model(tmp_path):
    model = keep(tiny(), [9, 8, 7], [1, 2, 3])
    rows = [{key: value[row] for key, value in BATCH.items()} for row in range(4)]
    arguments = TrainingArguments(
        output_dir=str(tmp_path / "run"), max_steps=1, report_to=[], use_cpu=True, save_strategy="no", disable_tqdm=True
    )
    trainer = Trainer(model, arguments, train_dataset=rows)
    trainer.train()
    trainer.save_model(str(tmp_path / "out"))
    again = assert_loads(tmp_path / "out", model.eval())
    Trainer(again, arguments, train_dataset=rows).train()  # a reloaded one is a model like any other
    assert not hasattr(again, "hf_quantizer")
    assert not again.is_quantized


def test_query_heads_that_went_are_in_the_config(tmp_path):
    model = tiny("llama")
    config = niwaki.Structured(flops=0.8, head_unit="query-head", head_score="random", repair="none")
    niwaki.prune_(model, config, batches(count=1, family="llama"))
    model.save_pretrained(tmp_path)
    assert_loads(tmp_path, model, "llama")


def test_masks_that_are_held_are_zeros_in_the_file(tmp_path):
    model = keep(tiny(), [9, 8, 7], [1, 2, 3])
    niwaki.prune_(model, niwaki.LayerAdaptive(sparsity=0.5, weight_score="magnitude", repair="none"), [BATCH])
    model.save_pretrained(tmp_path)
    again = assert_loads(tmp_path, model)
    for linear in linears_of(again):
        assert (weight_of(linear.module)[~masks_of(model)[linear.name]] == 0).all()


def test_a_packed_folder_that_was_loaded_is_saved_as_what_it_is(tmp_path):
    model = keep(tiny(), [9, 8, 7])
    niwaki.prune_(model, niwaki.LayerAdaptive(sparsity=0.5, weight_score="magnitude", repair="none"), [BATCH])
    niwaki.save(model, tmp_path / "packed", compact=True)
    AutoModelForSequenceClassification.from_pretrained(tmp_path / "packed").save_pretrained(tmp_path / "plain")
    assert_loads(tmp_path / "plain", model)


def test_an_adapter_on_a_pruned_base(tmp_path):
    model = with_lora(tiny())
    keep(model, [9, 8, 0], [1, 0, 3])
    model.save_pretrained(str(tmp_path / "adapter"))
    niwaki.merge_(copy.deepcopy(model)).save_pretrained(tmp_path / "merged")
    assert_loads(tmp_path / "merged", niwaki.merge_(copy.deepcopy(model)))
    copy.deepcopy(model).unload().save_pretrained(tmp_path / "base")
    base = AutoModelForSequenceClassification.from_pretrained(tmp_path / "base")
    for again in (
        niwaki.load(tmp_path / "adapter", base_model=str(tmp_path / "base")),
        PeftModel.from_pretrained(base, str(tmp_path / "adapter")).eval(),
    ):
        assert torch.equal(logits(again, BATCH), logits(model, BATCH))


def test_the_config_survives_dicts_and_json(tmp_path):
    model = keep(tiny(), [9, 8, 7], [1, 2, 3])
    model.save_pretrained(tmp_path)
    values = json.loads(json.dumps(model.config.to_dict()))
    for config in (
        type(model.config).from_dict(values),
        AutoConfig.from_pretrained(tmp_path),
        copy.deepcopy(model.config),
        model.config,
    ):
        again = AutoModelForSequenceClassification.from_pretrained(tmp_path, config=config).eval()
        assert torch.equal(logits(again, BATCH), logits(model, BATCH))
    model.config = type(model.config).from_dict(values)
    assert shapes_of(model)[0] == {"heads": 1, "neurons": 9}


def test_a_config_that_models_share_is_not_written_to():
    config = configs()["distilbert"]
    models = [DistilBertForSequenceClassification(config) for _ in range(2)]
    keep(models[0], [9, 8, 7])
    assert models[1].config is config
    assert not hasattr(config, "quantization_config")
    models[0].set_attn_implementation("eager")
    assert all(getattr(m, "config", models[0].config) is models[0].config for m in models[0].modules())


def test_a_vocabulary_is_trimmed_in_the_config_of_its_model_alone():
    config = configs()["llama"]
    model, other = LlamaForCausalLM(config), LlamaForCausalLM(config)
    before = config.to_dict()
    niwaki.trim_vocabulary_(model, letter_tokenizer(), ["a cat"])
    assert other.config is config
    assert config.to_dict() == before
    assert model.config.vocab_size == model.lm_head.out_features < config.vocab_size
    assert all(getattr(m, "config", model.config) is model.config for m in model.modules())


def test_an_untied_head_is_in_the_config_of_its_model_alone(tmp_path):
    config = configs()["llama"]
    config.tie_word_embeddings = True
    model, other = LlamaForCausalLM(config), LlamaForCausalLM(config).eval()
    with pytest.warns(UserWarning, match="tie_word_embeddings"):  # PEFT's own
        merged = niwaki.merge_(get_peft_model(model, LoraConfig(target_modules=["lm_head"])))
    assert not merged.config.tie_word_embeddings
    assert other.config.tie_word_embeddings
    other.save_pretrained(tmp_path)
    batch = batches(family="llama")[0]
    assert torch.equal(logits(LlamaForCausalLM.from_pretrained(tmp_path).eval(), batch), logits(other, batch))


def test_saving_leaves_the_config_as_it_was(tmp_path):
    model = keep(tiny(), [9, 8, 7])
    niwaki.prune_(model, niwaki.LayerAdaptive(sparsity=0.5, weight_score="magnitude", repair="none"), [BATCH])
    before = model.config.to_dict()
    niwaki.save(model, tmp_path / "a")
    niwaki.save(model, tmp_path / "b", compact=True)
    assert model.config.to_dict() == before


@pytest.mark.parametrize(
    "options",
    [
        {"init_lora_weights": "pissa"},
        {"init_lora_weights": "pissa_niter_2"},
        {"init_lora_weights": "olora"},
        {"init_lora_weights": "orthogonal"},
        {"init_lora_weights": "gaussian"},
        {"init_lora_weights": False},
        {"init_lora_weights": "eva"},
    ],
    ids=lambda options: str(options["init_lora_weights"]),
)
@pytest.mark.filterwarnings("ignore:.*EVA:UserWarning")
@pytest.mark.filterwarnings("ignore:.*eva")
def test_an_adapter_that_started_from_the_base_comes_back(options, tmp_path):
    names = ["q_lin", "out_lin", "lin1"]
    model = get_peft_model(tiny(), LoraConfig(task_type="SEQ_CLS", r=4, target_modules=names, **options)).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_" in name:
                parameter.add_(0.1 * torch.randn(parameter.shape))
    for prune in (False, True):
        if prune:
            keep(model, [20, 10, 5], [4, 2, 1])
        (tmp_path / str(prune)).mkdir()
        write_adapter(model, tmp_path / str(prune), tmp_path / str(prune))
        again = niwaki.load(tmp_path / str(prune))
        torch.testing.assert_close(logits(again, BATCH), logits(model, BATCH), rtol=0, atol=1e-6)
        assert prune or model.peft_config["default"].init_lora_weights == options["init_lora_weights"]


def test_of_several_adapters_the_active_one_is_kept(tmp_path):
    model = get_peft_model(tiny(), LoraConfig(target_modules=["q_lin"], init_lora_weights=False)).eval()
    model.add_adapter("mine", LoraConfig(target_modules=["v_lin"], init_lora_weights=False))
    model.set_adapter("mine")
    write_adapter(model, tmp_path, tmp_path)
    assert torch.equal(logits(niwaki.load(tmp_path), BATCH), logits(model, BATCH))
    model.base_model.set_adapter(["default", "mine"])
    with pytest.raises(niwaki.RequestError, match="one adapter is active"):
        write_adapter(model, tmp_path, tmp_path)


def test_an_adapter_that_is_merged_is_kept_once(tmp_path):
    model = with_lora(tiny())
    before = logits(model, BATCH)
    model.merge_adapter()
    write_adapter(model, tmp_path, tmp_path)
    torch.testing.assert_close(logits(niwaki.load(tmp_path), BATCH), before, rtol=0, atol=1e-5)


@pytest.mark.parametrize("family", ["distilbert", "llama", "gpt2"])
@pytest.mark.parametrize("uneven", [False, True], ids=["even", "uneven"])
def test_from_pretrained_holds_the_masks_that_were_saved(family, uneven, tmp_path):
    model, data = tiny(family), batches(count=1, family=family)
    if uneven:
        keep(model, [9, 8, 7])
    niwaki.prune_(model, niwaki.LayerAdaptive(sparsity=0.5, weight_score="magnitude", repair="none"), data)
    niwaki.save(model, tmp_path)
    again = assert_loads(tmp_path, model, family)
    found = masks_of(again)
    assert found
    assert all(torch.equal(found[name], mask) for name, mask in masks_of(model).items())
    optimizer = torch.optim.AdamW(again.parameters(), lr=1e-2)
    again(**data[0]).loss.backward()
    optimizer.step()
    for linear in linears_of(again):
        assert (linear.module.masked_weight[~found[linear.name]] == 0).all()
    (tmp_path / "masks.safetensors").unlink()
    with pytest.raises(niwaki.RequestError, match=r"beside its masks\.safetensors"):
        auto_class(family).from_pretrained(tmp_path)


@pytest.mark.parametrize("family", ["distilbert", "bert", "llama", "opt", "gpt2"])
@pytest.mark.parametrize("compact", [False, True], ids=["dense", "compact"])
def test_masks_come_along_from_a_head_to_a_body_and_back(family, compact, tmp_path):
    model, zeros = keep(tiny(family), [9, 8, 7]), niwaki.LayerAdaptive(sparsity=0.5, weight_score="magnitude",
                                                                      repair="none")  # fmt: skip
    niwaki.prune_(model, zeros, batches(count=1, family=family))
    for name, source in (("head", model), ("body", body_of(model))):
        niwaki.save(source, tmp_path / name, compact=compact)
    found = [AutoModel.from_pretrained(tmp_path / "head"), auto_class(family).from_pretrained(tmp_path / "body"),
             niwaki.load(tmp_path / "body", labels=["no", "yes", "maybe"])]  # fmt: skip
    for again in found:
        assert {name: mask.tolist() for name, mask in masks_of(again).items()} == {
            name: mask.tolist() for name, mask in masks_of(model).items()
        }
        states = [body_of(each)(input_ids=BATCH["input_ids"]).last_hidden_state for each in (again.eval(), model)]
        assert torch.equal(*states)


def test_where_niwaki_is_not_known_the_zeros_load(tmp_path, monkeypatch):
    model = tiny()
    niwaki.prune_(model, niwaki.LayerAdaptive(sparsity=0.5, weight_score="magnitude", repair="none"), [BATCH])
    niwaki.save(model, tmp_path)
    monkeypatch.delitem(auto.AUTO_QUANTIZATION_CONFIG_MAPPING, "niwaki")
    monkeypatch.delitem(auto.AUTO_QUANTIZER_MAPPING, "niwaki")
    again = AutoModelForSequenceClassification.from_pretrained(tmp_path).eval()
    assert torch.equal(logits(again, BATCH), logits(model, BATCH))
    assert not masks_of(again)


def test_masks_are_removed(tmp_path):
    model = tiny()
    niwaki.prune_(model, niwaki.LayerAdaptive(sparsity=0.5, weight_score="magnitude", repair="none"), [BATCH])
    masks, before = masks_of(model), logits(model, BATCH)
    tuned = get_peft_model(copy.deepcopy(model), LoraConfig(target_modules=["pre_classifier"]))
    lora = with_lora(copy.deepcopy(model))
    with pytest.raises(niwaki.RequestError, match="adapters must be merged"):
        niwaki.remove_masks_(lora)
    assert all(hasattr(linear.module.base_layer, "mask") for linear in linears_of(lora))
    merged = niwaki.merge_(lora, mask_adapters=True)
    for each in (model, tuned, merged):
        niwaki.remove_masks_(each)
        for linear in linears_of(each):
            assert type(linear.module) is torch.nn.Linear
            assert not hasattr(linear.module, "bits")
            assert (weight_of(linear.module)[~masks[linear.name]] == 0).all()
    assert torch.equal(logits(model, BATCH), before)
    assert torch.equal(logits(tuned.eval(), BATCH), before)
    niwaki.save(model, tmp_path)
    assert not masks_of(niwaki.load(tmp_path))
