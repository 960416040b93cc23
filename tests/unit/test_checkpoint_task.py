"""A checkpoint is loaded as what its files say it is; what contradicts itself, or is of another task, is refused."""

from __future__ import annotations

import json

import pytest
import torch
import transformers
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file

import niwaki
from helpers_text import letter_tokenizer, tiny_tokenizer
from niwaki.anatomy import CLASSIFIER, LANGUAGE_MODEL, TASKS, Task
from niwaki.checkpoint import agree_on_padding_, load_tokenizer, new_parameters, task_of_checkpoint
from niwaki.config.requests import TASKS as ASKED
from tiny import batches, configs, decoders, logits, tiny

SUPPORTED = (
    "BertForTokenClassification",
    "BertForQuestionAnswering",
    "BertForMultipleChoice",
    "BertForMaskedLM",
    "DistilBertForTokenClassification",
    "RobertaForMultipleChoice",
    "LlamaForTokenClassification",
    "Qwen2ForQuestionAnswering",
    "GPT2ForTokenClassification",
)
OTHERS = {"BertForPreTraining": "a pretraining model", "ElectraForPreTraining": "a pretraining model"}


def made(architecture, labels=2):
    """A tiny model of a class of Transformers."""
    kind = getattr(transformers, architecture)
    config = next(config for config in configs().values() if type(config) is kind.config_class)
    config.num_labels = labels
    torch.manual_seed(0)
    return kind(config).eval()


def classifier(family, labels=3):
    """A tiny classifier, a decoder among them: its head has no bias."""
    config = configs()[family]
    config.num_labels = labels
    torch.manual_seed(0)
    return transformers.AutoModelForSequenceClassification.from_config(config).eval()


def change(folder, **values):
    """Change the config in `folder`; None takes a key out."""
    path = next(folder / name for name in ("adapter_config.json", "config.json") if (folder / name).is_file())
    config = json.loads(path.read_text()) | values
    path.write_text(json.dumps({key: value for key, value in config.items() if value is not None}))


def retensor(path, change):
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path)


@pytest.mark.parametrize("architecture", OTHERS)
def test_another_task_is_refused_by_name(architecture, tmp_path):
    made(architecture).save_pretrained(tmp_path)
    with pytest.raises(niwaki.RequestError) as caught:
        niwaki.load(tmp_path)
    message = str(caught.value)
    assert f"{OTHERS[architecture]} ({architecture})" in message
    assert "must be one of these: a sequence classifier, a language model, a token classifier" in message
    assert "fine-tune" not in message
    assert "\n" not in message


@pytest.mark.parametrize("architecture", SUPPORTED)
def test_every_task_loads_as_what_it_is(architecture, tmp_path):
    model = made(architecture)
    model.save_pretrained(tmp_path)
    loaded = niwaki.load(tmp_path)
    assert type(loaded) is type(model)
    for name, value in model.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], value)


@pytest.mark.parametrize("architectures", ["BertForSequenceClassification", 3, [3], {"a": 1}])
def test_architectures_that_name_no_classes_are_refused(architectures, tmp_path):
    niwaki.save(tiny("bert"), tmp_path / "a")
    change(tmp_path / "a", architectures=architectures)
    with pytest.raises(niwaki.RequestError, match=r"architectures|model must be"):
        niwaki.load(tmp_path / "a")


@pytest.mark.parametrize("architecture", ["BertForNextSentencePrediction", "BertLMHeadModel", "RobertaForCausalLM"])
def test_a_class_that_no_task_is_known_for_is_refused(architecture, tmp_path):
    made(architecture).save_pretrained(tmp_path)
    with pytest.raises(niwaki.RequestError, match=rf"model must be .*{architecture}"):
        niwaki.load(tmp_path)


@pytest.mark.parametrize("architecture", ["BertForTokenClassification", "BertForQuestionAnswering"])
def test_labels_give_no_new_head_to_another_task(architecture, tmp_path):
    made(architecture).save_pretrained(tmp_path)
    with pytest.raises(niwaki.RequestError, match=architecture):
        niwaki.load(tmp_path, labels=["a", "b"])


@pytest.mark.parametrize(
    "architecture", ["BertModel", "BertForMaskedLM", "BertForPreTraining", "LlamaForCausalLM", "GPT2LMHeadModel"]
)
def test_labels_give_a_pretrained_model_a_new_head(architecture, tmp_path):
    model = made(architecture)
    model.save_pretrained(tmp_path)
    loaded = niwaki.load(tmp_path, labels=["a", "b", "c"])
    assert type(loaded).__name__.endswith("ForSequenceClassification")
    assert list(loaded.config.label2id) == ["a", "b", "c"]
    body = dict(loaded.base_model.named_parameters())
    for name, parameter in model.base_model.named_parameters():
        assert torch.equal(body[name], parameter)
    assert {name.partition(".")[0] for name in new_parameters(loaded)} & {"classifier", "score"}


@pytest.mark.parametrize(
    ("architecture", "task"),
    [
        ("BertForSequenceClassification", "text-classification"),
        ("RobertaForSequenceClassification", "text-classification"),
        ("LlamaForSequenceClassification", "text-classification"),
        ("LlamaForCausalLM", "causal"),
        ("GPT2LMHeadModel", "causal"),
        ("OPTForCausalLM", "causal"),
        ("BertModel", "embedding"),
        ("LlamaForTokenClassification", "token-classification"),
        ("BertForTokenClassification", "token-classification"),
        ("BertForQuestionAnswering", "question-answering"),
        ("DistilBertForMaskedLM", "masked"),
    ],
)
def test_without_architectures_the_tensors_decide(architecture, task, tmp_path):
    model = made(architecture)
    model.save_pretrained(tmp_path)
    change(tmp_path, architectures=None)
    assert task_of_checkpoint(str(tmp_path)).name == task
    if task in ASKED:
        loaded = niwaki.load(tmp_path)
        assert type(loaded) is type(model)
        assert new_parameters(loaded) == ()


def test_without_architectures_an_unknown_head_is_named(tmp_path):
    made("BertForSequenceClassification").save_pretrained(tmp_path)
    change(tmp_path, architectures=None)
    retensor(tmp_path / "model.safetensors", lambda tensors: tensors.update(odd=tensors.pop("classifier.bias")))
    with pytest.raises(niwaki.RequestError, match=r"architectures .* must say .* head: .*odd"):
        niwaki.load(tmp_path)


@pytest.mark.parametrize(
    "name",
    ["score.weight", "v_head.summary.weight", "qa_outputs.bias", "model.layers.3.mlp.up_proj.weight"],
)
def test_tensors_that_the_model_does_not_use_are_named(name, tmp_path):
    niwaki.save(tiny("llama"), tmp_path / "a")
    retensor(tmp_path / "a" / "model.safetensors", lambda tensors: tensors.update({name: torch.ones(2, 32)}))
    with pytest.raises(niwaki.RequestError, match=rf"LlamaForCausalLM does not use, got .*{name} \(1 unused\)"):
        niwaki.load(tmp_path / "a")


def test_what_bert_was_pretrained_on_beside_words_may_be_left(tmp_path):
    """Its own files are of `BertForPreTraining`, and their config says `BertForMaskedLM`."""
    whole = made("BertForPreTraining")
    whole.save_pretrained(tmp_path)
    change(tmp_path, architectures=["BertForMaskedLM"])
    model, batch = niwaki.load(tmp_path), batches()[0]
    with torch.no_grad():
        inputs = {name: batch[name] for name in ("input_ids", "attention_mask")}
        assert torch.equal(model(**inputs).logits, whole(**inputs).prediction_logits)


def test_a_body_may_lack_its_pooler_and_no_layer(tmp_path):
    made("BertModel").save_pretrained(tmp_path)
    path = tmp_path / "model.safetensors"
    retensor(path, lambda tensors: [tensors.pop(name) for name in list(tensors) if name.startswith("pooler.")])
    assert new_parameters(niwaki.load(tmp_path)) == ()
    retensor(path, lambda tensors: tensors.pop("encoder.layer.1.output.dense.weight"))
    with pytest.raises(
        niwaki.RequestError, match=r"must hold all weights .* without encoder.layer.1.output.dense.weight"
    ):
        niwaki.load(tmp_path)


def test_a_pooler_and_old_buffers_may_be_left(tmp_path):
    niwaki.save(tiny("roberta"), tmp_path / "a")
    more = {"roberta.pooler.dense.weight": torch.ones(32, 32), "roberta.embeddings.position_ids": torch.arange(40)}
    retensor(tmp_path / "a" / "model.safetensors", lambda tensors: tensors.update(more))
    assert new_parameters(niwaki.load(tmp_path / "a")) == ()


@pytest.mark.parametrize("labels", [3, 4])
@pytest.mark.parametrize("family", [name for name in decoders() if name not in ("mobilellm", "llama4_text")])
def test_other_labels_get_a_head_without_bias(family, labels, tmp_path):
    classifier(family).save_pretrained(tmp_path)
    before = niwaki.load(tmp_path).state_dict()
    loaded = niwaki.load(tmp_path, labels=[f"name {i}" for i in range(labels)])
    assert loaded.config.num_labels == labels
    assert new_parameters(loaded) == ("score.weight",)
    after = loaded.state_dict()
    changed = {
        name for name in before if before[name].shape != after[name].shape or (before[name] != after[name]).any()
    }
    assert changed == {"score.weight"}


@pytest.mark.parametrize("family", ["mobilellm", "llama4_text"])
def test_a_family_without_a_classifier_is_refused(family, tmp_path):
    niwaki.save(tiny(family), tmp_path / "a")
    with pytest.raises(niwaki.RequestError, match="that Transformers has a sequence classifier for"):
        niwaki.load(tmp_path / "a", labels=["a", "b"])


def tuned(family, folder, labels=5, base="ForCausalLM", **options):
    """A SEQ_CLS adapter in `folder/lora`, on the base in `folder/base` as it was pretrained; the classifier itself."""
    pretrained = tiny(family)
    pretrained.save_pretrained(folder / "base")
    config = configs()[family]
    config.num_labels = labels
    auto = transformers.AutoModelForSequenceClassification
    model = auto.from_pretrained(folder / "base", config=config, ignore_mismatched_sizes=True)
    model.config.pad_token_id = 0
    targets = options.pop("target_modules", ["q_proj", "v_proj"])
    model = get_peft_model(model, LoraConfig(task_type="SEQ_CLS", r=4, target_modules=targets, **options))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name or "modules_to_save" in name:
                parameter.normal_(0, 0.1)
    model.save_pretrained(str(folder / "lora"))
    change(folder / "lora", base_model_name_or_path="../base")
    return model.eval()


@pytest.mark.parametrize("task_type", ["SEQ_CLS", None])
@pytest.mark.parametrize(
    ("family", "targets"),
    [
        ("llama", ["q_proj", "v_proj"]),
        ("qwen2", ["q_proj", "up_proj"]),
        ("opt", ["q_proj"]),
        ("gpt2", ["c_attn"]),
    ],
)
def test_a_classifying_adapter_decides_over_its_causal_base(family, targets, task_type, tmp_path):
    model = tuned(family, tmp_path, target_modules=targets, fan_in_fan_out=family == "gpt2")
    change(tmp_path / "lora", task_type=task_type)
    loaded = niwaki.load(tmp_path / "lora")
    assert type(loaded.get_base_model()).__name__.endswith("ForSequenceClassification")
    assert loaded.config.num_labels == 5
    assert new_parameters(loaded) == ()
    assert torch.equal(logits(loaded, batches()[0]), logits(model, batches()[0]))
    assert task_of_checkpoint(str(tmp_path / "lora")) is CLASSIFIER


@pytest.mark.parametrize("family", ["bert", "roberta", "modernbert", "electra"])
def test_the_number_of_labels_is_read_from_any_head(family, tmp_path):
    heads = {"modernbert": ["head", "classifier"]}.get(family, ["classifier"])
    targets = ["Wqkv"] if family == "modernbert" else ["query"]
    model = tuned(family, tmp_path, target_modules=targets, modules_to_save=heads)
    change(tmp_path / "base", architectures=[type(model.get_base_model()).__name__.replace("Sequence", "Token")])
    loaded = niwaki.load(tmp_path / "lora")
    assert loaded.config.num_labels == 5
    assert torch.equal(logits(loaded, batches()[0]), logits(model, batches()[0]))


def test_a_causal_adapter_stays_one(tmp_path):
    model = tiny("llama")
    model.save_pretrained(tmp_path / "base")
    adapter = get_peft_model(model, LoraConfig(task_type="CAUSAL_LM", target_modules=["q_proj"]))
    adapter.save_pretrained(str(tmp_path / "lora"))
    change(tmp_path / "lora", base_model_name_or_path="../base")
    for task_type in ("CAUSAL_LM", None):
        change(tmp_path / "lora", task_type=task_type)
        assert task_of_checkpoint(str(tmp_path / "lora")) is LANGUAGE_MODEL
        assert niwaki.load(tmp_path / "lora").get_base_model().can_generate()


@pytest.mark.parametrize(
    ("task_type", "said"),
    [
        ("CAUSAL_LM", r"LlamaForCausalLM does not use, got .*score\.weight"),
        ("TOKEN_CLS", r"config asks for in a LlamaForTokenClassification, .*\.score\.bias"),
        ("QUESTION_ANS", "a head of the adapter's task_type QUESTION_ANS, which .* does not bring"),
        ("SEQ_2_SEQ_LM", "got .*SEQ_2_SEQ_LM, an encoder-decoder model"),
        ("FEATURE_EXTRACTION", r"LlamaModel does not use, got .*\(13 unused\)"),
    ],
)
def test_an_adapter_that_contradicts_itself_is_refused(task_type, said, tmp_path):
    tuned("llama", tmp_path)
    change(tmp_path / "lora", task_type=task_type)
    with pytest.raises(niwaki.RequestError, match=said) as caught:
        niwaki.load(tmp_path / "lora")
    assert "\n" not in str(caught.value)


def test_tensors_of_an_adapter_are_all_used_and_all_there(tmp_path):
    tuned("llama", tmp_path)
    path = tmp_path / "lora" / "adapter_model.safetensors"
    before = load_file(path)
    head = "base_model.model.score.weight"
    first = "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight"
    for gone in (head, first):
        save_file({key: value for key, value in before.items() if key != gone}, path)
        with pytest.raises(niwaki.RequestError, match=r"does not bring|without .*q_proj\.lora_A\.weight"):
            niwaki.load(tmp_path / "lora")
    for name in ("base_model.model.extra.weight", first.replace("layers.0", "layers.9"), first.replace("q_", "o_")):
        save_file({**before, name: before[first].clone()}, path)
        with pytest.raises(niwaki.RequestError, match=f"does not use, got .*{name}"):
            niwaki.load(tmp_path / "lora")


def test_a_head_that_the_adapter_names_but_does_not_hold(tmp_path):
    model = get_peft_model(tiny(), LoraConfig(task_type="SEQ_CLS", target_modules=["q_lin"]))
    tiny().save_pretrained(tmp_path / "base")
    model.save_pretrained(str(tmp_path / "lora"))
    change(tmp_path / "lora", base_model_name_or_path="../base")
    niwaki.load(tmp_path / "lora")
    retensor(tmp_path / "lora" / "adapter_model.safetensors", lambda t: t.pop("base_model.model.classifier.weight"))
    with pytest.raises(niwaki.RequestError, match=r"every tensor .*without base_model\.model\.classifier\.weight"):
        niwaki.load(tmp_path / "lora")


def test_what_can_be_asked_for_has_a_row():
    assert {task.name for task in TASKS if task.supported} >= set(ASKED)
    assert len({task.name for task in TASKS}) == len(TASKS)
    assert all(isinstance(task, Task) and task.suffixes for task in TASKS)


REMOTE = {"AutoTokenizer": ["own.Tokenizer", None], "AutoConfig": "own.Config", "AutoModelForCausalLM": "own.Model"}


@pytest.fixture
def asked(monkeypatch):
    """What a person was asked on the terminal."""
    questions = []
    monkeypatch.setattr("builtins.input", lambda *words: questions.append(words) or "y")
    return questions


def code(folder):
    """Code of its own in `folder`, that would be seen to run."""
    (folder / "own.py").write_text("raise SystemExit('remote code was run')\n")


@pytest.mark.parametrize("kind", ["OwnTokenizer", "PreTrainedTokenizerFast"])
def test_a_tokenizer_never_runs_code_of_its_own(kind, asked, tmp_path):
    niwaki.save(tiny(), tmp_path / "a", tiny_tokenizer())
    code(tmp_path / "a")
    path = tmp_path / "a" / "tokenizer_config.json"
    config = json.loads(path.read_text()) | {"auto_map": REMOTE, "tokenizer_class": kind}
    path.write_text(json.dumps(config))
    if kind == "PreTrainedTokenizerFast":
        assert load_tokenizer(tmp_path / "a").pad_token == "[PAD]"
    else:
        with pytest.raises(niwaki.RequestError, match="tokenizer must load without code of its own") as caught:
            load_tokenizer(tmp_path / "a")
        assert "\n" not in str(caught.value)
    assert asked == []


@pytest.mark.parametrize("model_type", ["own", None])
@pytest.mark.parametrize("call", [niwaki.load, task_of_checkpoint])
def test_a_model_never_runs_code_of_its_own(model_type, call, asked, tmp_path):
    niwaki.save(tiny(), tmp_path / "a")
    code(tmp_path / "a")
    change(tmp_path / "a", auto_map=REMOTE, model_type=model_type)
    with pytest.raises(niwaki.RequestError, match="without code of its own") as caught:
        call(str(tmp_path / "a"))
    assert "\n" not in str(caught.value)
    assert asked == []


def test_a_class_of_its_own_is_not_taken_for_the_family_s(asked, tmp_path):
    niwaki.save(tiny("llama"), tmp_path / "a")
    code(tmp_path / "a")
    change(tmp_path / "a", auto_map=REMOTE, architectures=["OwnForCausalLM"])
    with pytest.raises(niwaki.RequestError, match="without code of its own"):
        niwaki.load(tmp_path / "a")
    assert asked == []


@pytest.mark.parametrize("family", ["gpt2", "llama", "opt"])
@pytest.mark.parametrize(
    ("config", "tokenizer"),
    [
        ({"pad_token_id": 0}, {}),
        ({"pad_token_id": 2}, {}),  # the end of a text is the model's padding
        ({"pad_token_id": 0}, {"pad_token": "</s>"}),
        ({"pad_token_id": 0}, {"pad_token": None}),
        ({"pad_token_id": None}, {}),
        ({"pad_token_id": -1}, {}),
        ({"pad_token_id": 0}, {"padding_side": "left"}),
        ({"pad_token_id": 2}, {"padding_side": "left"}),
    ],
)
def test_a_row_has_one_answer_alone_and_among_others(family, config, tokenizer, tmp_path):
    from niwaki.data import Batches

    model, words = classifier(family), letter_tokenizer()
    alone = [{"input_ids": words(text)["input_ids"]} for text in ("a", "the other", "so it is with a long one")]
    model.config.update(config)
    expected = [model(input_ids=torch.tensor([row["input_ids"]])).logits for row in alone]
    for name, value in tokenizer.items():
        setattr(words, name, value)
    agree_on_padding_(model, words)
    rows = [{**row, "attention_mask": [1] * len(row["input_ids"])} for row in alone]
    (batch,) = Batches(rows, words, 32)
    with torch.no_grad():
        found = model(**batch).logits
    torch.testing.assert_close(found, torch.cat(expected), rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("config", "tokenizer", "said"),
    [
        (None, {"pad_token": None}, "must say how rows are padded, got None and no pad_token"),
        (7, {}, "another special one, got 7, which is 'd', and 0"),
        (None, {"ends": True, "pad_token": "</s>"}, "every text ends with its tokenizer's '</s>', got None"),
    ],
)
def test_padding_that_cannot_be_agreed_on_is_refused(config, tokenizer, said):
    from tokenizers import processors

    model, words = classifier("gpt2"), letter_tokenizer()
    if tokenizer.pop("ends", False):
        end = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 2)])
        words.backend_tokenizer.post_processor = end
    for name, value in tokenizer.items():
        setattr(words, name, value)
    model.config.pad_token_id = config
    with pytest.raises(niwaki.RequestError, match=said):
        agree_on_padding_(model, words)


def test_a_new_head_may_take_the_end_of_a_text_for_padding():
    model, words = classifier("llama"), letter_tokenizer()
    words.pad_token, model.config.pad_token_id = None, None
    assert agree_on_padding_(model, words, new_head=True) is not None
    assert model.config.pad_token_id == words.pad_token_id == 2


@pytest.mark.parametrize("model", ["bert", "llama"])
def test_other_models_go_by_the_mask(model):
    words = letter_tokenizer()
    before = words.pad_token
    loaded = tiny(model)
    loaded.config.pad_token_id = 5
    assert agree_on_padding_(loaded, words) is None
    assert (words.pad_token, loaded.config.pad_token_id) == (before, 5)


@pytest.mark.parametrize("side", ["left", "right"])
def test_batches_whose_padding_a_decoder_would_read_are_refused(side):
    model = classifier("llama")
    ids, mask = torch.tensor([[5, 6, 7, 8]]), torch.tensor([[1, 1, 0, 0]])
    batch = {"input_ids": ids, "attention_mask": mask if side == "right" else mask.flip(1)}
    if side == "left":  # its last token is the row's
        assert niwaki.score(model, [batch])
    else:
        with pytest.raises(niwaki.RequestError, match=r"padding must have id 0, the model's pad_token_id, .* got 7"):
            niwaki.score(model, [batch])
    batch["input_ids"] = ids * batch["attention_mask"]
    assert niwaki.score(model, [batch])
