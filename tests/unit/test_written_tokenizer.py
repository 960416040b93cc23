"""A tokenizer is written as it came, however texts were cut with it here."""

from __future__ import annotations

import json

import pytest
from transformers import AutoTokenizer, RobertaTokenizer

import niwaki
from helpers_text import tiny_tokenizer
from helpers_tokenizers import sentences, tokenizer_of
from niwaki.checkpoint import load_tokenizer, write_tokenizer
from tiny import tiny


def written(tokenizer, folder):
    """The files of a tokenizer, as far as they say how text is cut and padded."""
    folder.mkdir()
    write_tokenizer(tokenizer, folder)
    plain = json.loads((folder / "tokenizer.json").read_text())
    config = json.loads((folder / "tokenizer_config.json").read_text())
    said = {key: plain[key] for key in ("truncation", "padding", "pre_tokenizer")}
    return said | {key: config.get(key) for key in ("pad_token", "add_prefix_space", "max_length", "stride")}


@pytest.mark.parametrize("cut", [None, 9])
def test_how_texts_were_cut_is_not_written(cut, tmp_path):
    came = tiny_tokenizer()
    if cut:
        came.backend_tokenizer.enable_truncation(cut)
        came.backend_tokenizer.enable_padding(length=cut)
    came.save_pretrained(tmp_path / "came")
    tokenizer = load_tokenizer(tmp_path / "came")
    before = written(load_tokenizer(tmp_path / "came"), tmp_path / "before")
    assert (before["truncation"] or {}).get("max_length") == cut
    tokenizer(["a good film", "bad"], truncation=True, max_length=4, padding=True)
    assert tokenizer.backend_tokenizer.truncation["max_length"] == 4
    assert written(tokenizer, tmp_path / "after") == before


def test_what_a_trimmed_vocabulary_leaves_is_written_so_too(tmp_path):
    came = tokenizer_of("byte-level")
    came.backend_tokenizer.enable_truncation(30)
    came.backend_tokenizer.enable_padding(pad_id=2, pad_token="<pad>", length=30)
    came.save_pretrained(tmp_path / "came")
    tokenizer = load_tokenizer(tmp_path / "came")
    made, _ = niwaki.trim_vocabulary_(wide(tokenizer), tokenizer, sentences(5))
    found = written(made, tmp_path / "after")
    assert found["truncation"]["max_length"] == found["padding"]["strategy"]["Fixed"] == 30
    assert found["padding"]["pad_id"] == made.pad_token_id
    again = AutoTokenizer.from_pretrained(tmp_path / "after")
    assert again(sentences(1, seed=0))["input_ids"] == made(sentences(1, seed=0))["input_ids"]


def wide(tokenizer):
    model = tiny("llama")
    model.resize_token_embeddings(len(tokenizer))
    return model


def test_an_end_that_pads_here_is_no_padding_there(tmp_path):
    came = tokenizer_of("byte-level")
    came.pad_token = None
    came.save_pretrained(tmp_path / "came")
    tokenizer = load_tokenizer(tmp_path / "came", padding=True)
    assert tokenizer.pad_token == tokenizer.eos_token
    assert written(tokenizer, tmp_path / "after")["pad_token"] is None


@pytest.mark.parametrize("new_head", [False, True])
def test_a_space_before_the_first_word_is_written_for_those_who_learn_it(new_head, tmp_path):
    backend = tokenizer_of("byte-level").backend_tokenizer
    plain = json.loads(backend.to_str())["model"]
    came = RobertaTokenizer(vocab=plain["vocab"], merges=[tuple(pair) for pair in plain["merges"]])
    came.save_pretrained(tmp_path / "came")
    tokenizer = load_tokenizer(tmp_path / "came", of_words=True, new_head=new_head)
    assert tokenizer.add_prefix_space is True
    assert written(tokenizer, tmp_path / "after")["add_prefix_space"] is new_head
