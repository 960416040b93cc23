"""Flags and sub-commands -> config objects; the only file that knows the terminal."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any

import click
import typer

from niwaki.errors import NiwakiError, RequestError

app = typer.Typer(add_completion=False, no_args_is_help=True, help="Make fine-tuned transformers smaller and faster.")
prune = typer.Typer(no_args_is_help=True, help="Prune a model to a budget.")
app.add_typer(prune, name="prune")

Model = Annotated[str, typer.Option(help="Hub id, Transformers folder, PEFT adapter folder, or Niwaki folder.")]
Train = Annotated[str, typer.Option(help="Calibration data: a local file or a Hub data set.")]
Eval = Annotated[str, typer.Option(help="Evaluation data: a local file or a Hub data set.")]
Out = Annotated[str, typer.Option(help="Folder to write.")]
Share = Annotated[float | None, typer.Option(help="Fraction to KEEP, in (0, 1].")]


@prune.command()
def structured(
    model: Model,
    train_data: Train,
    eval_data: Eval,
    out: Out,
    flops: Share = None,
    params: Share = None,
    head_score: str = "reconstruction",
    neuron_score: str = "reconstruction",
    allocation: str = "global",
    repair: str = "least-squares",
    steps: int = 1,
    round_to: int = 1,
    min_heads: int = 1,
    min_neurons: int = 1,
    base_model: str | None = None,
    text_columns: Annotated[list[str] | None, typer.Option(help="Once for each text column.")] = None,
    label_column: str | None = None,
    metric: str | None = None,
    seed: int = 0,
    device: str = "cpu",
    batch_size: int = 32,
    max_length: int = 128,
    calibration_samples: int = 2048,
    keep_adapter: bool = False,
    overwrite: bool = False,
    quiet: bool = False,
) -> None:
    """Remove whole attention heads and FFN neurons."""
    from niwaki.config import Recipe, Structured

    stage = Structured(
        flops=flops,
        params=params,
        head_score=head_score,
        neuron_score=neuron_score,
        allocation=allocation,
        repair=repair,
        steps=steps,
        round_to=round_to,
        min_heads=min_heads,
        min_neurons=min_neurons,
        seed=seed,
    )
    recipe = Recipe(
        model=model,
        train_data=train_data,
        eval_data=eval_data,
        out=out,
        stages=(stage,),
        base_model=base_model,
        text_columns=tuple(text_columns) if text_columns else None,
        label_column=label_column,
        metric=metric,
        seed=seed,
        device=device,
        batch_size=batch_size,
        max_length=max_length,
        calibration_samples=calibration_samples,
        keep_adapter=keep_adapter,
        overwrite=overwrite,
    )
    _finish(recipe, quiet)


@app.command()
def run(recipe: Path, overwrite: bool = False, quiet: bool = False) -> None:
    """Do what a recipe file asks."""
    import dataclasses

    from niwaki.config import read_recipe

    _finish(dataclasses.replace(read_recipe(recipe), overwrite=overwrite), quiet)


@app.command()
def report(folders: list[Path], out: Annotated[Path, typer.Option(help="Page to write.")]) -> None:
    """One page from the results of one or several folders."""
    from niwaki.report import page
    from niwaki.results import read_result

    for folder in folders:
        if not (folder / "result.json").is_file():
            raise RequestError(f"DIR must hold result.json, got {str(folder)!r}")
    out.write_text(page([read_result(folder / "result.json") for folder in folders]), encoding="utf-8")


def _finish(recipe: Any, quiet: bool) -> None:
    from niwaki.run import run_recipe

    result = run_recipe(recipe, quiet)
    if quiet:
        return
    for name, value in result.dense["quality"].items():
        typer.echo(f"{name}: {value:.4f} dense, {result.pruned['quality'][name]:.4f} pruned")
    for stage in result.stages:
        budget = stage["budget"]
        typer.echo(f"{budget['kind']}: {budget['achieved']:.4f} kept ({budget['requested']:g} asked)")
    for name, timing in result.latency.items():
        if isinstance(timing, dict):
            typer.echo(f"{name}: {timing['speedup']:.2f}x as fast as dense (measured)")
    typer.echo(f"written to {recipe.out}")


def main() -> None:
    """Run the command; exit 0 done, 2 wrong request, 3 failed work, 130 interrupted."""
    try:
        status = app(standalone_mode=False)
    except NiwakiError as error:
        _fail(str(error), error.exit_status)
    except click.exceptions.Abort:
        _fail("interrupted", 130)
    except KeyboardInterrupt:
        _fail("interrupted", 130)
    except Exception as error:
        # Typer may carry its own copy of click, so its usage errors are told by what they offer.
        if not hasattr(error, "format_message"):
            raise
        _fail(" ".join(error.format_message().split()), 2)  # type: ignore[attr-defined]
    else:
        sys.exit(status or 0)


def _fail(message: str, status: int) -> None:
    print(f"niwaki: {message}", file=sys.stderr)
    sys.exit(status)
