"""Metrics against what they are by definition; modes restored; timing in turn; bytes as saved."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from transformers import DistilBertConfig, DistilBertForMaskedLM, PreTrainedConfig, PreTrainedModel
from transformers.modeling_outputs import SequenceClassifierOutput

from niwaki.errors import RequestError, WorkError
from niwaki.evaluate import (
    LANGUAGE_METRICS,
    METRICS,
    model_latency,
    paired,
    predictions,
    quality,
    size_bytes,
    speedup,
)
from tiny import batches, tiny


class FixedForSequenceClassification(PreTrainedModel):
    """Gives the logits that the batch carries."""

    config_class = PreTrainedConfig

    def __init__(self, labels: int) -> None:
        super().__init__(PreTrainedConfig(num_labels=labels))
        self.weight = nn.Parameter(torch.ones(1))

    def forward(self, given: torch.Tensor) -> SequenceClassifierOutput:
        return SequenceClassifierOutput(logits=given * self.weight)  # type: ignore[arg-type]


Fixed = FixedForSequenceClassification


def fixed(logits: list, labels: list) -> list[dict]:
    given, truth = torch.tensor(logits, dtype=torch.float32), torch.tensor(labels)
    return [{"given": given[:2], "labels": truth[:2]}, {"given": given[2:], "labels": truth[2:]}]


# Predicted 1 1 0 0 1, true 1 0 0 1 1: tp 2, fp 1, fn 1, tn 1.
TWO_CLASSES = fixed([[0, 1], [0, 2], [3, 1], [1, 0], [0, 1]], [1, 0, 0, 1, 1])


@pytest.mark.parametrize(
    ("metric", "name", "expected"),
    [
        ("accuracy", "accuracy", 3 / 5),
        ("f1", "f1", 2 / 3),
        ("matthews_correlation", "matthews_correlation", (2 * 1 - 1 * 1) / (3 * 3 * 2 * 2) ** 0.5),
    ],
)
def test_class_metrics(metric: str, name: str, expected: float) -> None:
    assert quality(Fixed(2), TWO_CLASSES, metric) == {name: pytest.approx(expected)}
    assert quality(Fixed(2), TWO_CLASSES)[name] == pytest.approx(expected)  # all at once


def test_f1_of_more_classes_is_their_mean() -> None:
    data = fixed([[1, 0, 0], [0, 1, 0], [0, 1, 0], [0, 0, 1]], [0, 1, 2, 2])
    assert quality(Fixed(3), data, "f1") == {"f1": pytest.approx((1 + 2 / 3 + 2 / 3) / 3)}


def test_correlations_for_one_output() -> None:
    values, truth = [0.0, 1.0, 2.0, 5.0, 3.0], [0.0, 1.0, 4.0, 9.0, 5.0]
    found = quality(Fixed(1), fixed([[v] for v in values], truth))
    assert found == {"pearson": pytest.approx(np.corrcoef(values, truth)[0, 1]), "spearman": pytest.approx(1.0)}
    assert quality(Fixed(1), fixed([[v] for v in values], truth), "spearman") == {"spearman": pytest.approx(1.0)}


@pytest.mark.parametrize("metric", ["accuracy", "f1", "matthews_correlation"])
def test_a_collapsed_classifier_has_a_value(metric: str) -> None:
    assert quality(Fixed(2), fixed([[1, 0]] * 4, [1, 1, 1, 1]), metric) == {metric: 0.0}
    assert np.isfinite(quality(Fixed(2), fixed([[1, 0]] * 4, [0, 0, 0, 0]), metric)[metric])


def test_a_constant_regressor_has_a_value() -> None:
    assert quality(Fixed(1), fixed([[2.0]] * 4, [0.0, 1.0, 2.0, 3.0])) == {"pearson": 0.0, "spearman": 0.0}


def test_metrics_that_cannot_be() -> None:
    with pytest.raises(RequestError, match=r"metric must be one of .*did you mean 'accuracy'"):
        quality(Fixed(2), TWO_CLASSES, "acuracy")
    with pytest.raises(RequestError, match="pearson, spearman for a sequence classifier like this, got 'f1'"):
        quality(Fixed(1), TWO_CLASSES, "f1")
    with pytest.raises(RequestError, match="for a sequence classifier like this, got 'pearson'"):
        quality(Fixed(2), TWO_CLASSES, "pearson")
    of_classes = {"accuracy", "f1", "matthews_correlation", "f1_micro", "f1_macro", "subset_accuracy"}
    others = {"pearson", "spearman", "precision", "recall", "token_accuracy", "exact_match"}
    others |= {"pseudo_perplexity", "masked_accuracy", "recall_at_1", "recall_at_10", "mrr"}
    assert set(METRICS) == of_classes | others | set(LANGUAGE_METRICS)


def test_data_that_cannot_be_measured() -> None:
    with pytest.raises(RequestError, match="eval_data must have labels"):
        quality(Fixed(2), [{"given": torch.zeros(2, 2)}])
    with pytest.raises(RequestError, match="eval_data must hold at least one row"):
        quality(Fixed(2), [])


def test_logits_that_are_not_finite_are_a_failure_and_the_mode_is_restored() -> None:
    model = Fixed(2).train()
    with pytest.raises(WorkError, match="not finite"):
        quality(model, fixed([[0, float("nan")]] * 3, [0, 1, 0]))
    assert model.training


def test_predictions_are_in_evaluation_mode_and_every_module_gets_its_mode_back() -> None:
    model, data = tiny(labels=3), batches(count=2)
    expected = torch.cat([model(**{k: v for k, v in b.items() if k != "labels"}).logits for b in data]).detach()
    model.train()
    next(model.children()).eval()
    modes = [module.training for module in model.modules()]
    logits, labels = predictions(model, data)
    assert torch.allclose(logits, expected, atol=1e-6)
    assert torch.equal(labels, torch.cat([b["labels"] for b in data]))
    assert not logits.requires_grad
    assert [module.training for module in model.modules()] == modes


def test_progress_goes_to_stderr_only_when_asked(capsys: pytest.CaptureFixture[str]) -> None:
    quality(Fixed(2), TWO_CLASSES)
    assert capsys.readouterr() == ("", "")
    quality(Fixed(2), TWO_CLASSES, progress=True)
    shown = capsys.readouterr()
    assert shown.out == ""
    assert "evaluate" in shown.err


def test_pairs_alternate_and_the_ratio_is_that_of_pairs(monkeypatch: pytest.MonkeyPatch) -> None:
    order, clock = [], [0.0]
    # Dense takes 2, 4, 60 ms and pruned 1, 1, 20 ms: ratios 2, 4, 3.
    costs = {"dense": iter([0.002, 0.004, 0.060]), "pruned": iter([0.001, 0.001, 0.020])}

    def call(name: str) -> None:
        order.append(name)
        clock[0] += next(costs[name])

    monkeypatch.setattr("time.perf_counter", lambda: clock[0])
    timing = paired(lambda: call("dense"), lambda: call("pruned"), rounds=3, warmup=0)
    assert order == ["dense", "pruned", "pruned", "dense", "dense", "pruned"]
    assert (timing.dense_ms, timing.pruned_ms) == (pytest.approx(4.0), pytest.approx(1.0))
    assert (timing.speedup, timing.rounds) == (pytest.approx(3.0), 3)


def test_warm_up_is_not_timed() -> None:
    calls = []
    paired(lambda: calls.append("a"), lambda: calls.append("b"), rounds=2, warmup=3)
    assert (calls.count("a"), calls.count("b")) == (5, 5)
    with pytest.raises(RequestError, match="rounds must be at least 1, got 0"):
        paired(lambda: None, lambda: None, rounds=0)


@pytest.mark.parametrize(("most", "rounds"), [(1000.0, 15), (100.0, 10), (20.0, 3), (1.0, 1)])
def test_long_calls_are_timed_less_often(monkeypatch: pytest.MonkeyPatch, most: float, rounds: int) -> None:
    clock = [0.0]

    def call() -> None:
        clock[0] += 4.0

    monkeypatch.setattr("time.perf_counter", lambda: clock[0])
    assert paired(call, call, most_seconds=most).rounds == rounds


def test_model_latency_is_the_contract_object() -> None:
    dense, pruned = tiny().train(), tiny(seed=1)
    seen: list[dict] = []
    pruned.register_forward_pre_hook(lambda _m, _a, kwargs: seen.append(kwargs), with_kwargs=True)
    found = model_latency(dense, pruned, length=7, batch_sizes=(1, 3), rounds=2)
    assert list(found) == ["batch_1", "batch_3", "seq_len", "threads", "rounds"]
    assert (found["seq_len"], found["threads"], found["rounds"]) == (7, torch.get_num_threads(), 2)
    for size in (1, 3):
        assert set(found[f"batch_{size}"]) == {"dense_ms", "pruned_ms", "speedup", "quartiles"}
        for name, (low, high) in found[f"batch_{size}"].pop("quartiles").items():
            assert 0 < low <= found[f"batch_{size}"][name] <= high
    assert {tuple(inputs["input_ids"].shape) for inputs in seen} == {(1, 7), (3, 7)}
    assert all(bool((inputs["attention_mask"] == 1).all()) for inputs in seen)
    assert (dense.training, pruned.training) == (True, False)


@pytest.mark.parametrize(("length", "longer"), [(7, 28), (16, 40), (20, 40), (21, None)])
def test_a_longer_row_is_timed_where_the_model_takes_it(length: int, longer: int | None) -> None:
    """Four times as long, or as long as there are positions (40 here), but no row that is hardly longer."""
    model, given = tiny(), set()
    model.register_forward_pre_hook(lambda _m, _a, kwargs: given.add(kwargs["input_ids"].shape), with_kwargs=True)
    found = model_latency(model, model, length, (3,), rounds=1, longer=True)
    assert found.get("batch_1_long", {}).get("seq_len") == longer
    assert "seq_len" not in found["batch_3"]
    assert given == {(3, length), *([(1, longer)] if longer else [])}


@pytest.mark.parametrize(("family", "rounds"), [("distilbert", 3 * 5 - 2), ("llama", 3 * 5 - 2)])
def test_timing_is_told_of(family: str, rounds: int, capsys: pytest.CaptureFixture[str]) -> None:
    """Two batches of three rounds to warm up and two that count; what stands beside them warms up in one."""
    model = tiny(family)
    model_latency(model, model, 7, (1, 3), rounds=2, longer=True, progress=True)
    assert capsys.readouterr().err == f"time: {rounds} rounds\n"
    model_latency(model, model, 7, (1, 3), rounds=2)
    assert capsys.readouterr().err == ""


def test_language_models_are_timed_as_they_are_used(monkeypatch: pytest.MonkeyPatch) -> None:
    """Prompts, no more tokens of them than end in seconds, of which the last logits are given; and token by token."""
    monkeypatch.setattr("niwaki.evaluate.latency._PROMPTS", 20)
    model, given = tiny("llama"), set()
    model.register_forward_hook(
        lambda _m, _a, kwargs, out: given.add((*kwargs["input_ids"].shape, out.logits.shape[1])), with_kwargs=True
    )
    found = model_latency(model, model, length=7, batch_sizes=(1, 4), rounds=1)
    assert list(found) == ["batch_1", "batch_4", "decode", "seq_len", "threads", "rounds"]
    assert given == {(1, 7, 1), (4, 5, 1), (1, 1, 1)}
    assert ("seq_len" in found["batch_1"], found["batch_4"]["seq_len"], found["seq_len"]) == (False, 5, 7)
    given.clear()
    assert speedup(model, model, 4, 7) > 0
    assert given == {(4, 7, 1)}


def test_tied_tensors_count_once() -> None:
    config = DistilBertConfig(vocab_size=30, dim=16, n_layers=1, n_heads=2, hidden_dim=16, max_position_embeddings=8)
    tied = DistilBertForMaskedLM(config)
    assert size_bytes(tied) == 4 * sum(p.numel() for p in tied.parameters())
    every = sum(p.numel() for _, p in tied.named_parameters(remove_duplicate=False))
    assert size_bytes(tied) < 4 * every


def test_size_counts_persistent_buffers_at_their_width() -> None:
    module = nn.Linear(4, 3, bias=False).half()
    module.register_buffer("kept", torch.zeros(5, dtype=torch.int64))
    module.register_buffer("passing", torch.zeros(7), persistent=False)
    assert size_bytes(module) == 2 * 12 + 8 * 5


def test_size_bytes_is_close_to_the_file(tmp_path: Path) -> None:
    model = tiny()
    model.save_pretrained(tmp_path)
    assert size_bytes(model) < (tmp_path / "model.safetensors").stat().st_size < size_bytes(model) + 20_000
