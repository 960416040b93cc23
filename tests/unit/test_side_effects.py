"""Nothing of the process is changed by a verb: neither when it returns nor when it fails."""

from __future__ import annotations

import logging
import os
import random
import signal
import sys
import types
import warnings
from pathlib import Path

import datasets  # noqa: F401 - what libraries do as they are imported, here and sklearn, is theirs
import numpy as np
import pytest
import sklearn.metrics  # noqa: F401
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from huggingface_hub.utils import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars
from transformers.utils import logging as transformers_logging

import niwaki
from helpers_text import letter_tokenizer
from niwaki.anatomy import layers_of
from niwaki.checkpoint.library import quiet
from niwaki.errors import WorkError
from niwaki.evaluate import harness_scores, log_likelihoods, model_latency, perplexity, quality
from niwaki.evaluate.latency_table import latency_table
from niwaki.export import EXPORTS
from tiny import batches, tiny, with_lora

LOGGERS = ("", "transformers", "huggingface_hub", "datasets", "peft", "accelerate", "lm_eval", "torch", "torch.onnx")


def state() -> dict[str, object]:
    """What a verb could leave changed in the process."""
    return {
        "log levels": {name: logging.getLogger(name).level for name in LOGGERS},
        "log handlers": {name: list(logging.getLogger(name).handlers) for name in LOGGERS},
        "progress bars": (transformers_logging.is_progress_bar_enabled(), are_progress_bars_disabled()),
        "environment": dict(os.environ),
        "warnings": (list(warnings.filters), warnings.showwarning),
        "threads": (torch.get_num_threads(), torch.get_num_interop_threads()),
        "gradients": (torch.is_grad_enabled(), torch.is_inference_mode_enabled()),
        "modes": torch._C._len_torch_function_stack(),
        "dtype": torch.get_default_dtype(),
        "random states": (torch.get_rng_state().tolist(), random.getstate(), np.random.get_state()[1].tolist()),
        "determinism": torch.are_deterministic_algorithms_enabled(),
        "streams": (sys.stdout, sys.stderr, sys.argv),
        "folder": Path.cwd(),
        "signals": signal.getsignal(signal.SIGINT),
    }


def assert_unchanged(before: dict[str, object]) -> None:
    after = state()
    assert [name for name in before if before[name] != after[name]] == []


def pruned(config):
    return lambda model, _folder: niwaki.prune_(model, config, DATA)


def saved_and_loaded(model, folder):
    niwaki.save(model, folder / "saved")
    niwaki.load(folder / "saved")


DATA, TEXT = batches(2), batches(2, family="llama")
VERBS = {
    "prune structured": (tiny, pruned(niwaki.Structured(flops=0.5, recover_epochs=1))),
    "prune an adapter": (lambda: with_lora(tiny()), pruned(niwaki.Structured(flops=0.5, recover_epochs=1))),
    "prune layer-adaptive": (tiny, pruned(niwaki.LayerAdaptive(sparsity=0.5, recover_epochs=1))),
    "score units": (tiny, lambda model, _: niwaki.score(model, DATA)),
    "score weights": (tiny, lambda model, _: niwaki.score(model, DATA, niwaki.LayerAdaptive(sparsity=0.5))),
    "finetune": (tiny, lambda model, _: niwaki.finetune(model, niwaki.Finetune(epochs=1), DATA)),
    "quality": (tiny, lambda model, _: quality(model, DATA)),
    "perplexity": (lambda: tiny("llama"), lambda model, _: perplexity(model, TEXT)),
    "questions": (lambda: tiny("llama"), lambda model, _: log_likelihoods(model, [([1], [5])], 1)),
    "latency": (tiny, lambda model, _: model_latency(model, model, 8, (1,), rounds=1)),
    "latency table": (tiny, lambda model, _: latency_table(model, 1, 8)),
}
"""What runs a model: how it is made, and the verb."""
MORE = {
    "merge": (lambda: with_lora(tiny()), lambda model, _: niwaki.merge_(model)),
    "save and load": (tiny, saved_and_loaded),
    "export": (tiny, lambda model, at: EXPORTS["merged"](model, str(at / "merged"), letter_tokenizer(), False)),
}


@pytest.mark.parametrize("verb", VERBS | MORE)
def test_a_verb_leaves_the_process_as_it_was(verb, tmp_path, monkeypatch):
    monkeypatch.setenv("NIWAKI_CACHE", str(tmp_path / "cache"))
    make, act = (VERBS | MORE)[verb]
    model = make()
    before = state()
    act(model, tmp_path)
    assert_unchanged(before)


@pytest.mark.parametrize("verb", VERBS)
def test_so_does_one_that_is_interrupted(verb, tmp_path, monkeypatch):
    monkeypatch.setenv("NIWAKI_CACHE", str(tmp_path / "cache"))
    make, act = VERBS[verb]
    model = make()

    def stop(*_):
        raise KeyboardInterrupt

    layers_of(model)[1].register_forward_pre_hook(stop)
    before = state()
    with pytest.raises(KeyboardInterrupt):
        act(model, tmp_path)
    assert_unchanged(before)


@pytest.mark.parametrize("ours", [True, False])
@pytest.mark.parametrize("hub", [True, False])
@pytest.mark.parametrize("level", [logging.NOTSET, logging.INFO])
def test_quiet_gives_back_what_was_set(ours, hub, level, monkeypatch):
    logger = logging.getLogger("transformers")
    before, kept = state(), logger.level
    try:
        (transformers_logging.enable_progress_bar if ours else transformers_logging.disable_progress_bar)()
        (enable_progress_bars if hub else disable_progress_bars)()
        logger.setLevel(level)
        for progress in (True, False):
            within = state()
            with pytest.raises(WorkError), quiet(progress):
                raise WorkError("")
            assert_unchanged(within)
    finally:
        transformers_logging.enable_progress_bar()
        logger.setLevel(kept)
    assert_unchanged(before)


def harness(monkeypatch, evaluate):
    """A package in the place of lm-evaluation-harness, whose evaluation this is."""

    class Wrapped:
        def __init__(self, **options):
            self.options = options
            options["tokenizer"].pad_token = "a"
            options["tokenizer"].padding_side = "left"
            options["pretrained"].eval()

    found = {}
    for name, contents in {
        "lm_eval": {"__version__": "0"},
        "lm_eval.evaluator": {"simple_evaluate": evaluate, "get_git_commit_hash": lambda: "a commit"},
        "lm_eval.models": {},
        "lm_eval.models.huggingface": {"HFLM": Wrapped},
    }.items():
        found[name] = types.ModuleType(name)
        vars(found[name]).update(contents)
        monkeypatch.setitem(sys.modules, name, found[name])
    return found["lm_eval.evaluator"]


@pytest.mark.parametrize("failing", [None, ValueError, KeyboardInterrupt])
def test_the_harness_is_left_as_it_was(failing, monkeypatch):
    def evaluate(**_options):
        assert evaluator.get_git_commit_hash() is None
        if failing:
            raise failing("no data")
        rows = {"versions": {}, "n-samples": {"t": {"effective": 3}}, "n-shot": {}, "configs": {"t": {}}}
        return {**rows, "results": {"t": {"acc,none": 0.5}}}

    evaluator = harness(monkeypatch, evaluate)
    kept = dict(vars(evaluator))
    model, tokenizer = tiny("llama").train(), letter_tokenizer()
    pads = tokenizer.pad_token, tokenizer.padding_side
    before = state()
    if failing is None:
        assert harness_scores(model, tokenizer, None, "t", 2)[0]["t/acc"].value == 0.5
    else:
        with pytest.raises(WorkError if failing is ValueError else failing):
            harness_scores(model, tokenizer, None, "t", 2)
    assert_unchanged(before)
    assert vars(evaluator) == kept
    assert model.training
    assert (tokenizer.pad_token, tokenizer.padding_side) == pads


def trained(model, data):
    return niwaki.finetune(model, niwaki.Finetune(), data)[0]


@pytest.mark.parametrize("act", [
    lambda model, data: niwaki.prune_(model, niwaki.Structured(flops=0.5), data),
    lambda model, data: niwaki.prune_(model, niwaki.LayerAdaptive(sparsity=0.5), data),
    lambda model, data: niwaki.prune_(model, niwaki.DynamicSparsityTraining(sparsity=0.5, interval=1, epochs=4), data),
    trained,
], ids=["structured", "layer-adaptive", "dynamic", "finetune"])  # fmt: skip
@pytest.mark.parametrize("around", ["autocast", "compiled", "prepared", "prepared twice"])
def test_what_the_caller_has_open_around_a_verb_changes_no_number(act, around):
    data, plain, other = batches(2), tiny(), tiny()
    act(plain, data)
    for _ in range({"prepared": 1, "prepared twice": 2}.get(around, 0)):
        AcceleratorState._reset_state()  # of another test's Trainer
        Accelerator(mixed_precision="bf16", cpu=True).prepare(other)  # as a Trainer does, and leaves it
        AcceleratorState._reset_state()
    forward = vars(other).get("forward")
    # What `layer.compile()` leaves, without waiting for a compiler: a call that runs no hooks that are added later.
    for layer in layers_of(other) if around == "compiled" else ():
        layer._compiled_call_impl = layer.forward
    compiled = [layer._compiled_call_impl for layer in layers_of(other)]
    with torch.autocast("cpu", torch.bfloat16, enabled=around == "autocast"):
        act(other, data)
    assert [layer._compiled_call_impl for layer in layers_of(other)] == compiled
    assert vars(other).get("forward") is forward
    wanted = plain.state_dict()
    assert all(torch.equal(value, wanted[name]) for name, value in other.state_dict().items())


@pytest.mark.parametrize("problem", [None, "single_label_classification"])
@pytest.mark.parametrize(
    "verb",
    [
        lambda model: niwaki.plan(model, niwaki.Structured(flops=0.5, head_score="taylor"), DATA),
        lambda model: niwaki.plan(model, niwaki.LayerAdaptive(sparsity=0.5), DATA),
        lambda model: niwaki.score(model, DATA),
        lambda model: niwaki.prune_(model, niwaki.Structured(flops=0.5), DATA),
    ],
    ids=["plan of units", "plan of weights", "score", "prune"],
)
def test_what_looks_at_losses_leaves_the_config_as_it_was(verb, problem):
    """Transformers notes in it what labels are when it takes a loss for the first time."""
    model = tiny()
    model.config.problem_type = problem
    verb(model)
    assert model.config.problem_type == problem
