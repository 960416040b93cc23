"""A language model and what was pruned of it, in llama.cpp: perplexity, greedy text, bytes, and tokens a second.

    niwaki prune structured --model M --train-data T --eval-data E --flops 0.5 --round-to 32 --out HALF
    python benchmarks/language_engines.py --model M --pruned "flops 0.5=HALF" --eval-data E

Everything is measured beside PyTorch's figures of the same model on the same windows. The models of one rounding are
timed in turn, `batch_1` at `--length` tokens at once (prefill) and `decode` token by token.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import torch

import niwaki
from common import RESULTS, environment, write
from niwaki.adapters import merge_
from niwaki.checkpoint import load_tokenizer
from niwaki.data import Batches, read_table
from niwaki.evaluate import greedy, perplexity, time_models
from niwaki.export import in_llama_cpp
from niwaki.run.rows import Cut, cut_table


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", required=True, help="the dense one")
    parser.add_argument("--pruned", required=True, nargs="+", help="NAME=FOLDER that niwaki prune wrote")
    parser.add_argument("--eval-data", required=True)
    parser.add_argument("--windows", type=int, default=4, help="of --context tokens each, for the perplexity")
    parser.add_argument("--context", type=int, default=512)
    parser.add_argument("--length", type=int, default=128)
    parser.add_argument("--quantize", nargs="+", default=["none", "f16", "q8_0", "q4_0"])
    parser.add_argument("--tokens", type=int, default=64, help="of greedy text that is compared")
    parser.add_argument("--out", type=Path, default=RESULTS / "language_engines.json")
    asked = parser.parse_args()
    models, tokenizer = {"dense": merge_(niwaki.load(asked.model))}, load_tokenizer(asked.model)
    models |= {name: niwaki.load(folder) for name, folder in (word.split("=", 1) for word in asked.pruned)}
    table = read_table(asked.eval_data, split="validation")
    rows = cut_table(table, models["dense"], tokenizer, Cut(asked.context), "validation").rows[: asked.windows]
    tests, start = Batches(rows, tokenizer, 1), torch.tensor(rows[0]["input_ids"][: asked.tokens])
    found: dict[str, Any] = {**environment(asked), "models": {}, "runs": []}
    for name, model in models.items():
        heads = [layer.self_attn.o_proj.in_features for layer in model.model.layers]
        found["models"][name] = {"perplexity": perplexity(model, tests)["perplexity"], "attention columns": heads}
        found["models"][name]["text"] = greedy(model, start, asked.tokens).tolist()
        print(name, found["models"][name]["perplexity"], flush=True)
    for quantize in asked.quantize:
        there = {name: in_llama_cpp(model, tokenizer, quantize) for name, model in models.items()}
        speeds = time_models([placed.model for placed in there.values()], asked.length, (1,), 5).each()
        for (name, placed), speed in zip(there.items(), speeds, strict=True):
            text = greedy(placed.model, start, asked.tokens).tolist()
            pairs = list(zip(text, found["models"][name]["text"], strict=True))
            run = {
                "quantize": quantize,
                "model": name,
                "perplexity": perplexity(placed.model, tests)["perplexity"],
                "same tokens": next((i for i, (a, b) in enumerate(pairs) if a != b), len(pairs)),
                "bytes": placed.size_bytes,
                "latency": speed,
            }
            found["runs"].append(run)
            print(json.dumps(run), flush=True)
        write(asked.out, found)


if __name__ == "__main__":
    main()
