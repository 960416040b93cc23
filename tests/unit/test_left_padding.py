"""Padding never counts, on whichever side of a row it is."""

from __future__ import annotations

import pytest
import torch

import niwaki
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
