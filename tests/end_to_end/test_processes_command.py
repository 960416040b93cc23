"""`torchrun -m niwaki prune ...` and `accelerate launch -m niwaki prune ...`: one folder, that of a single process."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys

import pytest
import torch
from accelerate import PartialState
from safetensors.torch import load

import niwaki.processes
import niwaki.run.inputs
from helpers_command import contents, free_port, launched_as
from niwaki.cli import main
from niwaki.train.step import Stepper

LAUNCH = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "niwaki"]
ACCELERATE = [sys.executable, "-m", "accelerate.commands.launch", "--cpu", "--num_processes", "2"]
ACCELERATE += ["--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no", "-m", "niwaki"]
ALONE = [sys.executable, "-m", "niwaki"]


def asked(place):
    return ["prune", "structured", "--model", str(place / "base"), "--train-data", str(place / "train.tsv"),
            "--eval-data", str(place / "eval.tsv"), "--flops", "0.6", "--batch-size", "4"]  # fmt: skip


def test_two_processes_write_what_one_writes(tmp_path, place):
    done = {}
    for name, start in (("both", LAUNCH), ("accelerated", ACCELERATE), ("alone", ALONE)):
        command = [*start, *asked(place), "--out", str(tmp_path / name)]
        done[name] = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
        assert done[name].returncode == 0, done[name].stderr
    assert {told.stdout.count("accuracy: ") for told in done.values()} == {1}
    assert {path.name for path in tmp_path.iterdir()} == set(done)
    weights = {name: (tmp_path / name / "model.safetensors").read_bytes() for name in done}
    assert weights["accelerated"] == weights["both"]
    both, alone = (json.loads((tmp_path / name / "result.json").read_text()) for name in ("both", "alone"))
    assert [layer["units"] for layer in both["layers"] if layer["kind"] == "attention"] == [
        layer["units"] for layer in alone["layers"] if layer["kind"] == "attention"
    ]
    for side in ("dense", "pruned"):
        assert both[side]["flops"] == alone[side]["flops"]
        assert both[side]["quality"] == alone[side]["quality"]
    ours, theirs = (load(weights[name]) for name in ("both", "alone"))
    for name, value in theirs.items():
        torch.testing.assert_close(ours[name], value, rtol=1e-4, atol=1e-4, msg=name)


def poisoned():
    """A weight that is not finite, in this process alone."""
    read = niwaki.run.inputs.load

    def loaded(*args):
        model = read(*args)
        model.distilbert.transformer.layer[1].ffn.lin1.weight.data[0, 0] = torch.nan
        return model

    niwaki.run.inputs.load = loaded


def killed():
    """As by the system, in the middle of the work."""
    niwaki.processes.add_up = niwaki.observe.statistics.add_up = lambda values: os.kill(os.getpid(), signal.SIGKILL)


def start(rank, port, words, said, harm):
    """One of two processes, forked: starting Python takes seconds. `harm` is done to the second."""
    child = os.fork()
    if child:
        return child
    status = 1
    try:
        for descriptor in (1, 2):
            os.dup2(os.open(said, os.O_WRONLY | os.O_CREAT | os.O_APPEND), descriptor)
        sys.stdout, sys.stderr = (os.fdopen(descriptor, "w") for descriptor in (1, 2))
        os.environ |= launched_as(rank, 2, port) | {"OMP_NUM_THREADS": "1"}
        torch.set_num_threads(1)
        PartialState._reset_state()  # of another test's Trainer
        if rank:
            harm()
        sys.argv = ["niwaki", *words]
        main()
    except SystemExit as stopped:
        status = int(stopped.code or 0)
    finally:
        sys.stderr.flush()
        os._exit(status)


def statuses_of_both(words, said, harm=lambda: None):
    """How two processes end that run a command together; what they say goes into the file `said`."""
    port = free_port()
    children = [start(rank, port, words, said, harm) for rank in (0, 1)]
    return tuple(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children)


@pytest.mark.parametrize(
    ("harm", "statuses", "line"),
    [
        (poisoned, (3, 3), "niwaki: evaluation: the model's outputs are not finite; "),
        (killed, (3, -signal.SIGKILL), "niwaki: another process of this run ended (out of memory? killed?): "),
    ],
)
def test_where_one_process_fails_all_end_with_one_line(tmp_path, place, harm, statuses, line):
    said = tmp_path / "said"
    words = [*asked(place), "--quiet", "--out", str(tmp_path / "out")]
    assert statuses_of_both(words, said, harm) == statuses
    lines = [one for one in said.read_text().splitlines() if one.startswith("niwaki: ")]
    assert len(lines) == 1, lines
    assert lines[0].startswith(line), lines
    assert sorted(path.name for path in tmp_path.iterdir()) == ["said"]


def killed_at_step(last):
    """As by the system, in so many-th step of all trainings."""

    def harm():
        real, steps = Stepper.step, []

        def step(*given):
            steps.append(1)
            if len(steps) == last:
                os.kill(os.getpid(), signal.SIGKILL)
            return real(*given)

        Stepper.step = step

    return harm


@pytest.mark.parametrize(
    ("stages", "step", "lines"),
    [
        (
            [{"kind": "finetune", "lora_rank": 4}, {"kind": "layer-adaptive", "sparsity": 0.6, "recover_epochs": 1}],
            15,
            ["going on after stage 1 of 2", "training: going on after step "],
        ),
        (
            [{"kind": "dynamic", "sparsity": 0.6, "interval": 1, "window": 1, "reach": 0.5, "stop": 0.9}],
            5,
            ["training: going on after step 4, "],
        ),
    ],
    ids=["solves and a recovery", "moving masks"],
)
def test_two_processes_go_on_from_what_is_kept(tmp_path, place, stages, step, lines):
    out, hidden = tmp_path / "out", tmp_path / ".out.niwaki"
    recipe = {"model": "base", "train_data": "train.tsv", "eval_data": "eval.tsv", "batch_size": 4, "stages": stages}
    plain = {name: str(place / value) if isinstance(value, str) else value for name, value in recipe.items()}
    (tmp_path / "recipe.yaml").write_text(json.dumps({**plain, "out": str(out)}))
    words, said = ["run", str(tmp_path / "recipe.yaml")], tmp_path / "said"
    assert statuses_of_both(words, said) == (0, 0), said.read_text()
    whole = contents(out)
    shutil.rmtree(out)
    assert statuses_of_both(words, said, killed_at_step(step)) == (3, -signal.SIGKILL)
    assert not out.exists()
    kept = [path for path in (hidden / "kept").rglob("*") if path.is_file()]
    assert kept
    said.unlink()
    assert statuses_of_both(words, said) == (0, 0), said.read_text()
    assert contents(out) == whole
    assert not hidden.exists()
    assert [line for line in lines if said.read_text().count(line) != 1] == []
