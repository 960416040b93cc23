"""What a caller gives as data is refused in one line before the model is changed, whatever the verb; the rest works."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader
from transformers import BatchEncoding

import niwaki
from niwaki.anatomy import accepts_of
from niwaki.config import DynamicSparsityTraining
from niwaki.data import checked_batches
from niwaki.methods.dynamic import train_dynamic
from tiny import VOCABULARY, batches, tiny

FAST: dict[str, Any] = {"head_score": "random", "neuron_score": "random", "repair": "none"}
LINEARS: dict[str, Any] = {"allocation": "uniform", "weight_score": "magnitude", "repair": "none"}
Verb = Callable[[Any, Any], object]


def attach(model: Any, data: Any) -> object:
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    return niwaki.DynamicSparsity(sparsity=0.5).attach(model, optimizer, 40, data=data)


VERBS: dict[str, Verb] = {
    "structured": lambda model, data: niwaki.prune_(model, niwaki.Structured(flops=0.6, **FAST), data),
    "layer-adaptive": lambda model, data: niwaki.prune_(model, niwaki.LayerAdaptive(sparsity=0.5, **LINEARS), data),
    "score-units": lambda model, data: niwaki.score(model, data, niwaki.Structured(flops=1.0, **FAST)),
    "score-linears": lambda model, data: niwaki.score(model, data, niwaki.LayerAdaptive(sparsity=0.0, **LINEARS)),
    "finetune": lambda model, data: niwaki.finetune(model, niwaki.Finetune(lora_rank=2, epochs=1), data),
    "dynamic": lambda model, data: train_dynamic(
        model, DynamicSparsityTraining(sparsity=0.5, lora_rank=2, epochs=1), data
    ),
    "dynamic-calibration": lambda model, data: train_dynamic(
        model, DynamicSparsityTraining(sparsity=0.5, lora_rank=2), batches(1), calibration=data
    ),
    "attach": attach,
    "recovery": lambda model, data: niwaki.prune_(
        model, niwaki.Structured(flops=0.6, recover_epochs=1, **FAST), batches(1), training_data=data
    ),
    "masked-recovery": lambda model, data: niwaki.prune_(
        model, niwaki.LayerAdaptive(sparsity=0.5, recover_epochs=1, **LINEARS), batches(1), training_data=data
    ),
}


def with_(**changes: Any) -> list[dict]:
    """Two batches, the second with these keys changed; None takes a key away."""
    first, second = batches(2, rows=3, length=6)
    second = {key: value for key, value in {**second, **changes}.items() if value is not None}
    return [first, second]


def refused(model: Any, ask: Callable[[], object]) -> str:
    """The one line of the refusal; the model is as it was."""
    before = {name: value.clone() for name, value in model.state_dict().items()}
    kinds = [type(module) for module in model.modules()]
    with pytest.raises(niwaki.RequestError) as error:
        ask()
    after = model.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(value, after[name]) for name, value in before.items())
    assert kinds == [type(module) for module in model.modules()]
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.mark.parametrize("verb", VERBS)
@pytest.mark.parametrize(
    ("data", "said"),
    [
        (batches(1)[0], "one mapping with input_ids, attention_mask, labels"),
        ([tuple(batches(1)[0].values())], "a tuple of 3 as batch 0"),
        (with_(input_ids=torch.full((3, 6), VOCABULARY)), f"batch 1: input_ids must be 0 to {VOCABULARY - 1}"),
        (with_(attention_mask=torch.tensor([[1] * 6, [0] * 6, [1] * 6])), "batch 1: every row .* got row 1"),
        (with_(labels=torch.tensor([0, 3, 1])), "batch 1: labels must be 0 to 2, got 3"),
    ],
)
def test_every_verb_refuses_before_the_model_is_changed(verb: str, data: Any, said: str) -> None:
    model = tiny()
    assert re.search(said, refused(model, lambda: VERBS[verb](model, data)))


IDS = torch.ones(3, 6, dtype=torch.int64)


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (None, "iterable of batches .* got NoneType"),
        ("train.tsv", "iterable of batches .* got str"),
        (IDS, "iterable of batches .* got Tensor"),
        ([IDS], "got Tensor as batch 0"),
        (np.ones((3, 6)), "got ndarray as batch 0"),
        ([["input_ids"]], "got a list of 1 as batch 0"),
        (BatchEncoding(batches(1)[0]), "one mapping"),
        ([], "at least one batch, got none"),
        ([{}], "input_ids must be there, got nothing"),
        (with_(input_ids=None), "input_ids must be there, got attention_mask, labels"),
        ([{"input_ids": [1, 2, 3]}], "input_ids must be a tensor, got a list of 3; a collator makes"),
        ([{"input_ids": IDS.numpy()}], "input_ids must be a tensor, got ndarray"),
        ([{"input_ids": None}], "input_ids must be whole numbers .* got NoneType"),
        ([{"input_ids": IDS[0]}], r"\[rows, length\] .* got \[6\]"),
        ([{"input_ids": IDS[:0]}], r"at least one row, got \[0, 6\]"),
        ([{"input_ids": IDS[:, :0]}], r"at least one token, got input_ids of \[3, 0\]"),
        ([{"input_ids": IDS.float()}], "whole numbers .* got float32"),
        ([{"input_ids": IDS.bool()}], "whole numbers .* got bool"),
        ([{"input_ids": -IDS}], "input_ids must be 0 to 59, .* got -1"),
        ([{"input_ids": IDS.to("meta")}], "input_ids must hold values, got a tensor on the meta device"),
        ([{"input_ids": IDS.repeat(1, 7)}], "at most the model's 40 tokens, got 42"),
        (with_(attention_mask=torch.ones(3, 5)), r"attention_mask must be \[3, 6\] as input_ids, got \[3, 5\]"),
        (with_(attention_mask=torch.ones(3, 1, 6, 6)), r"attention_mask must be \[3, 6\]"),
        (with_(attention_mask=torch.full((3, 6), 2)), "attention_mask must be 1 for real tokens and 0"),
        (with_(attention_mask=[[1] * 6] * 3), "attention_mask must be a tensor, got a list of 3"),
        (with_(token_type_ids=torch.zeros(3, 5)), "token_type_ids must be"),
        (with_(sentence=["a"] * 3), "sentence must be a tensor, got a list of 3"),
        (with_(labels=[0, 1, 2]), "labels must be a tensor, got a list of 3"),
        (with_(labels=torch.tensor([0, -1, 1])), "labels must be 0 to 2, got -1"),
        (with_(labels=torch.tensor([0, -100, 1])), "labels must be 0 to 2, got -100"),
        (with_(labels=torch.tensor([0, 1])), r"labels must be \[3\] for this model, got \[2\]"),
        (with_(labels=torch.tensor([[0], [1], [1]])), r"labels must be \[3\] for this model, got \[3, 1\]"),
        (with_(labels=torch.tensor([0.0, 1.0, 1.0])), "labels must be int64 .* 3 classes, got float32"),
        (with_(labels=torch.tensor([True, False, True])), "labels must be int64 .* got bool"),
    ],
)
def test_what_is_no_batch_of_a_classifier(data: Any, said: str) -> None:
    accepts = accepts_of(tiny())
    with pytest.raises(niwaki.RequestError, match=f"^data.*{said}") as error:
        checked_batches(accepts, data)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("labels", "said"),
    [
        (torch.tensor([0.5, float("nan"), 1.0]), "finite numbers .* got others"),
        (torch.tensor([True, True, False]), "finite numbers .* got bool"),
        (torch.ones(3, 2), r"labels must be \[3\] for this model, got \[3, 2\]"),
    ],
)
def test_what_is_no_label_of_a_regression(labels: torch.Tensor, said: str) -> None:
    accepts = accepts_of(tiny(labels=1))
    with pytest.raises(niwaki.RequestError, match=said):
        checked_batches(accepts, with_(labels=labels))
    assert len(checked_batches(accepts, with_(labels=torch.tensor([0.5, 2.0, -1.0]))[1:])) == 1


@pytest.mark.parametrize(
    ("labels", "said"),
    [
        (torch.zeros(3, dtype=torch.int64), r"labels must be \[3, 6\]"),
        (torch.full((3, 6), VOCABULARY), "labels must be 0 to 59 or -100, got 60"),
        (torch.full((3, 6), -1), "or -100, got -1"),
    ],
)
def test_what_is_no_label_of_a_language_model(labels: torch.Tensor, said: str) -> None:
    accepts = accepts_of(tiny("llama"))
    first = batches(1, rows=3, length=6, family="llama")[0]
    with pytest.raises(niwaki.RequestError, match=said):
        checked_batches(accepts, [first, {**first, "labels": labels}])
    assert len(checked_batches(accepts, [first, {**first, "labels": torch.full((3, 6), -100)}])) == 2


def test_labels_are_needed_to_train_on_and_for_nothing_else() -> None:
    model, data = tiny(), with_(labels=None)
    assert "batch 1: labels must be there to train on" in refused(model, lambda: VERBS["finetune"](model, data))
    own = DynamicSparsityTraining(sparsity=0.5, teacher="none")
    assert "labels must be there" in refused(model, lambda: train_dynamic(model, own, data))
    VERBS["structured"](model, data)


@pytest.mark.parametrize("verb", ["structured", "layer-adaptive", "score-units", "score-linears", "attach"])
def test_what_gives_the_same_batches_is_the_same(verb: str) -> None:
    def generator() -> Iterator[dict]:
        yield from batches(2)

    def weights(data: Iterable[Any]) -> list[torch.Tensor]:
        model = tiny()
        VERBS[verb](model, data)
        return list(model.state_dict().values())

    rows = [{key: value[row] for key, value in batch.items()} for batch in batches(2) for row in range(6)]
    given = [batches(2), tuple(batches(2)), generator(), [BatchEncoding(batch) for batch in batches(2)]]
    given += [DataLoader(rows, batch_size=6)]  # type: ignore[arg-type, list-item]
    first, *others = [weights(data) for data in given]
    for other in others:
        assert all(torch.equal(a, b) for a, b in zip(first, other, strict=True))


def test_a_generator_that_is_used_up_is_told_from_no_data() -> None:
    model, data = tiny(), iter(batches(2))
    niwaki.score(model, data, niwaki.Structured(flops=1.0, **FAST))
    said = refused(model, lambda: niwaki.score(model, data, niwaki.Structured(flops=1.0, **FAST)))
    assert said == "data must give at least one batch, got none (a generator gives its batches only once)"
    data, config = iter(batches(2)), niwaki.Structured(flops=0.6, recover_epochs=1, **FAST)
    said = refused(model, lambda: niwaki.prune_(model, config, data, training_data=data))
    assert said.startswith("training_data must give at least one batch, got none")
