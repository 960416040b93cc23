"""Perplexity of pruned language models before and after recovery, distilled from the dense model.

    python benchmarks/decoders.py --model M --train-data T --eval-data E --rows 32 --keep PRUNED
    python benchmarks/language_recovery.py --model M --pruned PRUNED/flops-0.7-default-0 --train-data T --eval-data E

What is pruned already is trained as `niwaki prune structured --recover-epochs` trains it once it is cut: towards what
the dense model says on the windows of the training text, all weights that are left, or LoRA with `--lora`. `gone` is
the part of the excess over the dense model, in nats a token, that recovery takes away. `minutes` are those it took, of
`threads`, and belong to the machine; a run that is in the JSON already is not made again.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any

import niwaki
from common import RESULTS, is_done, note, resumed
from niwaki.checkpoint import load_tokenizer
from niwaki.config import Structured
from niwaki.data import Batches, sample
from niwaki.data.running_text import pack
from niwaki.evaluate import perplexity
from niwaki.train.recover import recover_


def main() -> None:
    parser = argparse.ArgumentParser()
    for name in ("model", "train-data", "eval-data"):
        parser.add_argument(f"--{name}", required=True)
    parser.add_argument("--pruned", nargs="+", required=True, help="folders that decoders.py --keep wrote")
    parser.add_argument("--rows", type=int, default=32, help="windows it was calibrated on")
    parser.add_argument("--context", type=int, default=512)
    parser.add_argument("--batch", type=int, default=4, help="windows a step")
    parser.add_argument("--epochs", type=int, default=1)
    parser.add_argument("--rate", type=float, help="the default of the command by default")
    parser.add_argument("--lora", action="store_true")
    parser.add_argument("--mixed-precision", default="no", help="arithmetic of the passes, as the command has it")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--keep", type=Path, help="write the recovered models into folders of this one")
    parser.add_argument("--out", type=Path, default=RESULTS / "language_recovery.json")
    asked = parser.parse_args()

    tokenizer = load_tokenizer(asked.model)
    train, test = (
        pack(Path(text).read_text("utf-8"), tokenizer, asked.context)[0] for text in (asked.train_data, asked.eval_data)
    )
    tests = list(Batches(test, tokenizer, 16))
    config = Structured(
        flops=0.5,  # nothing is cut here
        recover_epochs=asked.epochs,
        recover_full=not asked.lora,
        recover_learning_rate=asked.rate,
        mixed_precision=asked.mixed_precision,
        seed=asked.seed,
    )
    found = resumed(asked)
    if "dense" not in found:
        found["dense"] = perplexity(niwaki.load(asked.model), tests)
    for folder in asked.pruned:
        run: dict[str, Any] = {"model": Path(folder).name, "rule": "LoRA" if asked.lora else "all weights"}
        run |= {"windows": len(train), "epochs": asked.epochs, "rate": config.recover_rate, "seed": asked.seed}
        if asked.mixed_precision != "no":
            run["arithmetic"] = asked.mixed_precision
        if is_done(found, run):
            continue
        model = niwaki.load(folder)
        before = perplexity(model, tests)
        calibration = list(Batches(sample(train, asked.rows, asked.seed), tokenizer, asked.batch))
        begun = time.monotonic()
        recover_(model, niwaki.load(asked.model), Batches(train, tokenizer, asked.batch), config, calibration)
        minutes = (time.monotonic() - begun) / 60
        if asked.keep:
            niwaki.save(model, asked.keep / Path(folder).name, tokenizer, overwrite=True)
        after = perplexity(model, tests)
        excess = [quality["nats_per_token"] - found["dense"]["nats_per_token"] for quality in (before, after)]
        run |= {"before": before["perplexity"], "after": after["perplexity"], "excess": excess}
        note(found, run | {"gone": 1 - excess[1] / excess[0], "minutes": minutes}, asked.out)


if __name__ == "__main__":
    main()
