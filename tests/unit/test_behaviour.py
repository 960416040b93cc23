"""Figures are those of scikit-learn, their intervals hold what other rows would give, and what changed is counted."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest
import torch
from sklearn.metrics import f1_score, matthews_corrcoef
from torch import nn
from transformers.modeling_outputs import SequenceClassifierOutput

from helpers_tasks import batches_of, model_of
from helpers_text import tiny_tokenizer
from niwaki.anatomy import TASKS
from niwaki.data import Batches, token_mask, without_labels
from niwaki.data.running_text import pack
from niwaki.evaluate import behaviour, judge
from niwaki.evaluate.fidelity import fidelity, fidelity_of
from niwaki.evaluate.judged import Judged, NextTokens
from niwaki.evaluate.sums import figures_and_intervals
from tiny import tiny


def judged_of(model: nn.Module, logits: np.ndarray, truth: np.ndarray) -> Judged:
    """What is judged of a classifier that gives these logits."""
    rows = iter(torch.tensor(logits).split(50))
    model.forward = lambda **_: SequenceClassifierOutput(logits=next(rows))  # type: ignore[assignment,arg-type]
    ids = torch.ones(50, 3, dtype=torch.long)
    return judge(model, [{"input_ids": ids, "labels": labels} for labels in torch.tensor(truth).split(50)])


@pytest.fixture(scope="module")
def two_sides() -> tuple[Judged, Judged, np.ndarray]:
    """A good and a worse model of three classes on 400 rows."""
    draw = np.random.default_rng(0)
    truth = draw.integers(0, 3, 400)
    model, sides = tiny(labels=3), []
    for noise in (0.4, 0.9):
        logits = np.eye(3)[truth] + noise * draw.normal(size=(400, 3))
        sides.append(judged_of(model, logits.astype("float32"), truth))
    return sides[0], sides[1], truth


def test_figures_are_the_usual_ones_and_lie_in_their_intervals(two_sides):
    dense, pruned, truth = two_sides
    for judged in (dense, pruned):
        said = judged.answers.values
        assert judged.quality["f1"] == pytest.approx(f1_score(truth, said, average="macro"))
        assert judged.quality["matthews_correlation"] == pytest.approx(matthews_corrcoef(truth, said))
        for name, (low, high) in judged.interval.items():
            assert low < judged.quality[name] < high
    # The interval of a share is about that of the normal approximation.
    share = dense.quality["accuracy"]
    low, high = dense.interval["accuracy"]
    assert high - low == pytest.approx(2 * 1.96 * (share * (1 - share) / 400) ** 0.5, rel=0.15)


def test_rows_that_add_alike_are_drawn_together():
    sums = np.array([[1.0, 1.0], [0.0, 1.0]])
    whole = figures_and_intervals(np.repeat(sums, [30, 10], axis=0), lambda s: {"share": s[:, 0] / s[:, 1]})
    assert whole == figures_and_intervals(sums[::-1], lambda s: {"share": s[:, 0] / s[:, 1]}, np.array([10, 30]))
    assert whole[0] == {"share": 0.75}
    assert figures_and_intervals(sums[:1], lambda s: {"share": s[:, 0] / s[:, 1]}) == ({"share": 1.0}, {})


def test_what_changed_is_counted_and_shown(two_sides):
    dense, pruned, truth = two_sides
    texts = [(f"text {row}", "other") for row in range(400)]
    found = behaviour(dense, pruned, texts)
    before, after = (np.array(side.answers.values) for side in (dense, pruned))
    assert found["changed"] == int((before != after).sum())
    assert found["right"]["dense_only"] == int(((before == truth) & (after != truth)).sum())
    assert np.trace(found["confusion"]["pruned"]) == int((after == truth).sum())
    by_name = {row["name"]: row["pruned"] for row in found["by_name"]}
    names = ("LABEL_0", "LABEL_1", "LABEL_2")
    assert [by_name[name] for name in names] == pytest.approx(f1_score(truth, after, average=None).tolist())
    assert len(found["examples"]) == 20
    example = found["examples"][0]
    assert example["text"] == f"text {example['row'] - 1} / other"
    assert example["truth"] == example["dense"] != example["pruned"]
    json.dumps(found, allow_nan=False)


def test_outputs_are_compared_by_their_places_whatever_they_are_called(two_sides):
    """`eval --against` a model of the same classes that names none, or others, or the same in another order."""
    dense, pruned, _ = two_sides

    def called(*names):
        answers = dataclasses.replace(pruned.answers, names=names, shown=lambda _, value: names[value])
        return dataclasses.replace(pruned, answers=answers)

    assert behaviour(dense, called("bad", "good", "so so")) == behaviour(dense, pruned)
    assert behaviour(dense, called("LABEL_1", "LABEL_0", "LABEL_2")) == {}
    assert behaviour(dense, called("LABEL_0", "LABEL_1")) == {}


def test_predictions_that_were_kept_tell_the_fidelity(two_sides):
    dense, pruned, _ = two_sides
    found = fidelity_of(dense.predictions, pruned.predictions)
    same = np.mean(np.array(dense.answers.values) == np.array(pruned.answers.values))
    assert found["agreement"] == pytest.approx(same)
    assert found["kl"] > 0
    data = [{"input_ids": torch.randint(5, 50, (4, 6)), "labels": torch.tensor([0, 1, 2, 0])}]
    models = tiny(labels=3), tiny(labels=3, seed=1)
    kept = fidelity_of(*(judge(model, data).predictions for model in models))
    assert kept == pytest.approx(fidelity(*models, data))


def test_the_loss_of_a_language_model_by_place_and_token():
    tokens = [torch.tensor([7, 8, 9]), torch.tensor([7, -100])]
    sides = [
        Judged({}, next_tokens=NextTokens([torch.tensor(row) for row in nats], tokens, lambda token: f"<{token}>"))
        for nats in (([1.0, 1.0, 1.0], [2.0, 0.0]), ([1.0, 0.5, 4.0], [3.0, 0.0]))
    ]
    found = behaviour(*sides)
    assert [(place["first"], place["tokens"], place["pruned"]) for place in found["positions"]] == [
        (2, 2, 2.0),
        (3, 1, 0.5),
        (4, 1, 4.0),
    ]
    assert [(token["token"], token["count"], token["pruned"]) for token in found["tokens"]] == [
        ("<9>", 1, 4.0),
        ("<7>", 2, 2.0),
    ]
    others = Judged({}, next_tokens=NextTokens([torch.tensor([1.0])], [torch.tensor([7])], str))
    assert behaviour(sides[0], others) == {}


def asked_of(task: str) -> tuple[list[dict[str, torch.Tensor]], list[torch.Tensor]]:
    """Batches of a task, and at which tokens the model is asked: of windows that overlap for every token once."""
    if task == "causal":
        rows, _ = pack("a good film . the dull plot is not bright . " * 9, tiny_tokenizer(), 10, 3)
        data = list(Batches(rows, tiny_tokenizer(), 4))
        where = [torch.zeros_like(batch["labels"], dtype=torch.bool) for batch in data]
        for batch, found in zip(data, where, strict=True):
            for row, place in (batch["labels"] != -100).nonzero().tolist():
                found[row, place - 1] |= place > 0
        assert sum(int(found.sum()) for found in where) == 99 - 1
        return data, where
    data = batches_of(NAMED[task], count=2)
    for batch in data:  # a hidden word here and there, or the first piece of a word
        batch["labels"][:, ::3] = -100
    return data, [batch["labels"] != -100 for batch in data]


NAMED = {task.name: task for task in TASKS}


@pytest.mark.parametrize("labelled", [True, False])
@pytest.mark.parametrize("task", ["masked", "token-classification", "causal"])
def test_models_are_alike_where_they_were_asked(task, labelled):
    """Against a computation by hand; what the measuring keeps of both models says the same."""
    family = "llama" if task == "causal" else "bert"
    dense, pruned = (model_of(NAMED[task], family, seed, layers=1) for seed in (0, 1))
    data, where = asked_of(task)
    if not labelled:
        data = [without_labels(batch) for batch in data]
        where = [token_mask(batch).bool() for batch in data]
    with torch.no_grad():
        p, q = (
            torch.cat([model(**without_labels(x)).logits[keep] for x, keep in zip(data, where, strict=True)])
            for model in (dense, pruned)
        )
    p, q = p.log_softmax(-1), q.log_softmax(-1)
    wanted = {"agreement": float((p.argmax(-1) == q.argmax(-1)).float().mean())}
    wanted |= {"kl": float((p.exp() * (p - q)).sum(-1).mean())}
    assert fidelity(dense, pruned, data) == pytest.approx(wanted, rel=1e-4)
    if labelled and task != "causal":
        kept = [judge(model, data).predictions for model in (dense, pruned)]
        assert [len(each.values) for each in kept] == [len(p)] * 2
        assert fidelity_of(*kept) == pytest.approx(wanted, rel=1e-4)
