"""How the cost of structured pruning grows with calibration rows and with layers.

    python benchmarks/cost.py

Random models of MiniLM's shape on random tokens (rows of 16). `cost` is the seconds of pruning to half the FLOPs over
those of one forward-and-backward pass (as in training LoRA) over the same rows, `growth` its seconds over those of the
first line. Needs no files.
"""

from __future__ import annotations

import argparse
import copy

import torch
from transformers import DistilBertConfig, DistilBertForSequenceClassification

import niwaki
from common import RESULTS, environment, forward_and_backward, note
from niwaki.adapters import attach_lora

LENGTH = 16


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--rows", type=int, nargs="+", default=[512, 1024, 2048, 4096])
    parser.add_argument("--layers", type=int, nargs="+", default=[3, 6, 12])
    asked = parser.parse_args()
    found, out, first = environment(asked), RESULTS / "cost.json", None
    grid = [(rows, 6) for rows in asked.rows] + [(1024, layers) for layers in asked.layers if layers != 6]
    for rows, layers in grid:
        torch.manual_seed(0)
        shape = DistilBertConfig(vocab_size=1000, dim=384, n_layers=layers, n_heads=12, hidden_dim=1536)
        model = attach_lora(DistilBertForSequenceClassification(shape), 16).eval()
        ids = torch.randint(5, 1000, (rows, LENGTH))
        batches = [
            {"input_ids": part, "attention_mask": torch.ones_like(part), "labels": torch.zeros(len(part)).long()}
            for part in ids.split(32)
        ]
        one_pass = forward_and_backward(copy.deepcopy(model), batches)
        result = niwaki.prune_(model, niwaki.Structured(flops=0.5), batches)
        first = first or result.seconds
        run = {"rows": rows, "layers": layers, "cost": result.seconds / one_pass, "growth": result.seconds / first}
        note(found, run, out)


if __name__ == "__main__":
    main()
