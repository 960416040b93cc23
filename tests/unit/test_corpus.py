"""Windows of running text: every token is predicted once, whatever the stride; batches are padded without a trace."""

from __future__ import annotations

import pytest
import torch

from helpers_text import tiny_tokenizer
from niwaki.anatomy import with_labels
from niwaki.data import Batches, mean_length
from niwaki.data.running_text import pack
from niwaki.errors import RequestError
from niwaki.evaluate import perplexity
from tiny import tiny

TEXT = "a good film . " * 25


@pytest.mark.parametrize(("context", "stride"), [(10, None), (10, 3), (16, 16), (40, 7), (1000, None)])
def test_every_token_counts_once(context, stride):
    rows, protocol = pack(TEXT, tiny_tokenizer(), context, stride)
    assert protocol.tokens == 100
    assert protocol.windows == len(rows)
    assert all(len(row["input_ids"]) == len(row["labels"]) <= context for row in rows)
    assert sum(label != -100 for row in rows for label in row["labels"]) == 100
    assert protocol.stride == (stride or context)


def test_a_first_token_is_put_in_every_window_where_it_is_asked_for():
    tokenizer = tiny_tokenizer()
    with pytest.raises(RequestError, match="no bos_token"):
        pack(TEXT, tokenizer, 11, bos=True)
    tokenizer.bos_token = "[CLS]"
    assert not pack(TEXT, tokenizer, 11)[1].bos
    rows, protocol = pack(TEXT, tokenizer, 11, bos=True)
    assert protocol.bos
    assert protocol.stride == 10
    assert all(row["input_ids"][0] == tokenizer.bos_token_id and row["labels"][0] == -100 for row in rows)
    assert [len(row["input_ids"]) for row in rows] == [11] * 10


@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_does_not_matter_to_perplexity(side):
    tokenizer, model = tiny_tokenizer(), tiny("llama")
    tokenizer.padding_side = side
    rows, _ = pack(TEXT, tokenizer, 17, 6)
    together, alone = (perplexity(model, Batches(rows, tokenizer, size)) for size in (32, 1))
    assert together["perplexity"] == pytest.approx(alone["perplexity"], rel=1e-5)
    assert mean_length(Batches(rows, tokenizer, 4)) == sum(len(row["input_ids"]) for row in rows) / len(rows)


def test_labels_are_made_where_there_are_none():
    batch = {"input_ids": torch.tensor([[5, 6, 0]]), "attention_mask": torch.tensor([[1, 1, 0]])}
    assert with_labels(tiny("llama"), batch)["labels"].tolist() == [[5, 6, -100]]
    assert with_labels(tiny("bert"), batch) is batch


@pytest.mark.parametrize(
    ("text", "stride", "words"), [("film", None, "two tokens"), (TEXT, 0, "stride must be 1 to 9")]
)
def test_wrong_texts(text, stride, words):
    with pytest.raises(RequestError, match=words):
        pack(text, tiny_tokenizer(), 9, stride)
