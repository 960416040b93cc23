"""Requests that are wrong are refused before any work, in one line that says what would be right."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from transformers import (
    AlbertConfig,
    AlbertForSequenceClassification,
    AutoModelForNextSentencePrediction,
    AutoModelForPreTraining,
    BloomConfig,
    BloomForSequenceClassification,
    GPT2Config,
    GPT2DoubleHeadsModel,
    GPT2ForSequenceClassification,
)

import niwaki
from helpers_tasks import model_of
from niwaki.allocation.budget import budget_of
from niwaki.anatomy import TASKS, sites_of
from niwaki.config import (
    Demo,
    Evaluation,
    Export,
    Recipe,
    Scoring,
    read_recipe,
    recipe_from_dict,
    recipe_to_dict,
    write_recipe,
)
from niwaki.run.inputs import _check_cut
from niwaki.surgery import cut_
from tiny import batches, configs, tiny, with_lora


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({}, ["exactly one", "none"]),
        ({"flops": 0.5, "params": 0.5}, ["exactly one", "flops and params"]),
        ({"flops": 0.0}, ["flops", "(0, 1]", "0"]),
        ({"params": 1.5}, ["params", "(0, 1]", "1.5"]),
        ({"flops": float("nan")}, ["flops", "nan"]),
        ({"flops": 0.5, "head_score": "fischer"}, ["head_score", "fischer", "did you mean 'fisher'"]),
        ({"flops": 0.5, "steps": 0}, ["steps", "at least 1"]),
    ],
)
def test_config_names_parameter_rule_and_value(options, words):
    with pytest.raises(niwaki.RequestError) as error:
        niwaki.Structured(**options)
    assert all(word in str(error.value) for word in words)
    assert "\n" not in str(error.value)


def test_budget_below_the_minimum_says_the_least():
    model = tiny()
    with pytest.raises(niwaki.RequestError, match=r"at least 0\.\d+.*got 0.01"):
        niwaki.prune_(model, niwaki.Structured(flops=0.01), batches())


def test_a_budget_that_keeps_nothing_says_the_least():
    options = {"min_heads": 0, "min_neurons": 0, "head_score": "random", "neuron_score": "random", "repair": "none"}
    with pytest.raises(
        niwaki.RequestError, match=r"flops must be at least 0\.\d+ with these minimum widths, got 0\.0001"
    ) as e:
        niwaki.prune_(tiny(), niwaki.Structured(flops=0.0001, **options), batches())
    least = float(str(e.value).split("at least ")[1].split(" ")[0])
    result = niwaki.prune_(tiny(), niwaki.Structured(flops=least, **options), batches())
    assert sum(site.kept for site in result.layers) == 1


def test_architectures_that_cannot_be_pruned():
    albert = AlbertForSequenceClassification(
        AlbertConfig(vocab_size=60, hidden_size=32, num_attention_heads=4, intermediate_size=48)
    )
    with pytest.raises(niwaki.RequestError, match=r"albert.*share"):
        niwaki.prune_(albert, niwaki.Structured(flops=0.5), batches())
    bloom = BloomForSequenceClassification(BloomConfig(vocab_size=60, hidden_size=32, n_layer=1, n_head=2))
    with pytest.raises(niwaki.RequestError, match=r"distilbert.*another needs a row.*got 'bloom'"):
        niwaki.prune_(bloom, niwaki.Structured(flops=0.5), batches())
    gpt2 = GPT2ForSequenceClassification(GPT2Config(vocab_size=60, n_embd=32, n_layer=1, n_head=2))
    with pytest.raises(niwaki.RequestError, match=r"pad_token_id .* got None"):
        niwaki.prune_(gpt2, niwaki.Structured(flops=0.5), batches())


@pytest.mark.parametrize(
    ("family", "change", "words"),
    [
        ("opt", {"do_layer_norm_before": False}, "do_layer_norm_before of a opt model must be True"),
        ("llama4_text", {"moe_layers": [1]}, r"moe_layers of a llama4_text model must be \[\] \(experts"),
        *(
            (name, {"add_cross_attention": True}, f"add_cross_attention of a {name} model must be False")
            for name in ("gpt2", "bert", "roberta", "electra")
        ),
    ],
)
def test_variants_that_a_row_is_not_right_for(family, change, words):
    model = tiny(family)
    for key, value in change.items():
        setattr(model.config, key, value)
    with pytest.raises(niwaki.RequestError, match=words):
        niwaki.prune_(model, niwaki.Structured(flops=0.5), batches())


def test_layers_that_share_weights_are_refused():
    twice, tied = tiny("bert"), tiny("bert")
    twice.bert.encoder.layer[1] = twice.bert.encoder.layer[0]
    layers = tied.bert.encoder.layer
    layers[1].intermediate.dense.weight = layers[0].intermediate.dense.weight
    for model in (twice, tied):
        for asked in _asked(model):
            with pytest.raises(niwaki.RequestError, match=r"layers must have weights of their own, got layer\.1\."):
                asked()


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        (lambda model: niwaki.apply_(model, "a-folder", batches()), "plan must be a plan .*Plan.load.*, got str"),
        (lambda model: niwaki.score(model, batches(), niwaki.Finetune()), "config must be Structured or .*, got Fine"),
        (lambda model: niwaki.finetune(model, niwaki.Structured(flops=1.0), batches()), "config must be Finetune, got"),
        (lambda model: niwaki.finetune(model, batches(), niwaki.Finetune()), "config must be Finetune, got list"),
        (lambda model: _plan(model, around=0.7), "around must be a list of sparsities, got float"),
        (lambda model: _plan(model, around=[1.5]), r"around must be fractions of zeros in \[0, 1\), got 1.5"),
        (lambda model: _plan(model, around=["0.5"]), r"around must be fractions .*, got '0.5'"),
        (lambda model: _plan(model).edit(sparsity=[1]), "sparsity must be a mapping .*, got list"),
        (lambda model: _plan(model).edit(sparsity={"layer.0": "a"}), "sparsity of layer.0 must be a ratio .*, got str"),
        (
            lambda model: niwaki.plan(model, niwaki.Structured(flops=0.8), batches()).edit(keep=[1]),
            "keep and drop must",
        ),
        (lambda model: niwaki.DynamicSparsity(sparsity=0.5).attach(model, None, 200), "optimizer must be a PyTorch"),
    ],
)
def test_an_argument_of_another_kind_is_refused_by_its_name(asked, said):
    with pytest.raises(niwaki.RequestError, match=f"^{said}"):
        asked(tiny("bert"))


def _plan(model, around=()):
    return niwaki.plan(model, niwaki.LayerAdaptive(sparsity=0.5, allocation="uniform"), batches(), around=around)


def _asked(model):
    """All that the Python API can be asked for."""
    yield lambda: niwaki.prune_(model, niwaki.Structured(flops=0.5), batches())
    yield lambda: niwaki.prune_(model, niwaki.LayerAdaptive(sparsity=0.5), batches())
    yield lambda: niwaki.score(model, batches())
    yield lambda: niwaki.finetune(model, niwaki.Finetune(), batches())


@pytest.mark.parametrize(
    ("make", "family"),
    [
        (AutoModelForPreTraining.from_config, "bert"),
        (AutoModelForNextSentencePrediction.from_config, "bert"),
        (GPT2DoubleHeadsModel, "gpt2"),
    ],
)
def test_a_model_of_another_task_is_refused(make, family):
    model = make(configs()[family])
    for asked in _asked(model):
        with pytest.raises(niwaki.RequestError, match=rf"ForSequenceClassification, .*, got {type(model).__name__}"):
            asked()


@pytest.mark.parametrize(
    ("key", "value", "labels", "rule"),
    [
        ("problem_type", "regression", 3, "single_label_classification .* num_labels 3, got 'regression'"),
        ("problem_type", "single_label_classification", 1, "regression .* num_labels 1, got 'single"),
        ("return_dict", False, 3, "must be True, got False"),
        ("chunk_size_feed_forward", 4, 3, "must be 0 .*, got 4"),
    ],
)
def test_a_config_that_cannot_be_handled_is_refused(key, value, labels, rule):
    model = tiny(labels=labels)
    setattr(model.config, key, value)
    for asked in _asked(model):
        with pytest.raises(niwaki.RequestError, match=f"{key} .*{rule}"):
            asked()


@pytest.mark.parametrize("kind", ["flops", "params", "latency"])
def test_a_model_with_nothing_left_is_refused(kind):
    model = tiny()
    cut_(model, {site.name: torch.arange(0) for site in sites_of(model)})
    for work in (niwaki.Structured(**{kind: 0.5}), niwaki.LayerAdaptive(sparsity=0.5)):
        with pytest.raises(niwaki.RequestError, match="heads or neurons left"):
            niwaki.prune_(model, work, batches())
    with pytest.raises(niwaki.RequestError, match="heads or neurons left"):
        niwaki.finetune(model, niwaki.Finetune(), batches())


@pytest.mark.parametrize(("flag", "most"), [("min_heads", 4), ("min_neurons", 48), ("round_to", 48)])
def test_a_width_that_no_layer_has_is_blamed_on_its_flag(flag, most):
    budget_of(tiny(), niwaki.Structured(flops=1.0, **{flag: most}), 10.0)
    with pytest.raises(niwaki.RequestError, match=f"{flag} must be at most {most}, .*, got {most + 1}"):
        niwaki.prune_(tiny(), niwaki.Structured(flops=0.5, **{flag: most + 1}), batches())


def test_a_budget_that_keeps_all_is_met_whatever_the_minimum():
    result = niwaki.prune_(tiny(), niwaki.Structured(flops=1.0, min_heads=4, min_neurons=48, repair="none"), batches())
    assert result.achieved == 1.0


def test_padding_alone_is_refused():
    empty = [{**batch, "attention_mask": torch.zeros_like(batch["attention_mask"])} for batch in batches()]
    with pytest.raises(niwaki.RequestError, match="real tokens"):
        niwaki.prune_(tiny(), niwaki.Structured(flops=0.5), empty)


def test_dora_is_refused():
    with pytest.raises(niwaki.RequestError, match="DoRA"):
        niwaki.prune_(with_lora(tiny(), use_dora=True), niwaki.Structured(flops=0.5), batches())


@pytest.mark.parametrize(
    "config", [niwaki.Finetune(), niwaki.DynamicSparsityConfig(sparsity=0.5), None, {"flops": 0.5}]
)
def test_what_does_not_prune_is_refused(config):
    with pytest.raises(
        niwaki.RequestError, match="config must be Structured, LayerAdaptive or DynamicSparsityTraining"
    ):
        niwaki.prune_(tiny(), config, batches())


def test_no_batches():
    with pytest.raises(niwaki.RequestError, match="at least one batch"):
        niwaki.prune_(tiny(), niwaki.Structured(flops=0.5), [])


@pytest.mark.parametrize("seed", [-1, 2**32, 10**30])
@pytest.mark.parametrize(
    "asked",
    [
        lambda seed: niwaki.Structured(flops=0.5, seed=seed),
        lambda seed: niwaki.LayerAdaptive(sparsity=0.5, seed=seed),
        lambda seed: niwaki.Finetune(seed=seed),
        lambda seed: Demo(seed=seed),
        lambda seed: Scoring(model="m", train_data="t", out="o", seed=seed),
    ],
)
def test_a_seed_out_of_range_is_refused(asked, seed):
    asked(2**32 - 1)
    with pytest.raises(niwaki.RequestError, match=f"seed must be .* 0 to 4294967295, got {seed}"):
        asked(seed)


REQUEST = {"model": "m", "train_data": "t.tsv", "eval_data": "e.tsv", "out": "o"}


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        (lambda: niwaki.Finetune(max_gradient_norm=float("inf")), "max_gradient_norm must be a finite .*0: it is not"),
        (lambda: niwaki.Finetune(weight_decay=np.float32("nan")), "weight_decay must be a finite number, got nan"),
        (lambda: niwaki.DynamicSparsityConfig(sparsity=0.5, warmup=float("inf")), "warmup must be a finite number"),
        (lambda: niwaki.DynamicSparsityConfig(sparsity=0.5, stop=12.7), "a whole number of steps, got 12.7"),
        (lambda: niwaki.DynamicSparsityConfig(sparsity=0.5, warmup=10**400), "warmup must be at most 1000000000000 in"),
        (lambda: niwaki.Finetune(epochs=10**23), "epochs must be at most 1000000000000 in size, got 1"),
        (lambda: niwaki.Finetune(epochs=-(10**400)), "epochs must be at most 1000000000000 in size, got -1"),
        (lambda: Demo(threads=10**11), "threads must be a whole number from 1 to 4096, got 100000000000"),
        (lambda: niwaki.Structured(flops=0.5, keep_layers=["9" * 5000]), "keep_layers must be whole numbers"),
        (lambda: Recipe(**REQUEST, stages=(niwaki.Finetune(),), max_memory="9" * 400), "max_memory must be a size"),
        (lambda: niwaki.Structured(flops=0.5, spared=("layer\ud800",)), r"spared must be .* UTF-8, got 'layer\\ud800'"),
        (lambda: Demo(out="caf\udce9"), r"out must be text in UTF-8, got 'caf"),
    ],
)
def test_what_no_recipe_can_hold_is_refused_at_the_start(asked, said):
    with pytest.raises(niwaki.RequestError, match=said):
        asked()


def test_a_name_that_begins_with_a_tilde_lies_in_the_home_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    structured = {"kind": "structured", "flops": 0.5, "plan": "~/plan"}
    asked = {
        **REQUEST,
        "model": "~/m",
        "out": "~/o",
        "label_column": "~/c",
        "tasks": "~/q.jsonl,arc",
        "base_model": "~",
    }
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump({**asked, "stages": [structured]}))
    recipe = read_recipe(Path("~/recipe.yaml"))
    assert (recipe.model, recipe.out) == (f"{tmp_path}/m", f"{tmp_path}/o")
    assert (recipe.base_model, recipe.plans) == (str(tmp_path), (f"{tmp_path}/plan",))
    assert (recipe.task_files, recipe.task_names) == ((f"{tmp_path}/q.jsonl",), ("arc",))
    assert (recipe.train_data, recipe.label_column) == ("t.tsv", "~/c")
    with pytest.raises(niwaki.RequestError, match="out that begins with ~ must lie in a home folder that there is"):
        Demo(out="~nobody-of-this-name/x")


@pytest.mark.parametrize(
    ("key", "flags"), [("overwrite", "--overwrite says"), ("resume", r"--resume \(the default\) or --restart")]
)
def test_what_is_asked_anew_each_time_is_no_part_of_a_recipe(key, flags):
    plain = {**REQUEST, "stages": [{"kind": "finetune"}]}
    with pytest.raises(niwaki.RequestError, match=f"recipe must leave out {key}, which {flags}.* got True"):
        recipe_from_dict({**plain, key: True})
    with pytest.raises(niwaki.RequestError, match="recipe key must be one of") as error:
        recipe_from_dict({**plain, "other": 1})
    assert f" {key}," not in str(error.value)
    assert getattr(recipe_from_dict(plain, overwrite=True, resume=False), key) is (key == "overwrite")


def test_a_recipe_that_is_not_utf8_is_refused(tmp_path):
    (tmp_path / "recipe.yaml").write_bytes(b"model: caf\xe9\n")
    with pytest.raises(niwaki.RequestError, match=r"recipe.yaml' is not valid YAML in UTF-8: .*0xe9"):
        read_recipe(tmp_path / "recipe.yaml")


def test_recipe_round_trip(tmp_path):
    recipe = Recipe(
        model="m",
        train_data="t.tsv",
        eval_data="e.tsv",
        out="o",
        stages=(niwaki.Finetune(epochs=2), niwaki.Structured(flops=0.5)),
        text_columns=("a", "b"),
    )
    write_recipe(recipe, tmp_path / "recipe.yaml")
    assert read_recipe(tmp_path / "recipe.yaml") == recipe
    plain = recipe_to_dict(recipe)
    plain["modle"] = plain.pop("model")
    with pytest.raises(niwaki.RequestError, match=r"modle.*did you mean 'model'"):
        recipe_from_dict(plain)
    plain["model"] = plain.pop("modle")
    plain["stages"][1]["flops"] = "half"
    with pytest.raises(niwaki.RequestError, match=r"structured\.flops must be float or .*got 'half'"):
        recipe_from_dict(plain)


@pytest.mark.parametrize(
    ("made", "message"),
    [
        (lambda: niwaki.Structured(flops="half"), "flops must be float or nothing, got 'half'"),
        (lambda: niwaki.Structured(flops=True), "flops must be float or nothing, got True"),
        (lambda: niwaki.Structured(flops=0.5, steps=2.0), "steps must be int, got 2.0"),
        (lambda: niwaki.Structured(flops=0.5, seed=None), "seed must be int, got None"),
        (lambda: niwaki.Structured(flops=0.5, head_score=niwaki), "head_score must be str, got <module"),
        (lambda: niwaki.LayerAdaptive(sparsity="0.5"), "sparsity must be float or nothing, got '0.5'"),
        (lambda: niwaki.LayerAdaptive(sparsity=0.5, fast=1), "fast must be bool, got 1"),
        (lambda: niwaki.LayerAdaptive(sparsity=0.5, keep_layers=3), "keep_layers must be nothing or tuple, got 3"),
        (lambda: niwaki.LayerAdaptive(sparsity=0.5, spared="layer.0.ffn"), "spared must be nothing or tuple, got 'la"),
        (lambda: niwaki.DynamicSparsity(sparsity=[0.5]), r"sparsity must be float, got \[0.5\]"),
        (lambda: niwaki.Finetune(epochs="two"), "epochs must be int, got 'two'"),
        (lambda: niwaki.Vocabulary(size=1e3), "size must be int or nothing, got 1000.0"),
    ],
)
def test_a_field_of_another_type_is_refused_by_its_name(made: Callable[[], Any], message: str) -> None:
    with pytest.raises(niwaki.RequestError, match=f"^{message}"):
        made()


def test_numbers_of_numpy_paths_and_lists_become_what_a_recipe_holds(tmp_path: Path) -> None:
    stage = niwaki.Structured(flops=np.float32(0.5), steps=np.int64(2), keep_layers=[np.int64(1)])
    recipe = Recipe(model=tmp_path, train_data="t", eval_data="e", out=tmp_path / "o", stages=[stage])
    write_recipe(recipe, tmp_path / "recipe.yaml")
    assert read_recipe(tmp_path / "recipe.yaml") == recipe
    assert recipe.stages == (niwaki.Structured(flops=0.5, steps=2, keep_layers=(1,)),)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"to": "onxn"}, "to must be one of .*did you mean 'onnx'"),
        ({"to": "onnx", "quantize": "q8_0"}, "quantize must be none or int8 or int8-static for to onnx, got"),
        ({"to": "onnx", "quantize": "int8-static"}, "train_data must be given with quantize int8-static"),
        ({"to": "openvino", "quantize": "int8"}, "quantize must be none or int8-static for to openvino"),
        ({"to": "onnx", "train_data": "t"}, "train_data must not be given with quantize none"),
        ({"to": "onnx", "quantize": "int8", "max_divergence": 0.1}, "max_divergence must not be given with no train_d"),
        ({"to": "gguf", "quantize": "int8"}, "quantize must be none or f16 .* for to gguf, got 'int8'"),
        ({"to": "merged", "quantize": "f16"}, "quantize must be none for to merged"),
        ({"to": "gguf", "optimize": True}, "optimize must be asked with to onnx, got to gguf"),
        ({"to": "onnx", "dtype": "bfloat16"}, "dtype must be float32 or auto for to onnx"),
        ({"to": "onnx", "max_drop": 0.1, "eval_data": "e"}, "max_drop and eval_data must be asked together, and with"),
        ({"to": "onnx", "quantize": "int8", "eval_data": "e"}, "max_drop and eval_data must be asked together"),
    ],
)
def test_exports_that_cannot_be(options, message):
    with pytest.raises(niwaki.RequestError, match=message):
        Export(model="m", out="o", **options)


@pytest.mark.parametrize("written", [False, True])
def test_the_seed_of_a_recipe_is_that_of_stages_that_name_none(tmp_path, written):
    kinds = [{"kind": "structured", "flops": 0.5}, {"kind": "vocabulary"}, {"kind": "finetune", "seed": 0}]
    plain = {"model": "m", "out": "o", "train_data": "t", "eval_data": "e", "seed": 5, "stages": kinds}
    if written:
        (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(plain))
    recipe = read_recipe(tmp_path / "recipe.yaml") if written else recipe_from_dict(plain)
    assert (recipe.seed, recipe.stages[0].seed, recipe.stages[2].seed) == (5, 5, 0)
    assert recipe_from_dict(recipe_to_dict(recipe)) == recipe
    write_recipe(recipe, tmp_path / "again.yaml")
    assert read_recipe(tmp_path / "again.yaml") == recipe
    del plain["seed"]
    assert [recipe_from_dict(plain).seed, recipe_from_dict(plain).stages[0].seed] == [0, 0]


FLAT = "model: m\nout: o\ntrain_data: t\neval_data: e\n"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (f"{FLAT}model: n\nstages: [{{kind: finetune}}]\n", r"recipe must give every key once, got 'model' .* line 5 "),
        (f"{FLAT}stages:\n- kind: finetune\n  epochs: 1\n  epochs: 2\n", "every key once, got 'epochs' .* line 8 "),
        (
            f"{FLAT}label_names: [no, yes]\nstages: [{{kind: finetune}}]\n",
            r"label_names must hold text;.*quote.* False",
        ),
        (f"{FLAT}text_columns: [1.0]\nstages: [{{kind: finetune}}]\n", r"text_columns must hold text;.*quote.* 1\.0"),
        (f"{FLAT}? [a, b]\n: 1\nstages: [{{kind: finetune}}]\n", "is not valid YAML"),
    ],
)
def test_yaml_that_does_not_say_what_it_seems_to_is_refused(tmp_path, text, said):
    (tmp_path / "recipe.yaml").write_text(text)
    with pytest.raises(niwaki.RequestError, match=said) as error:
        read_recipe(tmp_path / "recipe.yaml")
    assert "\n" not in str(error.value)


def test_words_that_are_quoted_are_the_words(tmp_path):
    (tmp_path / "recipe.yaml").write_text(f"{FLAT}label_names: ['no', \"yes\", 7]\nstages: [{{kind: finetune}}]\n")
    assert read_recipe(tmp_path / "recipe.yaml").label_names == ("no", "yes", "7")


@pytest.mark.parametrize(
    ("only", "options", "wrong"),
    [
        ("attention", {"neuron_score": "random"}, "neuron_score"),
        ("attention", {"round_to": 4}, "round_to"),
        ("attention", {"min_neurons": 0}, "min_neurons"),
        ("ffn", {"head_score": "random"}, "head_score"),
        ("ffn", {"head_unit": "group"}, "head_unit"),
        ("ffn", {"min_heads": 0}, "min_heads"),
    ],
)
def test_options_of_the_part_that_is_not_cut_are_refused(only, options, wrong):
    with pytest.raises(niwaki.RequestError, match=f"{wrong} must not be given with only {only}"):
        niwaki.Structured(flops=0.5, only=only, **options)


@pytest.mark.parametrize(
    ("only", "options"),
    [("attention", {"head_score": "random", "min_heads": 2}), ("ffn", {"neuron_score": "random", "min_neurons": 2})],
)
def test_options_of_the_part_that_is_cut_are_taken(only, options):
    asked = niwaki.Structured(flops=0.8, only=only, repair="none", **options)
    done = niwaki.prune_(tiny(), asked, batches())
    assert {site.kind for site in done.layers if site.kept < site.total} == {only}


@pytest.mark.parametrize(
    ("options", "task", "said"),
    [
        ({"bos": True}, "text-classification", "bos must be asked of a language model, whose text it cuts, got a"),
        ({"stride": 4}, "text-classification", "stride must be asked of a language model or a model that answers"),
        ({"stride": 4}, "token-classification", "stride must be asked of"),
        ({"stride": 4}, "masked", "stride must be asked of"),
        ({"bos": True}, "masked", "bos must be asked of a language model"),
        ({"bos": True}, "question-answering", "bos must be asked of a language model"),
        ({"stride": 4}, "question-answering", None),
        ({"stride": 4, "bos": True}, "causal", None),
        ({}, "text-classification", None),
    ],
)
def test_how_text_is_cut_is_asked_of_models_whose_text_is(options, task, said):
    asked = Evaluation(model="m", eval_data="e", out="o", **options)
    named = next(each for each in TASKS if each.name == task)
    model = model_of(named, "llama" if task == "causal" else "bert", layers=1)
    with nullcontext() if said is None else pytest.raises(niwaki.RequestError, match=said):
        _check_cut(asked, model)
