"""Folders of Sentence Transformers: read, pruned, written as such again; what is measured of vectors of texts."""

from __future__ import annotations

import dataclasses
import json
import shutil

import numpy as np
import pytest
import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import (
    Dense,
    Dropout,
    LayerNorm,
    Normalize,
    Pooling,
    Transformer,
    WeightedLayerPooling,
    WordWeights,
)
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import nn
from transformers import PreTrainedTokenizerFast

import niwaki
from helpers_text import tiny_tokenizer
from niwaki.anatomy import BODY, pool_by_, pooling_of, predictions_of, sites_of, task_of
from niwaki.checkpoint import load_tokenizer, plain_pooling, task_of_checkpoint
from niwaki.data import Batches, read_table, token_mask
from niwaki.data.sentences import encode_sentences
from niwaki.errors import RequestError
from niwaki.evaluate import behaviour, judge, quality
from niwaki.evaluate.fidelity import fidelity
from niwaki.export import export_onnx
from niwaki.export.onnx.session import Session
from niwaki.run.engines import check_drop
from niwaki.run.inputs import Inputs
from niwaki.run.likeness import Side
from niwaki.run.rows import Cut, cut_table
from niwaki.surgery import cut_
from tiny import ROWS, configs

TEXTS = ["a good film", "the plot is very very dull .", "not bad", "a bright film is good", "the films"] * 5


def body(family="bert", seed=0):
    torch.manual_seed(seed)
    from transformers import AutoModel

    model = AutoModel.from_config(configs()[family])
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" not in name.lower() and "ln_" not in name:
                parameter.normal_(0, 0.15)
    return model.eval()


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A sentence encoder with all that such a folder can hold."""
    place = tmp_path_factory.mktemp("encoder")
    body().save_pretrained(place / "body")
    tiny_tokenizer().save_pretrained(place / "body")
    torch.manual_seed(0)
    first = Transformer(str(place / "body"), max_seq_length=6)
    encoder = SentenceTransformer(
        modules=[first, Pooling(32, "mean"), Dense(32, 16, activation_function=nn.Tanh()), Normalize()],
        prompts={"query": "the plot ", "passage": "a "},
        default_prompt_name="query",
        similarity_fn_name="dot",
        device="cpu",
    )
    encoder.save(str(place / "encoder"))
    return place


def batches_of(tokenizer, texts, rows=5):
    return list(Batches([dict(tokenizer(text, truncation=True, max_length=6)) for text in texts], tokenizer, rows))


def vectors(model, batch):
    with torch.no_grad():
        return predictions_of(model, model(**batch), token_mask(batch).bool()).values


@pytest.mark.parametrize(
    "config",
    [niwaki.Structured(flops=0.6, recover_epochs=1), niwaki.LayerAdaptive(sparsity=0.5)],
    ids=["units", "weights"],
)
def test_a_pruned_encoder_is_one_again(place, tmp_path, config):
    """Modules, prompts, longest text and similarity as they were; the same vectors by the library itself."""
    source = place / "encoder"
    model, tokenizer = niwaki.load(source), load_tokenizer(source)
    assert task_of(model) is BODY
    dense = niwaki.load(source)
    result = niwaki.prune_(model, config, batches_of(tokenizer, TEXTS))
    assert result.achieved <= 0.6
    niwaki.save(model, tmp_path / "out", tokenizer)
    before, after = (SentenceTransformer(str(folder), device="cpu") for folder in (source, tmp_path / "out"))
    assert [type(module) for module in after] == [type(module) for module in before]
    assert after.prompts == before.prompts == {"query": "the plot ", "document": "", "passage": "a "}
    assert after.max_seq_length == 6
    assert after.similarity_fn_name == before.similarity_fn_name == "dot"
    assert after.default_prompt_name == "query"
    read = pooling_of(model)
    for encoder, loaded in ((before, dense), (after, model), (after, niwaki.load(tmp_path / "out"))):
        for role, encode in (
            (None, encoder.encode),
            ("query", encoder.encode_query),
            ("document", encoder.encode_document),
        ):
            wanted = encode(TEXTS, convert_to_tensor=True)
            texts = [read.as_read(text, role) for text in TEXTS]
            found = torch.cat([vectors(loaded, batch) for batch in batches_of(tokenizer, texts, 1)])
            # Batches are sorted by length.
            order = sorted(
                range(len(texts)), key=lambda i: len(tokenizer(texts[i], truncation=True, max_length=6)["input_ids"])
            )
            torch.testing.assert_close(found, wanted[order], atol=1e-6, rtol=0)


def test_onnx_in_a_folder_of_its_own_kind(place, tmp_path):
    """All that `SentenceTransformer(folder, backend="onnx")` looks for, and states that its modules make vectors of."""
    pytest.importorskip("onnxscript")
    model, tokenizer = niwaki.load(place / "encoder"), load_tokenizer(place / "encoder")
    cut_(model, {site.name: torch.arange(site.units - site.layer) for site in sites_of(model)})
    export_onnx(model, tmp_path / "a", tokenizer)
    found = {path.relative_to(tmp_path / "a").as_posix() for path in (tmp_path / "a").rglob("*") if path.is_file()}
    assert found >= {"onnx/model.onnx", "modules.json", "config.json", "1_Pooling/config.json", "tokenizer.json"}
    assert "quantization_config" not in json.loads((tmp_path / "a" / "config.json").read_text())
    for batch in batches_of(tokenizer, TEXTS[:5]):
        (states,) = Session(tmp_path / "a" / "onnx" / "model.onnx")(batch)
        made = pooling_of(model)(states, token_mask(batch).bool())
        torch.testing.assert_close(made, vectors(model, batch), atol=1e-4, rtol=0)


def test_modules_are_in_float32_whatever_the_model_is_in(place):
    tokenizer = load_tokenizer(place / "encoder")
    (batch,) = batches_of(tokenizer, TEXTS[:5])
    found, wanted = (vectors(niwaki.load(place / "encoder", dtype=dtype), batch) for dtype in ("bfloat16", "float32"))
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, wanted, atol=0.05, rtol=0)


def test_recovery_teaches_the_vectors(place):
    tokenizer = load_tokenizer(place / "encoder")
    data = batches_of(tokenizer, TEXTS)
    dense = niwaki.load(place / "encoder")
    alike = []
    for epochs in (0, 8):
        model = niwaki.load(place / "encoder")
        niwaki.prune_(model, niwaki.Structured(flops=0.3, recover_epochs=epochs), data)
        alike.append(fidelity(dense, model, data)["cosine"])
    assert alike[0] < alike[1] <= 1


@pytest.mark.parametrize("family", [name for name in ROWS if name != "mobilellm"])  # Transformers has no such body
@pytest.mark.parametrize("mode", ["mean", "cls"])
def test_pooling_by_name(family, mode):
    """One vector a text of every family, as a loop over its tokens gives it."""
    model = body(family)
    pool_by_(model, plain_pooling(mode, 32, 40))
    ids = torch.randint(5, 60, (3, 7), generator=torch.Generator().manual_seed(0))
    mask = (torch.arange(7) < torch.tensor([[7], [3], [1]])).long()
    batch = {"input_ids": ids, "attention_mask": mask}
    with torch.no_grad():
        states = model(**batch).last_hidden_state
    wanted = [row[: int(m.sum())].mean(0) if mode == "mean" else row[0] for row, m in zip(states, mask, strict=True)]
    torch.testing.assert_close(vectors(model, batch), torch.stack(wanted))
    assert "pooling" not in " ".join(model.state_dict())


def test_the_model_in_a_folder_of_its_own(place, tmp_path):
    """The layout of old versions: the model in `0_Transformer`."""
    old = tmp_path / "old"
    shutil.copytree(place / "encoder", old)
    (old / "0_Transformer").mkdir()
    for name in (
        "config.json",
        "model.safetensors",
        "sentence_bert_config.json",
        "tokenizer.json",
        "tokenizer_config.json",
    ):
        shutil.move(old / name, old / "0_Transformer" / name)
    modules = json.loads((old / "modules.json").read_text())
    modules[0]["path"] = "0_Transformer"
    (old / "modules.json").write_text(json.dumps(modules))
    model = niwaki.load(old)
    assert pooling_of(model) is not None
    niwaki.save(model, tmp_path / "new", load_tokenizer(old))
    ours = SentenceTransformer(str(tmp_path / "new"), device="cpu").encode(TEXTS[:3])
    np.testing.assert_array_equal(ours, SentenceTransformer(str(place / "encoder"), device="cpu").encode(TEXTS[:3]))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"type": "custom_st.Pooling"}, "without code of its own"),
        ({"path": "../elsewhere"}, "inside the folder"),
        ({"type": "sentence_transformers.models.Nothing"}, "must hold modules that load"),
        ({"type": 3}, "each with its type and path"),
    ],
)
def test_modules_that_are_refused(place, tmp_path, change, said):
    shutil.copytree(place / "encoder", tmp_path / "bad")
    path = tmp_path / "bad" / "modules.json"
    modules = json.loads(path.read_text())
    modules[1] |= change
    path.write_text(json.dumps(modules))
    with pytest.raises(RequestError, match=said):
        niwaki.load(tmp_path / "bad")


def test_weights_that_are_not_safe(place, tmp_path):
    shutil.copytree(place / "encoder", tmp_path / "bad")
    (weights,) = (tmp_path / "bad" / "2_Dense").glob("*.safetensors")
    weights.rename(weights.with_name("pytorch_model.bin"))
    with pytest.raises(RequestError, match=r"must hold safetensors weights, got .*2_Dense"):
        niwaki.load(tmp_path / "bad")


def test_prompts_that_are_not_pooled(place, tmp_path):
    shutil.copytree(place / "encoder", tmp_path / "bad")
    path = tmp_path / "bad" / "1_Pooling" / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "include_prompt": False}))
    with pytest.raises(RequestError, match="must pool its prompts like its texts"):
        niwaki.load(tmp_path / "bad")


@pytest.mark.parametrize("mode", [*Pooling.POOLING_MODES, ("cls", "mean", "max")])
def test_every_way_to_pool(place, tmp_path, mode):
    """Also several at once, and what comes after them."""
    first, width = Transformer(str(place / "body")), 32 * (1 if isinstance(mode, str) else len(mode))
    pooling = Pooling(32, mode)  # type: ignore[arg-type]
    modules = [first, pooling, LayerNorm(width), Dropout(0.5), Dense(width, 8)]
    encoder = SentenceTransformer(modules=modules, device="cpu")
    encoder.save(str(tmp_path / "encoder"))
    model, tokenizer = niwaki.load(tmp_path / "encoder"), load_tokenizer(tmp_path / "encoder")
    found = torch.cat([vectors(model, batch) for batch in batches_of(tokenizer, TEXTS[:3], 1)])
    ids = sorted(range(3), key=lambda i: len(tokenizer(TEXTS[i], truncation=True, max_length=6)["input_ids"]))
    encoder.max_seq_length = 6
    torch.testing.assert_close(found, encoder.encode(TEXTS[:3], convert_to_tensor=True)[ids], atol=1e-6, rtol=0)


@pytest.mark.parametrize("module", ["WeightedLayerPooling", "WordWeights", "none"])
def test_modules_that_look_at_more_than_the_last_states(place, tmp_path, module):
    """Those that average layers do nothing where they are given none: the vectors would be others without a word."""
    made = {
        "WeightedLayerPooling": lambda: [WeightedLayerPooling(32, 3, layer_start=1), Pooling(32)],
        "WordWeights": lambda: [WordWeights(list(tiny_tokenizer().get_vocab()), {"good": 3.0}), Pooling(32)],
        "none": lambda: [Normalize()],
    }
    SentenceTransformer(modules=[Transformer(str(place / "body")), *made[module]()], device="cpu").save(str(tmp_path))
    said = f"got {module}" if module != "none" else "with a Pooling among them, got Normalize"
    with pytest.raises(RequestError, match=rf"must make its vectors of the last states of tokens, .*{said}"):
        niwaki.load(tmp_path)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"processing_kwargs": {"text": {"add_special_tokens": False}}}, "processing_kwargs in .* must be {} or not"),
        ({"module_output_name": "sentence_embedding"}, "module_output_name in .* must be 'token_embeddings'"),
        ({"modality_config": {"text": {"method": "forward", "method_output_name": ["hidden_states", 2]}}}, "of text"),
        ({"transformer_task": "fill-mask"}, "transformer_task in .* must be 'feature-extraction'"),
        ({"query_length": 4}, "query_length in .* must be None or not there, got 4"),
        (None, "must be an object of JSON, got 3"),
    ],
)
def test_a_first_module_that_reads_in_another_way(place, tmp_path, change, said):
    shutil.copytree(place / "encoder", tmp_path / "bad")
    path = tmp_path / "bad" / "sentence_bert_config.json"
    path.write_text("3" if change is None else json.dumps({**json.loads(path.read_text()), **change}))
    with pytest.raises(RequestError, match=said):
        niwaki.load(tmp_path / "bad")


def test_what_says_nothing_more_is_read(place, tmp_path):
    """As older versions of the library wrote it, and as one may leave it."""
    wanted = niwaki.load(place / "encoder").state_dict()
    path = tmp_path / "old" / "sentence_bert_config.json"
    shutil.copytree(place / "encoder", tmp_path / "old")
    for how in (
        {"max_seq_length": 6, "do_lower_case": False},
        {"processing_kwargs": {"text": {}}, "query_length": None},
    ):
        path.write_text(json.dumps(how))
        assert niwaki.load(tmp_path / "old").state_dict().keys() == wanted.keys()


@pytest.mark.parametrize(("family", "named"), [("bert", "BertForMaskedLM"), ("qwen3", "Qwen3ForCausalLM")])
@pytest.mark.parametrize("inside", [False, True])
def test_an_encoder_whose_config_names_what_it_was_pretrained_as(tmp_path, family, named, inside):
    """As all-mpnet-base-v2 and Qwen3-Embedding have it: the library loads the body, whatever the config says."""
    body(family).save_pretrained(tmp_path / "body")
    tiny_tokenizer().save_pretrained(tmp_path / "body")
    encoder, folder = [Transformer(str(tmp_path / "body")), Pooling(32, "lasttoken")], tmp_path / "encoder"
    SentenceTransformer(modules=encoder, device="cpu").save(str(folder))
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "architectures": [named]}))
    if inside:
        (folder / "0_Transformer").mkdir()
        for path in [*folder.glob("*.safetensors"), *folder.glob("config.json"), *folder.glob("tokenizer*")]:
            path.rename(folder / "0_Transformer" / path.name)
        modules = json.loads((folder / "modules.json").read_text())
        modules[0]["path"] = "0_Transformer"
        (folder / "modules.json").write_text(json.dumps(modules))
    assert task_of_checkpoint(str(folder)) is BODY
    model, tokenizer = niwaki.load(folder), load_tokenizer(folder)
    assert task_of(model) is BODY
    (batch,) = batches_of(tokenizer, TEXTS[:1])
    wanted = SentenceTransformer(str(folder), device="cpu").encode(TEXTS[:1], convert_to_tensor=True)
    torch.testing.assert_close(vectors(model, batch), wanted, atol=1e-6, rtol=0)
    niwaki.save(model, tmp_path / "out", tokenizer)
    assert json.loads((tmp_path / "out" / "config.json").read_text())["architectures"] == [type(body(family)).__name__]
    shutil.rmtree(folder / "1_Pooling")
    (folder / "modules.json").unlink()
    if not inside:  # without modules it is what its config says
        assert task_of_checkpoint(str(folder)).name != "embedding"


def test_a_first_module_that_is_no_transformer(place, tmp_path):
    shutil.copytree(place / "encoder", tmp_path / "bad")
    path = tmp_path / "bad" / "modules.json"
    path.write_text(json.dumps(json.loads(path.read_text())[1:]))
    with pytest.raises(RequestError, match="must begin with a Transformer"):
        niwaki.load(tmp_path / "bad")


# What is measured


def table(tmp_path, columns, *rows):
    path = tmp_path / "data.tsv"
    path.write_text("\n".join(["\t".join(columns), *("\t".join(row) for row in rows)]) + "\n")
    return read_table(str(path), split="validation")


def measured(found, tokenizer, of):
    """`quality` of a sentence encoder whose vector of a text is `of(ids)`."""
    model = body()
    rows = encode_sentences(found, tokenizer, 16, lambda text, _: text, measured=True)

    class Says:
        def __call__(self, states, keep):
            return torch.stack([torch.tensor(of[tuple(ids)]) for ids in seen.pop(0)]).to(states)

    seen: list = []
    model.register_forward_pre_hook(
        lambda _m, _a, kwargs: seen.append(
            [
                ids[mask.bool()].tolist()[1:-1]
                for ids, mask in zip(kwargs["input_ids"], kwargs["attention_mask"], strict=True)
            ]
        ),
        with_kwargs=True,
    )
    pool_by_(model, Says())
    return quality(model, Batches(rows, tokenizer, 3))


def test_the_cosine_against_a_score(tmp_path):
    """By hand: cosines 1, 0 and -1 (lengths do not count) against scores 5, 3 and 1: perfectly ordered."""
    tokenizer = tiny_tokenizer()
    found = table(
        tmp_path, ("sentence1", "sentence2", "score"), ("good", "film", "5"), ("bad", "plot", "3"), ("a", "is", "1")
    )
    ids = {word: (tokenizer.convert_tokens_to_ids(word),) for word in ("good", "film", "bad", "plot", "a", "is")}
    of = {ids["good"]: [2.0, 0.0], ids["film"]: [7.0, 0.0], ids["bad"]: [1.0, 0.0], ids["plot"]: [0.0, 3.0]}
    of |= {ids["a"]: [1.0, 1.0], ids["is"]: [-4.0, -4.0]}
    values = measured(found, tokenizer, of)
    assert values["spearman"] == pytest.approx(1.0)
    assert values["pearson"] == pytest.approx(1.0)


def test_what_a_query_is_to_find(tmp_path):
    """By hand: three queries over four documents; one query has two right documents, one document stands twice."""
    tokenizer = tiny_tokenizer()
    rows = [("good", "film"), ("good", "plot"), ("bad", "plot"), ("dull", "the")]
    found = table(tmp_path, ("query", "positive"), *rows, ("bright", "film"))
    assert found.labels is None
    ids = {
        word: (tokenizer.convert_tokens_to_ids(word),)
        for word in ("good", "bad", "dull", "bright", "film", "plot", "the")
    }
    angle = {"film": 0, "plot": 30, "the": 90, "good": 10, "bad": 5, "dull": 0, "bright": 80}
    of = {ids[word]: [float(np.cos(np.radians(a))), float(np.sin(np.radians(a)))] for word, a in angle.items()}
    values = measured(found, tokenizer, of)
    # good: film, plot are its own, at places 1 and 2; bad: film, then plot: place 2; dull: the is at place 3; bright:
    # the, plot, film: place 3.
    assert values["mrr"] == pytest.approx((1 + 1 / 2 + 1 / 3 + 1 / 3) / 4)
    assert values["recall_at_1"] == pytest.approx((1 / 2 + 0 + 0 + 0) / 4)
    assert values["recall_at_10"] == pytest.approx(1.0)


def test_queries_are_shown_by_their_rows_of_the_data(tmp_path):
    """Batches are sorted by length, by each model's tokenizer: two models are compared query by query all the same."""
    tokenizer, count = tiny_tokenizer(), 12
    texts = [" ".join(["film"] * (count - row)) for row in range(count)]
    rows = [(f"good {text}", f"bad {text}") for text in texts]
    found = table(tmp_path, ("query", "positive"), *rows, (rows[2][0], "dull"))
    encoded = encode_sentences(found, tokenizer, 40, lambda text, _: text, measured=True)
    sides = []
    for sort, seed in ((True, 0), (False, 1)):  # as another tokenizer could cut them
        model = body(seed=seed)
        pool_by_(model, plain_pooling("mean", 32, 40))
        sides.append(judge(model, Batches(encoded, tokenizer, 3, sort_by_length=sort)))
    for side in sides:
        places = sorted(range(count), key=side.answers.order.__getitem__)
        assert [side.answers.text(place) for place in places] == [query for query, _ in rows]
        assert sorted(side.answers.order) == list(range(count))
    said = behaviour(*sides)
    assert said["changed"]
    by_query = [{side.answers.text(n): n for n in range(count)} for side in sides]
    for example in said["examples"]:
        query = rows[example["row"] - 1][0]
        assert example["text"] == query
        for name, side, place in zip(("dense", "pruned"), sides, by_query, strict=True):
            assert example[name] == f"found at place {side.answers.values[place[query]]}"


def test_a_rounding_is_judged_by_what_the_pairs_have(place, tmp_path):
    """Of queries and documents there is no correlation to lose."""
    model, tokenizer = niwaki.load(place / "encoder"), load_tokenizer(place / "encoder")
    found = table(tmp_path, ("query", "positive"), ("good", "film"), ("bad", "plot"), ("dull", "the"))
    inputs = Inputs(model, tokenizer, 4, Cut(16), quiet=True)
    side = Side(model, inputs, inputs.rows(found, "validation"))
    assert check_drop(model, side, 0.0).startswith("recall_at_1 ")


def test_prompts_stay_in_the_vocabulary():
    """Whatever the texts are, what is put before them is cut as it was."""
    ids = {token: index for index, token in enumerate(("[PAD]", "[UNK]", "good", "film", "the", "plot", "dull"))}
    words = Tokenizer(models.WordLevel(ids, unk_token="[UNK]"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()  # type: ignore[assignment]
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, unk_token="[UNK]", pad_token="[PAD]")
    model = body()
    head = dataclasses.replace(plain_pooling("mean", 32, 40), prompts={"query": "The plot ", "passage": ""}, lower=True)
    pool_by_(model, head)
    trimmed, _ = niwaki.trim_vocabulary_(model, tokenizer, ["good film"])
    assert set(trimmed.get_vocab()) == {"[PAD]", "[UNK]", "good", "film", "the", "plot"}


def test_pairs_without_a_score(tmp_path):
    found = table(tmp_path, ("sentence1", "sentence2"), ("good", "film"))
    with pytest.raises(RequestError, match=r"must have a score \(--label-column\), or be queries"):
        encode_sentences(found, tiny_tokenizer(), 16, lambda text, _: text, measured=True)
    assert len(encode_sentences(found, tiny_tokenizer(), 16, lambda text, _: text, measured=False)) == 2


def test_a_body_that_pools_nothing_is_not_measured(tmp_path):
    found = table(tmp_path, ("sentence1", "sentence2", "score"), ("good", "film", "5"))
    with pytest.raises(RequestError, match="--task embedding: leave labels out"):
        cut_table(found, body(), tiny_tokenizer(), Cut(16), "validation")
    assert len(cut_table(found, body(), tiny_tokenizer(), Cut(16, task="embedding"), "validation").rows) == 2
    with pytest.raises(RequestError, match="must give one vector a text to be measured"):
        quality(body(), Batches([{"input_ids": [1, 2, 3]}], tiny_tokenizer(), 2))
