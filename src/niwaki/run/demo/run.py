"""The whole of Niwaki on one machine without a network: a real encoder and real text, fine-tuned, pruned, measured."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path

from niwaki.config import Demo, Finetune, Recipe, Structured
from niwaki.progress import library_manners
from niwaki.results import Result
from niwaki.run import demo
from niwaki.run.folder import output_folder
from niwaki.run.recipe import run_recipe


def run_demo(request: Demo, quiet: bool = False) -> Result:
    """Fill the folder of the request with `data/`, `finetuned/` and `half/`; returns the result of the last.

    The recipes in it name their files from that folder: `cd niwaki-demo && niwaki run half/recipe.yaml --overwrite`
    does the pruning again.

    Raises:
        RequestError: the encoder's package is missing, or the folder is there. WorkError: the work failed.
    """
    final = Path(request.out).resolve()
    with output_folder(request.out, request.overwrite) as folder, contextlib.chdir(folder):
        with library_manners(quiet):
            encoder, train, evaluation = demo.prepare(Path("data"), request.seed)

        def recipe(model: Path, stage: Finetune | Structured, out: str, keep_adapter: bool) -> Recipe:
            return Recipe(
                model=model.as_posix(),
                train_data=train.as_posix(),
                eval_data=evaluation.as_posix(),
                stages=(stage,),
                out=out,
                keep_adapter=keep_adapter,
                seed=request.seed,
                threads=request.threads,
                batch_size=demo.BATCH_SIZE,
                max_length=demo.MAX_LENGTH,
                calibration_samples=demo.CALIBRATION_SAMPLES,
                train_samples=demo.TRAIN_SAMPLES,
            )

        tune = Finetune(
            epochs=demo.EPOCHS, lora_rank=demo.LORA_RANK, learning_rate=demo.LEARNING_RATE, seed=request.seed
        )
        run_recipe(recipe(encoder, tune, "finetuned", keep_adapter=True), quiet)
        halve = Structured(flops=0.5, recover_epochs=1, seed=request.seed)
        result = run_recipe(recipe(Path("finetuned/adapter"), halve, "half", keep_adapter=False), quiet)
        # The base of the adapter will lie elsewhere than it does now.
        path = Path("finetuned/adapter/adapter_config.json")
        config = {**json.loads(path.read_text("utf-8")), "base_model_name_or_path": str(final / "finetuned")}
        path.write_text(json.dumps(config, indent=2, sort_keys=True), "utf-8")
        return result
