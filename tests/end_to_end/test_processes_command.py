"""`torchrun -m niwaki prune ...` and `accelerate launch -m niwaki prune ...`: one folder, that of a single process."""

from __future__ import annotations

import json
import subprocess
import sys

import torch
from safetensors.torch import load_file

LAUNCH = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "niwaki"]
ALONE = [sys.executable, "-m", "niwaki"]


def test_two_processes_write_what_one_writes(tmp_path, place):
    asked = ["prune", "structured", "--model", str(place / "base"), "--train-data", str(place / "train.tsv"),
             "--eval-data", str(place / "eval.tsv"), "--flops", "0.6", "--batch-size", "4"]  # fmt: skip
    done = {}
    for name, start in (("both", LAUNCH), ("alone", ALONE)):
        command = [*start, *asked, "--out", str(tmp_path / name)]
        done[name] = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
        assert done[name].returncode == 0, done[name].stderr
    assert done["both"].stdout.count("accuracy: ") == done["alone"].stdout.count("accuracy: ") == 1
    assert {path.name for path in tmp_path.iterdir()} == {"both", "alone"}
    both, alone = (json.loads((tmp_path / name / "result.json").read_text()) for name in done)
    assert [layer["units"] for layer in both["layers"] if layer["kind"] == "attention"] == [
        layer["units"] for layer in alone["layers"] if layer["kind"] == "attention"
    ]
    assert both["pruned"]["flops"] == alone["pruned"]["flops"]
    ours, theirs = (load_file(tmp_path / name / "model.safetensors") for name in done)
    for name, value in theirs.items():
        torch.testing.assert_close(ours[name], value, rtol=1e-4, atol=1e-4, msg=name)
