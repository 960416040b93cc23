"""Flags and sub-commands -> config objects; the only file that knows the terminal.

Every flag is a field of a config class: its name, default and help stand there and nowhere else.
"""

from __future__ import annotations

import dataclasses
import inspect
import json
import os
import re
import shlex
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, get_args, get_type_hints

import click
import typer
from typer.core import TyperGroup

import niwaki
from niwaki.config import (
    Demo,
    DynamicSparsityTraining,
    Evaluation,
    Export,
    Finetune,
    LayerAdaptive,
    Planning,
    Recipe,
    Scoring,
    Structured,
    Vocabulary,
    read_recipe,
)
from niwaki.config.fields import OUTPUT, PANELS
from niwaki.config.patterns import NByM, parse_pattern
from niwaki.config.structured import BUDGETS
from niwaki.config.sweep import Sweep, SweepOptions, methods_of, read_sweep
from niwaki.config.text import place_named
from niwaki.errors import NiwakiError, limit_of, what
from niwaki.interrupt import Stopped, raise_again
from niwaki.numerics.allocator import give_back
from niwaki.processes import is_first, last_words

app = typer.Typer(no_args_is_help=True, help="Make fine-tuned transformers smaller and faster.")
prune = typer.Typer(no_args_is_help=True, help="Prune a model to a budget.")
app.add_typer(prune, name="prune")
plan = typer.Typer(no_args_is_help=True, help="Say what pruning would remove, for any budget; prune --plan does it.")
app.add_typer(plan, name="plan")


class _OrFile(TyperGroup):
    """Sub-commands, or the name of a file in their place."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Options may come before the file, as they may after it."""
        file = any(Path(word).suffix in (".yaml", ".yml", ".json") for word in args) and args[0] not in self.commands
        return super().parse_args(ctx, ["file", *args] if file else args)


sweep = typer.Typer(cls=_OrFile, no_args_is_help=True, help="Prune to many budgets; or a file: niwaki sweep FILE.yaml.")
app.add_typer(sweep, name="sweep")

_HELP = {field.name: field.metadata["help"] for field in dataclasses.fields(Recipe)}
Quiet = Annotated[bool, typer.Option("--quiet", help="Say nothing but errors.", rich_help_panel=OUTPUT)]
Json = Annotated[
    bool, typer.Option("--json", help="Print the result as JSON, and nothing else.", rich_help_panel=OUTPUT)
]
Names = tuple[str, ...]
Overwrite = Annotated[bool, typer.Option("--overwrite", help=_HELP["overwrite"], rich_help_panel=OUTPUT)]
Resume = Annotated[bool, typer.Option("--resume/--restart", help=_HELP["resume"], rich_help_panel=OUTPUT)]
_LONGEST = 1000
"""Characters of an error that are shown."""
SHARED = ("prune", "finetune", "run", "eval", "score", "plan")
"""Commands whose work several processes share; of any other the first process does all."""
LISTS = ("--text-columns", "--label-names", "--keep-layers", "--spared")
"""Flags that take several words: `--text-columns a b`."""
SEARCHED = ("plan", "keep_quality", "tries")
"""Fields of a stage that say where its budget or its plan is from."""
SWEPT = ("flops", "params", "latency", "sparsity", "seed")
"""Fields that take several values in a sweep."""


def _version(asked: bool) -> None:
    if asked:
        typer.echo(f"niwaki {niwaki.__version__}")
        raise typer.Exit


@app.callback()
def _niwaki(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    pass


def _flags(
    *configs: Any, measures: bool = True, without: Names = (), several: Names = ()
) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Give a command a flag for every field of these config classes, --quiet and, if it `measures`, --json.

    Fields of these names are left out, or take several values.
    """
    parameters: dict[str, inspect.Parameter] = {}
    panels: dict[str, str] = {}
    for config in configs:
        hints = get_type_hints(config)
        for field in dataclasses.fields(config):
            if field.name in ("stages", *without):
                continue
            hint, names = hints[field.name], ()
            default = inspect.Parameter.empty if field.default is dataclasses.MISSING else field.default
            if hint is bool:
                off = field.metadata["off"]
                names = (f"--{field.name.replace('_', '-')}{f'/--{off}' if off else ''}",)
            elif any(getattr(kind, "__origin__", None) is tuple for kind in get_args(hint)):
                hint = list[str] | None
            elif field.name in several:
                hint = list[int] | None if hint is int else list[float] | None
                default = None
            elif {float, str} <= set(get_args(hint)):  # a number or a name
                hint = str | None
            panels[field.name] = panel = field.metadata["panel"]
            annotation = Annotated[
                hint, typer.Option(*names, help=field.metadata["help"], rich_help_panel=panel or None)
            ]
            parameters[field.name] = inspect.Parameter(
                field.name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=annotation
            )
    # A panel stands where its first flag does.
    parameters = dict(sorted(parameters.items(), key=lambda pair: PANELS.index(panels[pair[0]])))
    for name, hint in (("quiet", Quiet), *[("json", Json)] * measures):
        parameters[name] = inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=False, annotation=hint)

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        def run(**options: Any) -> None:
            for name in (flag.removeprefix("--").replace("-", "_") for flag in LISTS):
                if options.get(name):
                    options[name] = tuple(options[name])
            command(**options)

        run.__doc__, run.__name__ = command.__doc__, command.__name__
        run.__annotations__ = {name: parameter.annotation for name, parameter in parameters.items()}
        run.__signature__ = inspect.Signature(list(parameters.values()))  # type: ignore[attr-defined]
        return run

    return decorate


def _made(config: Any, options: dict[str, Any], **more: Any) -> Any:
    """An instance of `config` from the options that are fields of it."""
    names = {field.name for field in dataclasses.fields(config)}
    return config(**{name: value for name, value in options.items() if name in names}, **more)


@app.command()
@_flags(Demo)
def demo(**options: Any) -> None:
    """See it all work, offline: fine-tune a real encoder, prune it to half its FLOPs, measure."""
    from niwaki.run import run_demo

    request = _made(Demo, options)
    _say(run_demo(request, options["quiet"]), f"{request.out}/half", options)
    if not (options["quiet"] or options["json"]):
        typer.echo(f"again: cd {shlex.quote(request.out)} && niwaki run half/recipe.yaml --overwrite")


@prune.command()
@_flags(Recipe, Structured)
def structured(**options: Any) -> None:
    """Remove whole attention heads and FFN neurons."""
    _run(_made(Recipe, options, stages=(_made(Structured, options),)), options)


@prune.command("layer-adaptive")
@_flags(Recipe, LayerAdaptive)
def layer_adaptive(**options: Any) -> None:
    """Zero single weights, each layer as many as it can bear."""
    _run(_made(Recipe, options, stages=(_made(LayerAdaptive, options),)), options)


@prune.command()
@_flags(Recipe, DynamicSparsityTraining)
def dynamic(**options: Any) -> None:
    """Zero single weights while training, and let those that matter return."""
    _run(_made(Recipe, options, stages=(_made(DynamicSparsityTraining, options),)), options)


@prune.command()
@_flags(Recipe, Vocabulary)
def vocabulary(**options: Any) -> None:
    """Remove the tokens that the training data do not use; the tokenizer is rewritten."""
    _run(_made(Recipe, options, stages=(_made(Vocabulary, options),)), options)


@plan.command("structured")
@_flags(Planning, Structured, without=SEARCHED)
def plan_structured(**options: Any) -> None:
    """Plan which heads and neurons go; without a budget all stay until one is asked."""
    _plan(Structured, options, any(options[kind] is not None for kind in BUDGETS))


@plan.command("layer-adaptive")
@_flags(Planning, LayerAdaptive, without=SEARCHED)
def plan_layer_adaptive(**options: Any) -> None:
    """Plan how many weights of each layer go; without a sparsity for any from 0.5 to 0.9."""
    pattern = parse_pattern(options["pattern"])
    if options["sparsity"] is None and isinstance(pattern, NByM):  # which leaves no other
        options["sparsity"] = pattern.sparsity
    _plan(LayerAdaptive, options, options["sparsity"] is not None)


_MANY = {"without": (*SEARCHED, "held_out_samples"), "several": SWEPT}


@sweep.command("structured")
@_flags(Recipe, Structured, SweepOptions, **_MANY)
def sweep_structured(**options: Any) -> None:
    """Remove heads and neurons, to each of several budgets."""
    _sweep("structured", Structured, options)


@sweep.command("layer-adaptive")
@_flags(Recipe, LayerAdaptive, SweepOptions, **_MANY)
def sweep_layer_adaptive(**options: Any) -> None:
    """Zero single weights, to each of several sparsities."""
    _sweep("layer-adaptive", LayerAdaptive, options)


@sweep.command("dynamic")
@_flags(Recipe, DynamicSparsityTraining, SweepOptions, **_MANY)
def sweep_dynamic(**options: Any) -> None:
    """Train under moving masks, to each of several sparsities."""
    _sweep("dynamic", DynamicSparsityTraining, options)


@sweep.command("file", hidden=True)
def sweep_file(
    sweep: Path,
    out: Annotated[str, typer.Option(help="Folder to write.")],
    jobs: Annotated[int | None, typer.Option(help="Points that are pruned side by side.")] = None,
    pick: Annotated[str | None, typer.Option(help="Conditions of the model to pick.")] = None,
    overwrite: Overwrite = False,
    resume: Resume = True,
    quiet: Quiet = False,
    json: Json = False,
) -> None:
    """Do what a sweep file asks."""
    given = {name: value for name, value in (("jobs", jobs), ("pick", pick)) if value is not None}
    _run_sweep(read_sweep(sweep, out, overwrite, given, resume), {"quiet": quiet, "json": json})


@app.command()
@_flags(Recipe, Finetune)
def finetune(**options: Any) -> None:
    """Train LoRA adapters and a task head."""
    _run(_made(Recipe, options, stages=(_made(Finetune, options),)), options)


@app.command()
def run(
    recipe: Path, overwrite: Overwrite = False, resume: Resume = True, quiet: Quiet = False, json: Json = False
) -> None:
    """Do what a recipe file asks."""
    _run(read_recipe(recipe, overwrite, resume), {"quiet": quiet, "json": json})


@app.command()
@_flags(Scoring)
def score(**options: Any) -> None:
    """Score heads, neurons and layers; nothing is pruned."""
    from niwaki.run import run_scoring

    request = _made(Scoring, options)
    found = run_scoring(request, options["quiet"])
    if not is_first():
        return
    if options["json"]:
        typer.echo(json.dumps(found, indent=2))
    elif not options["quiet"]:
        for layer in found["layers"]:
            typer.echo(f"{layer['name']:24} {layer['importance']:.4f} of all importance, {layer['total']} units")
        for linear in found["linears"]:
            typer.echo(f"{linear['name']:24} {linear['importance']:.4g} by {request.layer_score}")
        prune = _prune_next("structured", request.model, request.train_data, dataclasses.asdict(request))
        _end(f"scores.json is written to {request.out}", *prune, "--out", "half", "--flops", "0.5")


@app.command("eval")
@_flags(Evaluation)
def evaluate(**options: Any) -> None:
    """Measure quality, size and latency of a model, beside another."""
    from niwaki.run import run_evaluation

    request = _made(Evaluation, options)
    _say(run_evaluation(request, options["quiet"]), request.out, options)


@app.command()
@_flags(Export, measures=False)
def export(**options: Any) -> None:
    """Write a model for those who do not have Niwaki."""
    from niwaki.config.engine import WRITTEN_FOR
    from niwaki.run import run_export
    from niwaki.run.following import said_again

    request = _made(Export, options)
    run_export(request, options["quiet"])
    if not options["quiet"]:
        following = ["push", request.out, "owner/name"]
        if (engine := WRITTEN_FOR[request.to]) != "pytorch":
            following = ["eval", "--model", request.model, "--eval-data", request.eval_data or "E", "--out", "measured"]
            again = said_again(Evaluation, dataclasses.asdict(request), "dtype")
            following += ["--engine", engine, *again]
        _end(f"{request.to} is written to {request.out}", *following)


@app.command()
def report(
    folders: Annotated[list[Path], typer.Argument(help="Folders with a result.json.", metavar="DIR...")],
    out: Annotated[Path, typer.Option(help="Page to write.")],
    open: Annotated[bool, typer.Option("--open", help="Show it in a browser.")] = False,
    quiet: Quiet = False,
) -> None:
    """One page from the results of one or several folders, side by side."""
    from niwaki.checkpoint.folder import atomic_file
    from niwaki.report import is_page, page
    from niwaki.results import read_result

    out = Path(place_named("out", out))
    text = page([read_result(Path(place_named("DIR", folder)) / "result.json") for folder in folders])
    with atomic_file(out, True, is_page, "a page") as unfinished:
        unfinished.write_text(text, encoding="utf-8")
    if not quiet:
        typer.echo(f"the page of {len(folders)} result{'s' * (len(folders) > 1)} is written to {out}")
    if open:
        typer.launch(out.resolve().as_uri())


@app.command("push")
def push_folder(
    folder: Annotated[Path, typer.Argument(help="Folder with a model that Niwaki wrote.", metavar="DIR")],
    repository: Annotated[str, typer.Argument(help="Model repository on the Hub, owner/name; made if it is new.")],
    private: Annotated[bool, typer.Option("--private", help="Make a new repository that others cannot see.")] = False,
    with_report: Annotated[
        bool,
        typer.Option("--with-report", help="Also report.html, result.json, recipe.yaml: rows of the data, paths."),
    ] = False,
    quiet: Quiet = False,
) -> None:
    """Upload a folder that Niwaki wrote to the Hub."""
    from niwaki.progress import library_manners
    from niwaki.run import push

    with library_manners(quiet):
        address = push(folder, repository, private, with_report)
    if not quiet:
        _end(
            f"what Niwaki wrote into {folder} is at {address}",
            *("eval", "--model", repository, "--eval-data", "E", "--out", "measured"),
        )


def _plan(kind: Any, options: dict[str, Any], budget: bool) -> None:
    from niwaki.methods.plan import PLAN
    from niwaki.methods.prune import ANY_BUDGET
    from niwaki.run import run_planning
    from niwaki.run.following import carried_out

    request = _made(Planning, options)
    config = _made(kind, options | ({} if budget else dict([ANY_BUDGET[kind]])))
    made = run_planning(request, config, any_budget=not budget, quiet=options["quiet"])
    if not is_first():
        return
    if options["json"]:
        typer.echo((Path(request.out) / PLAN).read_text("utf-8"))
    elif not options["quiet"]:
        typer.echo(str(made))
        prune = _prune_next(made.KIND, request.model, request.train_data, dataclasses.asdict(request))
        prune += carried_out(made, options, budget)
        _end(f"written to {request.out}", *prune, "--plan", request.out, "--out", f"{request.out}-done")


def _sweep(name: str, kind: Any, options: dict[str, Any]) -> None:
    seeds = options.pop("seed") or [0]
    asked = {
        field.name: options[field.name] for field in dataclasses.fields(kind) if options.get(field.name) is not None
    }
    stages = methods_of(name, asked)
    recipe = _made(Recipe, options, stages=tuple(stages[:1]))
    _run_sweep(_made(Sweep, options, recipe=recipe, methods={name: stages}, seeds=tuple(seeds)), options)


def _run_sweep(request: Sweep, options: dict[str, Any]) -> None:
    from niwaki.run import run_sweep

    found = run_sweep(request, options["quiet"])
    if options["json"]:
        typer.echo(json.dumps(found, indent=1))
        return
    if options["quiet"]:
        return
    from niwaki.report import sweep_lines
    from niwaki.run.following import form_of

    for line in sweep_lines(found):
        typer.echo(line)
    # A knee may be the dense model, or none where no point lies below the line.
    knees = [knee for knee in found["timed"].get("knee", {}).values() if knee not in (None, "dense")]
    best = found["picked"] or [*knees, found["points"][-1]["name"]][0]
    model = f"{request.recipe.out}/" + ("picked" if found["picked"] else f"points/{best}")
    to = form_of(model)
    _end(f"written to {request.recipe.out}", "export", "--model", model, "--to", to, "--out", f"{best}.{to}")


def _run(recipe: Recipe, options: dict[str, Any]) -> None:
    from niwaki.run import run_recipe

    _say(run_recipe(recipe, options["quiet"]), recipe.out, options)


def _say(result: Any, out: str, options: dict[str, Any]) -> None:
    if not is_first():
        return
    if options["json"]:
        from niwaki.results import as_json

        typer.echo(as_json(result))
        return
    if options["quiet"]:
        return
    from niwaki.progress import print_table
    from niwaki.report import course_lines, engine_rows, result_table

    if not print_table(result_table(result)):
        _say_lines(result)
    for line in course_lines(result):
        typer.echo(line)
    rows = engine_rows(result)
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        typer.echo("  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)))
    for warning in result.warnings:
        typer.echo(f"warning: {warning}", err=True)
    _say_what_next(result, out, options)


def _say_lines(result: Any) -> None:
    """The result line by line, for a log or another program."""
    from niwaki.report import shown, spread, stage_lines, ways

    alone = not result.stages and not result.recipe.get("against")
    for name in result.pruned["quality"]:
        before = "" if alone else f"{shown(result.dense, name)} before, "
        typer.echo(f"{name}: {before}{shown(result.pruned, name)}{'' if alone else ' after'}")
    for name, value in result.fidelity.items():  # without labels it is all that is measured
        typer.echo(f"{name} to dense: {value:.4f}")
    for line in stage_lines(result.stages):
        typer.echo(line)
    for way in [] if alone else ways(result):
        length = None if "seq_len" in way else result.latency.get("seq_len")  # its name says it
        rows = f", rows of {length} tokens" if length else ""
        typer.echo(f"{way['name']}: {way['speedup']:.2f}x as fast as dense{spread(way)} (measured{rows})")


def _say_what_next(result: Any, out: str, options: dict[str, Any]) -> None:
    """What was written where, and the command that people run next."""
    from niwaki.run.following import form_of

    if not result.stages:
        _end(f"result.json and report.html are written to {out}", "report", out, "--out", "report.html", "--open")
        return
    recipe = result.recipe
    adapted = any(stage["kind"] == "finetune" and not stage["full"] for stage in recipe["stages"])
    if adapted and not recipe.get("keep_adapter"):
        typer.echo("the adapter is merged into the weights; --keep-adapter writes it beside its base instead")
    wrote = f"model, result.json, report.html, README.md and recipe.yaml are written to {out}"
    if all(stage["name"] == "finetune" for stage in result.stages):
        model = f"{out}/adapter" if recipe.get("keep_adapter") else out
        prune = _prune_next(
            "structured", model, recipe["train_data"], recipe | {"base_model": None}, recipe["eval_data"]
        )
        _end(wrote, *prune, "--out", f"{out}-half", "--flops", "0.5")
    else:
        to = form_of(out)
        _end(wrote, "export", "--model", out, "--to", to, "--out", f"{out}.{to}")


def _prune_next(kind: str, model: str, train: str, asked: dict[str, Any], test: str = "E") -> list[str]:
    """`niwaki prune` of `model`, reading data as a command that was `asked` this; where the result goes is left out."""
    from niwaki.run.following import said_again

    data = ["--train-data", train, "--eval-data", test]
    return ["prune", kind, "--model", model, *data, *said_again(Recipe, asked, "train_samples")]


def _end(wrote: str, *following: str) -> None:
    typer.echo(wrote)
    typer.echo(f"next: {shlex.join(['niwaki', *following])}")


def _spread(words: list[str]) -> list[str]:
    """`--text-columns a b` as the parser wants it: the flag again before every word."""
    lists = (*LISTS, *(f"--{name}" for name in SWEPT)) if words[:1] == ["sweep"] else LISTS
    spread: list[str] = []
    flag = None
    for word in words:
        if word.startswith("-") and not (flag and re.fullmatch(r"-\d.*", word)):  # -1 may be a label
            flag = word if word in lists else None
        elif flag is not None and spread[-1] != flag:
            spread.append(flag)
        spread.append(word)
    return spread


def main() -> None:
    """Run the command; exit 0 done, 2 wrong request, 3 failed work, 130 interrupted (143 and 129 by other signals)."""
    if not is_first() and not set(SHARED) & set(sys.argv[1:2]):
        sys.exit(0)
    try:
        raise_again()
        give_back()
        status = app(_spread(sys.argv[1:]), standalone_mode=False)
    except NiwakiError as error:
        _fail(str(error), error.exit_status)
    except Stopped as error:
        _fail("interrupted", error.exit_status)
    except (click.exceptions.Abort, KeyboardInterrupt):
        _fail("interrupted", 130)
    except Exception as error:
        # Typer may carry its own copy of click, so its usage errors are told by what they offer.
        if hasattr(error, "format_message"):
            told = " ".join(error.format_message().split())  # type: ignore[attr-defined]
            commands = getattr(getattr(getattr(error, "ctx", None), "command", None), "commands", None)
            _fail(f"{told} What there is: {', '.join(commands)}" if told and commands else told, 2)
        if os.environ.get("NIWAKI_TRACEBACK"):
            raise
        _fail(f"failed: {limit_of(error) or what(error)} (NIWAKI_TRACEBACK=1 shows where)", 3)
    else:
        if status == 130:  # what Typer makes of KeyboardInterrupt
            _fail("interrupted", 130)
        sys.exit(status or 0)


def _fail(message: str, status: int) -> None:
    message, status, mine = last_words(message, status)
    if mine and message:  # a command without words has printed its help
        # What was given may be of any length.
        shown = message if len(message) <= _LONGEST else f"{message[:_LONGEST]}..."
        print(f"niwaki: {shown}", file=sys.stderr)
    sys.exit(status)
