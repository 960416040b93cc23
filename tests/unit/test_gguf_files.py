"""GGUF files: tokenizers, roundings, rotations, marks, and what is refused."""

from __future__ import annotations

import json

import gguf
import numpy as np
import pytest
import torch
from gguf.quants import dequantize
from tokenizers import Tokenizer
from transformers import AutoModelForCausalLM, LlamaConfig, MistralConfig, PreTrainedTokenizerFast

import niwaki
from helpers_tokenizers import KINDS, sentences, tokenizer_of
from niwaki.anatomy import sites_of
from niwaki.errors import RequestError, WorkError
from niwaki.export import export_gguf, in_llama_cpp
from niwaki.export.gguf import check
from niwaki.export.gguf.splits import PROBE
from niwaki.export.gguf.write import _endings
from niwaki.surgery import cut_
from tiny import batches, logits, tiny

MERGING = ("byte-level", "whole words first", "byte fallback")


def llama(vocabulary=800, **options):
    torch.manual_seed(0)
    options = {"attention_bias": True, "mlp_bias": True, **options}
    config = LlamaConfig(
        vocab_size=vocabulary, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
        intermediate_size=64, max_position_embeddings=64, bos_token_id=0, eos_token_id=1, pad_token_id=2, **options,
    )  # fmt: skip
    model = AutoModelForCausalLM.from_config(config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" not in name:
                parameter.normal_(0, 0.15)
    return model.eval()


def keep_(model, **sites):
    """Leave a site, `layer_1_ffn`, with its first units."""
    plan = {site.name: torch.arange(sites.get(site.name.replace(".", "_"), site.units)) for site in sites_of(model)}
    cut_(model, plan)


def fields(file):
    return {name: field.contents() for name, field in gguf.GGUFReader(file).fields.items()}


@pytest.mark.parametrize("kind", MERGING)
def test_llama_cpp_cuts_texts_as_the_tokenizer_does(kind, tmp_path):
    tokenizer = tokenizer_of(kind)
    tokenizer.chat_template = "{% for m in messages %}{{ m['content'] }}{% endfor %}"
    export_gguf(llama(), tmp_path / "a.gguf", tokenizer)
    found = fields(tmp_path / "a.gguf")
    session = check.Session(tmp_path / "a.gguf")
    for text in (PROBE, "abc  defg\n", " hij", "日本 é!"):
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        assert list(session._model.get_vocab().tokenize(text, False, False)) == ids
    special = tokenizer("a<special>b", add_special_tokens=False)["input_ids"]
    assert list(session._model.get_vocab().tokenize("a<special>b", False, True)) == special
    assert found["tokenizer.chat_template"] == tokenizer.chat_template
    assert found["tokenizer.ggml.eos_token_id"] == tokenizer.eos_token_id
    marked = tokenizer("a")["input_ids"]
    assert found["tokenizer.ggml.add_bos_token"] is (marked[0] == tokenizer.bos_token_id)
    assert found["tokenizer.ggml.add_eos_token"] is (marked[-1] == tokenizer.eos_token_id)
    assert len(found["tokenizer.ggml.tokens"]) == 800


@pytest.mark.parametrize("kind", MERGING[:2])
def test_a_trimmed_vocabulary_is_split_by_the_rule_that_it_had(kind, tmp_path):
    """With few tokens left all rules spell what is strange alike, byte by byte; what the texts have they do not."""
    texts, names = sentences(40), []
    for number, trim in enumerate((False, True)):
        model, tokenizer, file = llama(), tokenizer_of(kind), tmp_path / f"{number}.gguf"
        if trim:
            tokenizer, _ = niwaki.trim_vocabulary_(model, tokenizer, texts)
        export_gguf(model, file, tokenizer)
        names.append(fields(file)["tokenizer.ggml.pre"])
        session = check.Session(file)
        for text in texts:
            ids = tokenizer(text, add_special_tokens=False)["input_ids"]
            assert list(session._model.get_vocab().tokenize(text, False, False)) == ids
    assert names == [{"byte-level": "gpt-2", "whole words first": "llama-bpe"}[kind]] * 2


def test_whole_words_first_where_llama_cpp_merges_is_refused(tmp_path):
    tokenizer = tokenizer_of("byte-level")
    plain = json.loads(tokenizer.backend_tokenizer.to_str())
    plain["model"]["ignore_merges"] = True
    other = PreTrainedTokenizerFast(tokenizer_object=Tokenizer.from_str(json.dumps(plain)))
    with pytest.raises(RequestError, match=r"to gguf needs a tokenizer that llama.cpp cuts text as"):
        export_gguf(llama(), tmp_path / "a.gguf", other)


def test_all_endings_that_the_format_has_a_place_for_are_told(tmp_path):
    model = llama()
    model.generation_config.eos_token_id = [1, 5, 9]
    export_gguf(model, tmp_path / "a.gguf", tokenizer_of("byte-level"))
    found = fields(tmp_path / "a.gguf")
    assert [found[f"tokenizer.ggml.{name}_token_id"] for name in ("eos", "eot", "eom")] == [1, 5, 9]


def test_texts_beyond_a_sliding_window_are_refused_in_llama_cpp():
    torch.manual_seed(0)
    config = MistralConfig(
        vocab_size=300, hidden_size=32, num_hidden_layers=1, num_attention_heads=4, num_key_value_heads=2,
        intermediate_size=64, max_position_embeddings=64, sliding_window=6,
    )  # fmt: skip
    there = in_llama_cpp(AutoModelForCausalLM.from_config(config).eval()).model
    there(input_ids=torch.ones(1, 6, dtype=torch.long))
    with pytest.raises(RequestError, match=r"max_length must be at most 6 for llama\.cpp"):
        there(input_ids=torch.ones(1, 7, dtype=torch.long))
    with pytest.raises(RequestError, match=r"batch_size must be at most 256 for llama\.cpp, got 257"):
        there(input_ids=torch.ones(257, 2, dtype=torch.long))


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind not in MERGING])
def test_a_tokenizer_that_the_format_does_not_know_is_refused(kind, tmp_path):
    with pytest.raises(RequestError, match=r"to gguf needs a tokenizer that"):
        export_gguf(llama(), tmp_path / "a.gguf", tokenizer_of(kind))
    assert not list(tmp_path.iterdir())


def test_the_first_token_may_be_what_ends_a_text():
    model = tiny("llama")
    assert _endings(model) == [2]
    assert model.generation_config is not None
    model.generation_config.eos_token_id = 0
    assert _endings(model) == [0]


def test_more_tokens_than_embeddings_are_refused(tmp_path):
    with pytest.raises(RequestError, match=r"no more tokens than the model has embeddings for to gguf, got 60"):
        export_gguf(llama(300), tmp_path / "a.gguf", tokenizer_of("byte-level"))


@pytest.mark.parametrize(
    "rotation",
    [
        {"rope_type": "linear", "factor": 4.0, "rope_theta": 5000.0},
        {"rope_type": "llama3", "factor": 8.0, "rope_theta": 100.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
         "original_max_position_embeddings": 32},
    ],
    ids=lambda rotation: rotation["rope_type"],
)  # fmt: skip
@pytest.mark.parametrize("tied", [False, True])
def test_rotations_biases_and_tied_embeddings(rotation, tied):
    model = llama(rope_parameters=rotation, tie_word_embeddings=tied, head_dim=16)
    keep_(model, layer_1_attention=0, layer_0_ffn=0)
    there = in_llama_cpp(model).model
    batch = batches(family="llama", length=30)[0]
    # llama.cpp keeps keys and values in float16.
    torch.testing.assert_close(logits(there, batch), logits(model, batch), rtol=1e-2, atol=1e-2)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rope_parameters": {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1e4}}, "rope_type must be default"),
        ({"hidden_act": "gelu"}, "hidden_act must be silu"),
    ],
)
def test_what_the_architectures_cannot_hold_is_refused(options, message, tmp_path):
    with pytest.raises(RequestError, match=message):
        export_gguf(llama(**options), tmp_path / "a")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(("quantize", "bits"), [("f16", 16), ("q8_0", 8.5), ("q4_0", 4.5), ("q4_1", 5)])
def test_roundings(quantize, bits, tmp_path):
    model = llama()
    weight = model.model.layers[0].mlp.up_proj.weight
    with torch.no_grad():
        weight[::2, ::3] = 0
    export_gguf(model, tmp_path / "a", quantize=quantize)
    (file,) = (tmp_path / "a").glob("*.gguf")
    assert file.name == f"model-{quantize.upper()}.gguf"
    tensors = {tensor.name: tensor for tensor in gguf.GGUFReader(file).tensors}
    rounded = tensors["blk.0.ffn_up.weight"]
    assert rounded.n_bytes * 8 / weight.numel() == bits
    values = dequantize(rounded.data, rounded.tensor_type)
    assert np.abs(values - weight.detach().numpy()).max() < 0.1
    assert quantize == "q4_1" or not values[::2, ::3].any()
    assert tensors["blk.0.ffn_norm.weight"].tensor_type == gguf.GGMLQuantizationType.F32
    embeddings = "Q8_0" if quantize.startswith("q4") else quantize.upper()
    assert tensors["token_embd.weight"].tensor_type.name == embeddings


def test_rows_that_a_rounding_does_not_divide_are_refused_before_any_work(tmp_path):
    model = llama()
    keep_(model, layer_1_ffn=40)
    with pytest.raises(RequestError, match=r"got 40 in blk.1.ffn_down.weight; prune with --round-to 32"):
        export_gguf(model, tmp_path / "a.gguf", quantize="q8_0")
    keep_(model, layer_1_ffn=32, layer_0_attention=1)
    with pytest.raises(RequestError, match=r"got 16 in blk.0.attn_output.weight; take f16"):
        export_gguf(model, tmp_path / "a.gguf", quantize="q8_0")
    assert not list(tmp_path.iterdir())


def test_requests(tmp_path, monkeypatch):
    with pytest.raises(RequestError, match=r"no language model, got 'gguf'"):
        export_gguf(tiny(), tmp_path / "a.gguf")
    with pytest.raises(RequestError, match=r"no language model, got 'llama.cpp'"):
        in_llama_cpp(tiny())
    with pytest.raises(RequestError, match=r"quantize must be none or f16 or .*engine onnxruntime has it"):
        export_gguf(llama(), tmp_path / "a.gguf", quantize="int8")
    (tmp_path / "mine.gguf").write_bytes(b"GGUF and more")
    with pytest.raises(RequestError, match=r"which is something else"):
        export_gguf(llama(), tmp_path / "mine.gguf", overwrite=True)
    monkeypatch.setattr("niwaki.export.packages.importlib.util.find_spec", lambda name: None)
    with pytest.raises(RequestError, match=r"to gguf needs gguf, cyllama, .*install niwaki\[gguf\]"):
        export_gguf(llama(), tmp_path / "a.gguf")
    with pytest.raises(RequestError, match=r"engine llama.cpp needs gguf, cyllama"):
        in_llama_cpp(llama())


def test_a_file_of_ours_is_replaced_when_asked(tmp_path):
    export_gguf(llama(), tmp_path / "a.gguf")
    with pytest.raises(RequestError, match=r"without --overwrite"):
        export_gguf(llama(), tmp_path / "a.gguf")
    export_gguf(llama(), tmp_path / "a.gguf", overwrite=True, quantize="f16")
    assert fields(tmp_path / "a.gguf")["general.file_type"] == gguf.LlamaFileType.MOSTLY_F16
    assert [path.name for path in tmp_path.iterdir()] == ["a.gguf"]


def test_a_file_that_computes_something_else_gets_no_name(tmp_path, monkeypatch):
    write = niwaki.export.gguf.write_gguf

    def wrong(model, *args):
        model.model.norm.weight.data *= 1.1
        write(model, *args)
        model.model.norm.weight.data /= 1.1

    monkeypatch.setattr(niwaki.export.gguf, "write_gguf", wrong)
    with pytest.raises(WorkError, match=r"logits must be within 0.01 of PyTorch's"):
        export_gguf(llama(), tmp_path / "a.gguf")
    assert not list(tmp_path.iterdir())
