"""Speed of a model pruned to half its FLOPs, and the latency budget; dense and pruned timed in turn.

    python benchmarks/speed.py --model ADAPTER --train-data train.tsv --eval-data dev.tsv

Every speed-up is the median of the ratios of pairs in one run. `onnx` times both models' ONNX exports under
onnxruntime with as many threads as PyTorch has.
"""

from __future__ import annotations

import copy
import tempfile
from functools import partial
from pathlib import Path
from typing import Any

import onnxruntime
import torch

import niwaki
from common import Bench, arguments, environment, note
from niwaki.adapters import merge_
from niwaki.evaluate import model_latency, paired, random_inputs
from niwaki.export import export_onnx

SHAPES = ((32, 64), (1, 16))
"""Batch, length."""


def main() -> None:
    asked = arguments("speed").parse_args()
    bench = Bench.of(asked)
    found = {**environment(asked), "dense": bench.quality(bench.model())}
    dense = merge_(bench.model())
    for seed in asked.seeds:
        calibration = list(bench.batches(asked.rows, seed))
        for budget in ({"flops": 0.5}, {"latency": 0.5}):
            model = bench.model()
            result = niwaki.prune_(model, niwaki.Structured(**budget, seed=seed), calibration)
            pruned = merge_(model)
            run: dict[str, Any] = {"budget": budget, "seed": seed, "achieved": result.achieved}
            run |= {"quality": bench.quality(copy.deepcopy(pruned)), "kept": {s.name: s.kept for s in result.layers}}
            run["torch"] = {f"{rows}x{length}": _torch(dense, pruned, rows, length) for rows, length in SHAPES}
            if "flops" in budget:
                run["onnx"] = _onnx(dense, pruned, bench.tokenizer)
            note(found, run, asked.out)


def _torch(dense: Any, pruned: Any, rows: int, length: int) -> float:
    rounds = 25 if rows > 1 else 300
    return model_latency(dense, pruned, length, (rows,), rounds)[f"batch_{rows}"]["speedup"]


def _onnx(dense: Any, pruned: Any, tokenizer: Any) -> dict[str, float]:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    # Threads that spin while they wait would slow the other session's turn.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    with tempfile.TemporaryDirectory() as folder:
        sessions = []
        for name, model in (("dense", dense), ("pruned", pruned)):
            file = Path(folder) / f"{name}.onnx"
            export_onnx(model, file, tokenizer)
            sessions.append(onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"]))
        speedups = {}
        for rows, length in SHAPES:
            inputs = {name: value.numpy() for name, value in random_inputs(dense, rows, length).items()}
            calls = [partial(session.run, ["logits"], inputs) for session in sessions]
            speedups[f"{rows}x{length}"] = paired(*calls, rounds=25 if rows > 1 else 300).speedup
    return speedups


if __name__ == "__main__":
    main()
