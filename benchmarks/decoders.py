"""Perplexity of a pruned language model by budget, beside other rules in the same code; writes JSON after each run.

    python benchmarks/decoders.py --model stories260k --train-data stories.txt --context 512

Without `--eval-data` the text is cut in two at a blank line: the first half calibrates, the second is measured. Windows
have no BOS; `--rows` draws so many of them, by seed, to calibrate on. No run is trained. `excess` is the rise of the
negative log-likelihood per token over the dense model's, in nats; `train` is the perplexity on the calibration windows,
by which settings may be chosen. With `--timed` (on a machine that does nothing else) `cost` is the seconds of pruning
over those of one forward-and-backward pass over the calibration windows, timed in the same run.
"""

from __future__ import annotations

import argparse
import itertools
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

import niwaki
from common import RESULTS, forward_and_backward, is_done, note, resumed
from niwaki.adapters import attach_lora, remove_masks_
from niwaki.anatomy import layers_of
from niwaki.checkpoint import load_tokenizer
from niwaki.config import LayerAdaptive, Structured
from niwaki.data import Batches, sample
from niwaki.data.running_text import pack
from niwaki.evaluate import perplexity

STRUCTURED: dict[str, dict[str, Any]] = {
    "default": {},
    "nothing learned": {"reconstruct": "none"},
    "random": {"head_score": "random", "neuron_score": "random", "repair": "none"},
    "taylor": {"head_score": "taylor", "neuron_score": "taylor", "repair": "none"},
    "flap": {"head_score": "activation-variance", "neuron_score": "activation-variance", "repair": "none"},
    "whole layers": {"head_score": "activation-variance", "neuron_score": "activation-variance", "repair": "none"},
    "uniform": {"allocation": "uniform", "head_unit": "group"},
    "query heads": {"head_unit": "query-head"},
    "groups": {"head_unit": "group"},
}
"""LLM-Pruner's rule is `taylor`, FLAP's the fluctuation of what output projections see, ShortGPT's whole layers."""
SPARSE: dict[str, dict[str, Any]] = {
    "default": {},
    "nothing learned": {"reconstruct": "none"},
    "random": {"weight_score": "random", "allocation": "uniform", "repair": "none"},
    "magnitude": {"weight_score": "magnitude", "allocation": "uniform", "repair": "none"},
    "wanda": {"weight_score": "wanda", "allocation": "uniform", "repair": "none"},
    "sparsegpt": {"weight_score": "sparsegpt", "allocation": "uniform", "repair": "none"},
}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", required=True)
    parser.add_argument("--train-data", required=True)
    parser.add_argument("--eval-data", help="another text to measure on; the second half of the first by default")
    parser.add_argument("--rows", type=int, help="calibration windows; all by default")
    parser.add_argument("--context", type=int, default=512)
    parser.add_argument("--flops", type=float, nargs="*", default=[0.9, 0.8, 0.7, 0.5])
    parser.add_argument("--sparsity", type=float, nargs="*", default=[0.5, 0.6, 0.7])
    parser.add_argument("--patterns", nargs="*", default=[], help="n:m patterns, like 2:4")
    parser.add_argument("--rules", nargs="*", default=list(dict.fromkeys([*STRUCTURED, *SPARSE])))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--timed", action="store_true")
    parser.add_argument("--keep", type=Path, help="write the pruned models into folders of this one, too")
    parser.add_argument("--out", type=Path, default=RESULTS / "decoders.json")
    asked = parser.parse_args()

    tokenizer = load_tokenizer(asked.model)
    (train, protocol), (test, _) = (pack(text, tokenizer, asked.context) for text in texts(asked))
    tests = list(Batches(test, tokenizer, 16))
    dense = perplexity(niwaki.load(asked.model), tests)
    found = {**resumed(asked), "protocol": protocol.to_dict(), "dense": dense}
    asked_for = {"flops": asked.flops, "sparsity": asked.sparsity, "pattern": asked.patterns}
    budgets = [(kind, share) for kind, shares in asked_for.items() for share in shares]
    for seed in asked.seeds:
        calibration = list(Batches(sample(train, asked.rows or len(train), seed), tokenizer, 16))
        one_pass = forward_and_backward(attach_lora(niwaki.load(asked.model), 16), calibration) if asked.timed else 1.0
        for (kind, share), rule in itertools.product(budgets, asked.rules):
            rules = STRUCTURED if kind == "flops" else SPARSE
            run: dict[str, Any] = {"kind": kind, "share": share, "rule": rule, "seed": seed}
            if rule not in rules or is_done(found, run):
                continue
            options = {**rules[rule], kind: share, "seed": seed}
            if kind == "pattern":  # whose zeros are its budget
                kept, among = map(int, share.split(":"))
                options["sparsity"] = 1 - kept / among
            config = Structured(**options) if kind == "flops" else LayerAdaptive(**options)
            torch.manual_seed(seed)
            model = niwaki.load(asked.model)
            if rule == "whole layers":  # as many as the budget lets go
                config = replace(config, drop_layers=round(len(layers_of(model)) * (1 - share)))
            result = niwaki.prune_(model, config, calibration)
            remove_masks_(model)
            if asked.keep:
                niwaki.save(model, asked.keep / f"{kind}-{share}-{rule}-{seed}", tokenizer, overwrite=True)
            quality = perplexity(model, tests)
            run |= {
                "achieved": result.achieved,
                "perplexity": quality["perplexity"],
                "excess": quality["nats_per_token"] - dense["nats_per_token"],
                "train": math.exp(perplexity(model, calibration)["nats_per_token"]),
                "kept": {site.name: site.kept for site in result.layers},
            }
            if asked.timed:
                run["cost"] = result.seconds / one_pass
            note(found, run, asked.out)


def texts(asked: argparse.Namespace) -> tuple[str, str]:
    """What calibrates, and what is measured."""
    text = Path(asked.train_data).read_text("utf-8")
    if asked.eval_data:
        return text, Path(asked.eval_data).read_text("utf-8")
    middle = text.index("\n\n", len(text) // 2) + 2
    return text[:middle], text[middle:]


if __name__ == "__main__":
    main()
