"""Padding never counts, on whichever side of a row it is."""

from __future__ import annotations

import pytest
import torch

import niwaki
from helpers_tasks import OTHERS, model_of
from helpers_text import tiny_tokenizer
from niwaki.data import Batches, mean_length, without_labels
from niwaki.evaluate import fidelity, perplexity
from tiny import batches, tiny

FAMILIES = ["llama", "gpt_neox", "gemma2"]


def moved(batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The same rows with their padding on the left."""
    shift = (batch["attention_mask"] == 0).sum(1)
    length = batch["input_ids"].shape[1]
    places = (torch.arange(length)[None] - shift[:, None]) % length
    return {name: value.gather(1, places) for name, value in batch.items()}


def rows(family: str, labelled: bool) -> list[dict[str, torch.Tensor]]:
    """Padded on the right; labels are those that Niwaki would make."""
    found = [{name: value for name, value in batch.items() if name != "labels"} for batch in batches(2, family=family)]
    if labelled:
        found = [b | {"labels": b["input_ids"].masked_fill(b["attention_mask"] == 0, -100)} for b in found]
    assert any((batch["attention_mask"] == 0).any() for batch in found)
    return found


@pytest.mark.parametrize("labelled", [True, False])
@pytest.mark.parametrize("family", FAMILIES)
def test_perplexity_and_fidelity_are_those_of_the_texts(family, labelled):
    dense, right = tiny(family).eval(), rows(family, labelled)
    left = [moved(batch) for batch in right]
    pruned = tiny(family).eval()
    niwaki.prune_(pruned, niwaki.Structured(flops=0.5), right)
    for model in (dense, pruned):
        assert perplexity(model, left) == pytest.approx(perplexity(model, right), rel=1e-4)
    assert fidelity(dense, pruned, left)["kl"] == pytest.approx(fidelity(dense, pruned, right)["kl"], rel=1e-3)


@pytest.mark.parametrize("family", FAMILIES)
def test_scores_from_task_gradients_are_those_of_the_texts(family):
    right = rows(family, labelled=True)
    config = niwaki.Structured(flops=0.5, head_score="taylor", neuron_score="fisher")
    on_the_right = niwaki.score(tiny(family), right, config)
    on_the_left = niwaki.score(tiny(family), [moved(batch) for batch in right], config)
    for name, scores in on_the_right.items():
        torch.testing.assert_close(torch.tensor(on_the_left[name]), torch.tensor(scores), rtol=2e-3, atol=1e-9)


@pytest.mark.parametrize("task", ["text-classification", "token-classification", "multiple-choice"])
def test_a_tokenizer_that_gives_no_mask_pads_all_the_same(task):
    # `model_input_names` of a tokenizer_config.json may be the ids alone.
    tokenizer = tiny_tokenizer()
    tokenizer.model_input_names = ["input_ids"]
    texts = ["a good film", "the very dull plot is not a good film", "bright"]
    rows = [dict(tokenizer(text)) for text in texts]
    if task == "token-classification":
        rows = [row | {"labels": [-100, *[1] * (len(row["input_ids"]) - 2), -100]} for row in rows]
    if task == "multiple-choice":
        rows = [{"input_ids": [row["input_ids"], rows[0]["input_ids"]], "labels": 0} for row in rows]
    others = {task.name: task for task in OTHERS}
    model = model_of(others[task], "bert") if task in others else tiny("bert")
    together, alone = (list(Batches(rows, tokenizer, size)) for size in (3, 1))
    with torch.no_grad():
        said = [model(**without_labels(batch)).logits for batch in together]
        by_itself = [model(**without_labels(batch)).logits for batch in alone]
    for row, expected in zip(said[0], by_itself, strict=True):
        torch.testing.assert_close(row[: len(expected[0])] if row.dim() > 1 else row, expected[0], rtol=0, atol=1e-5)
    ids = [row["input_ids"] for row in rows]
    tokens = [len(text) for row in ids for text in (row if isinstance(row[0], list) else [row])]
    assert mean_length(together) == pytest.approx(sum(tokens) / len(tokens))
