"""Every task x every row of families that has the head: what is promised of a model holds whatever it is for."""

from __future__ import annotations

import copy

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers.pytorch_utils import Conv1D

import niwaki
from helpers_tasks import OTHERS, PAIRS, batches_of, model_of, said
from niwaki.adapters import attach_lora, merge_
from niwaki.anatomy import linears_of, sites_of
from niwaki.checkpoint import write_adapter
from niwaki.data import without_labels
from niwaki.evaluate import fidelity
from niwaki.surgery import cut_
from tiny import CUT


@pytest.mark.parametrize(("task", "family"), PAIRS)
def test_masked_equals_sliced(task, family):
    model, batch = model_of(task, family, layers=2), batches_of(task, 1)[0]
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
    dense, data = model_of(task, family, layers=2), batches_of(task, 1, rows=12)
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
    dense, data = model_of(task, "bert", layers=2), batches_of(task, 3, rows=12)
    distances, trained = {}, {"recover_epochs": 3, "recover_learning_rate": 1e-3}
    for name, options in {"none": {"repair": "none"}, "refit": {}, "recovered": trained}.items():
        model = copy.deepcopy(dense)
        niwaki.prune_(model, niwaki.Structured(flops=0.6, **options), data)
        found = fidelity(dense, model, data)
        distances[name] = found["kl"] if "kl" in found else 1 - found["cosine"]
    assert distances["refit"] < distances["none"]
    assert distances["recovered"] < distances["none"]


@pytest.mark.parametrize("task", OTHERS, ids=lambda task: task.name)
def test_adapters_of_the_task(task):
    """LoRA with the task's own PEFT type is pruned attached, trained under moving masks, merged."""
    model, data = attach_lora(model_of(task, "bert", layers=2), 4), batches_of(task, 2)
    niwaki.prune_(model, niwaki.Structured(flops=0.6), data)
    if task.labels != "none":
        niwaki.prune_(model, niwaki.DynamicSparsityTraining(sparsity=0.5, epochs=2, interval=1), data)
    before = said(model, data[0])
    torch.testing.assert_close(said(merge_(copy.deepcopy(model)), data[0]), before, rtol=0, atol=1e-5)


@pytest.mark.parametrize("typed", [True, False])
@pytest.mark.parametrize("task", OTHERS, ids=lambda task: task.name)
def test_what_an_adapter_brings_beside_its_factors(task, typed, tmp_path):
    """A head that it saves and tokens that it trains, through loading, pruning, merging and keeping it apart."""
    torch.manual_seed(0)
    base, batch = model_of(task, "bert", layers=2), batches_of(task, 1)[0]
    base.save_pretrained(tmp_path / "base")
    words = task.name == "masked"  # its head is tied to the embeddings
    heads = [] if words else [name for name, _ in base.named_children() if name in ("classifier", "qa_outputs")]
    config = LoraConfig(
        task_type=task.peft if typed else None,
        r=4,
        target_modules=["query", "value"],
        modules_to_save=heads or None,
        trainable_token_indices=None if words else [7, 8, 9],
    )
    tuned = get_peft_model(base, config).eval()
    with torch.no_grad():
        for parameter in tuned.parameters():
            if parameter.requires_grad:
                parameter.add_(0.1 * torch.randn_like(parameter))
    tuned.save_pretrained(str(tmp_path / "adapter"))
    model = niwaki.load(tmp_path / "adapter", base_model=str(tmp_path / "base"))
    assert type(model.get_base_model()) is type(base)
    torch.testing.assert_close(said(model, batch), said(tuned, batch), rtol=0, atol=1e-5)
    niwaki.prune_(model, niwaki.Structured(flops=0.8, **CUT), [batch])
    before = said(model, batch)
    write_adapter(model, tmp_path / "kept", tmp_path / "kept")
    torch.testing.assert_close(said(niwaki.load(tmp_path / "kept"), batch), before, rtol=0, atol=1e-5)
    niwaki.save(model, tmp_path / "merged")
    torch.testing.assert_close(said(niwaki.load(tmp_path / "merged"), batch), before, rtol=0, atol=1e-5)


@pytest.mark.parametrize("typed", [True, False])
@pytest.mark.parametrize("task", [task for task in OTHERS if not task.pretraining], ids=lambda task: task.name)
def test_a_base_without_a_head_gets_that_of_its_adapter(task, typed, tmp_path):
    """The task is that of the adapter's config, or of the class that it names where PEFT has no name for the task."""
    torch.manual_seed(0)
    base, batch = model_of(task, "bert", layers=2), batches_of(task, 1)[0]
    base.bert.save_pretrained(tmp_path / "base")
    heads = [name for name, _ in base.named_children() if name in ("classifier", "qa_outputs")]
    asked = task.peft if typed else None
    config = LoraConfig(task_type=asked, r=4, target_modules=["query", "value"], modules_to_save=heads)
    tuned = get_peft_model(base, config).eval()
    tuned.save_pretrained(str(tmp_path / "adapter"))
    model = niwaki.load(tmp_path / "adapter", base_model=str(tmp_path / "base"))
    assert type(model.get_base_model()) is type(base)
    torch.testing.assert_close(said(model, batch), said(tuned, batch), rtol=0, atol=1e-5)


@pytest.mark.parametrize("task", OTHERS, ids=lambda task: task.name)
def test_an_adapter_brings_tokens_that_its_base_has_not(task, tmp_path):
    """The embeddings got rows before the adapter was trained, which PEFT then saves with it."""
    torch.manual_seed(0)
    batch = batches_of(task, 1)[0]
    model_of(task, "bert", layers=2).save_pretrained(tmp_path / "base")
    base = type(model_of(task, "bert", layers=2)).from_pretrained(tmp_path / "base")
    base.resize_token_embeddings(66, mean_resizing=False)
    batch["input_ids"][..., 1] = torch.arange(60, 66).view(-1, *[1] * (batch["input_ids"].dim() - 2))
    tuned = get_peft_model(base, LoraConfig(task_type=task.peft, r=4, target_modules=["query", "value"])).eval()
    tuned.save_pretrained(str(tmp_path / "adapter"), save_embedding_layers=True)
    model = niwaki.load(tmp_path / "adapter")
    torch.testing.assert_close(said(model, batch), said(tuned, batch), rtol=0, atol=1e-6)
    niwaki.prune_(model, niwaki.Structured(flops=0.8, **CUT), [batch])
    niwaki.save(model, tmp_path / "merged")
    torch.testing.assert_close(said(niwaki.load(tmp_path / "merged"), batch), said(model, batch), rtol=0, atol=1e-5)


@pytest.mark.parametrize("task", [task for task in OTHERS if task.labels != "none"], ids=lambda task: task.name)
def test_fisher_and_taylor_are_of_the_loss_of_a_row(task):
    # One row at a time, by a mask on each unit: where a model chooses among texts, a row is all of its texts.
    model, data = model_of(task, "distilbert", layers=2), batches_of(task, 2)
    data = [{**batch, "attention_mask": torch.ones_like(batch["input_ids"])} for batch in data]
    gradients = {site.name: [] for site in sites_of(model)}
    for batch in data:
        for row in range(len(batch["input_ids"])):
            alone = {name: value[row : row + 1] for name, value in batch.items()}
            masks = {site.name: torch.ones(site.units, requires_grad=True) for site in sites_of(model)}
            hooks = [
                site.output.register_forward_pre_hook(
                    lambda _m, args, site=site, mask=masks[site.name]: args[0] * mask.repeat_interleave(site.width)
                )
                for site in sites_of(model)
            ]
            loss = model(**alone).loss * task.losses(alone)
            for hook in hooks:
                hook.remove()
            for name, found in zip(masks, torch.autograd.grad(loss, [*masks.values()]), strict=True):
                gradients[name].append(found)
    for score, size in (("fisher", torch.square), ("taylor", torch.abs)):
        scores = niwaki.score(model, data, niwaki.Structured(flops=1.0, head_score=score, neuron_score=score))
        for name, found in gradients.items():
            expected = size(torch.stack(found)).mean(0)
            torch.testing.assert_close(torch.tensor(scores[name]), expected, rtol=1e-3, atol=1e-7)


def test_sensitivity_counts_the_rows_of_a_model_that_chooses_among_texts():
    # 64 rows are drawn of 128, whose texts are twice as many.
    task = next(task for task in OTHERS if task.labels == "choice")
    model, data = model_of(task, "distilbert", layers=2), batches_of(task, 16, rows=8)
    asked = niwaki.LayerAdaptive(
        sparsity=0.5, layer_score="sensitivity", allocation="inverse-importance", weight_score="magnitude",
        repair="none", reconstruct="none",
    )  # fmt: skip
    linears = len(linears_of(model))
    assert niwaki.plan(model, asked, data).passes.forward == 1 + 2 * linears * 64 / 128


@pytest.mark.parametrize("task", OTHERS, ids=lambda task: task.name)
def test_scores_from_labels_and_without(task):
    model, data = model_of(task, "distilbert", layers=2), batches_of(task, 1)
    bare = [without_labels(batch) for batch in data]
    assert niwaki.score(model, bare)
    asked = niwaki.Structured(flops=0.5, head_score="fisher", neuron_score="fisher")
    with pytest.raises(niwaki.RequestError, match="must hold labels for scores from task gradients"):
        niwaki.score(model, bare, asked)
    if task.labels != "none":
        assert all(sum(scores) > 0 for scores in niwaki.score(model, data, asked).values())
    found = niwaki.score(model, bare, niwaki.LayerAdaptive(sparsity=0.5, layer_score="sensitivity", allocation="owl"))
    assert sum(found.importance.values()) > 0
