"""Every task x every row of families that has the head: what is promised of a model holds whatever it is for."""

from __future__ import annotations

import copy

import pytest
import torch
from transformers.pytorch_utils import Conv1D

import niwaki
from helpers_tasks import OTHERS, batches_of, model_of, said
from niwaki.adapters import attach_lora, merge_
from niwaki.anatomy import sites_of
from niwaki.data import without_labels
from niwaki.evaluate import fidelity
from niwaki.surgery import cut_
from tiny import ROWS, configs

PAIRS = [
    pytest.param(task, family, id=f"{task.name}-{family}")
    for task in OTHERS
    for family, config in configs().items()
    if family in ROWS and type(config) in task.auto._model_mapping  # type: ignore[attr-defined]
]


@pytest.mark.parametrize(("task", "family"), PAIRS)
def test_masked_equals_sliced(task, family):
    model, batch = model_of(task, family), batches_of(task, 1)[0]
    masked = copy.deepcopy(model)
    plan = {}
    for site, other in zip(sites_of(model), sites_of(masked), strict=True):
        keep = torch.arange(site.units) if site.fixed else torch.arange(0, site.units, 2)
        plan[site.name] = keep
        gone = torch.ones(site.units, dtype=torch.bool)
        gone[keep] = False
        columns = gone.repeat_interleave(site.width)
        with torch.no_grad():
            weight = other.output.weight.T if isinstance(other.output, Conv1D) else other.output.weight
            weight[:, columns] = 0
    cut_(model, plan)
    torch.testing.assert_close(said(model, batch), said(masked, batch), rtol=0, atol=1e-5)


@pytest.mark.parametrize(("task", "family"), PAIRS)
def test_pruned_saved_and_loaded(task, family, tmp_path):
    """Cut, then masked; what is saved loads as it was, by Niwaki and, after `import niwaki`, by Transformers."""
    dense, data = model_of(task, family), batches_of(task, 2)
    model = copy.deepcopy(dense)
    done = niwaki.prune_(model, niwaki.Structured(flops=0.8), data)
    assert done.achieved <= 0.8 + 1e-9
    niwaki.prune_(model, niwaki.LayerAdaptive(sparsity=0.5, weight_score="magnitude", repair="none"), data)
    before = said(model, data[0])
    niwaki.save(model, tmp_path / "saved")
    loaded = niwaki.load(tmp_path / "saved")
    assert type(loaded) is type(model)
    assert torch.equal(said(loaded, data[0]), before)
    plain = task.auto.from_pretrained(tmp_path / "saved").eval()
    assert torch.equal(said(plain, data[0]), before)
    found = fidelity(dense, plain, data)
    assert set(found) == ({"cosine"} if task.labels == "none" else {"agreement", "kl"})


@pytest.mark.parametrize("task", OTHERS, ids=lambda task: task.name)
def test_repair_and_recovery_bring_the_pruned_model_nearer(task):
    dense, data = model_of(task, "bert"), batches_of(task, 6)
    distances = {}
    for name, options in {"none": {"repair": "none"}, "refit": {}, "recovered": {"recover_epochs": 3}}.items():
        model = copy.deepcopy(dense)
        niwaki.prune_(model, niwaki.Structured(flops=0.6, recover_learning_rate=1e-3, **options), data)
        found = fidelity(dense, model, data)
        distances[name] = found["kl"] if "kl" in found else 1 - found["cosine"]
    assert distances["refit"] < distances["none"]
    assert distances["recovered"] < distances["none"]


@pytest.mark.parametrize("task", OTHERS, ids=lambda task: task.name)
def test_adapters_of_the_task(task):
    """LoRA with the task's own PEFT type is pruned attached, trained under moving masks, merged."""
    model, data = attach_lora(model_of(task, "bert"), 4), batches_of(task)
    niwaki.prune_(model, niwaki.Structured(flops=0.6), data)
    if task.labels != "none":
        niwaki.prune_(model, niwaki.DynamicSparsityTraining(sparsity=0.5, epochs=2, interval=1), data)
    before = said(model, data[0])
    torch.testing.assert_close(said(merge_(copy.deepcopy(model)), data[0]), before, rtol=0, atol=1e-5)


@pytest.mark.parametrize("task", OTHERS, ids=lambda task: task.name)
def test_scores_from_labels_and_without(task):
    model, data = model_of(task, "distilbert"), batches_of(task)
    bare = [without_labels(batch) for batch in data]
    assert niwaki.score(model, bare)
    asked = niwaki.Structured(flops=0.5, head_score="fisher", neuron_score="fisher")
    with pytest.raises(niwaki.RequestError, match="must hold labels for scores from task gradients"):
        niwaki.score(model, bare, asked)
    if task.labels != "none":
        assert all(sum(scores) > 0 for scores in niwaki.score(model, data, asked).values())
    found = niwaki.score(model, bare, niwaki.LayerAdaptive(sparsity=0.5, layer_score="sensitivity", allocation="owl"))
    assert sum(found.importance.values()) > 0
