"""What the stages of a recipe have done so far, kept on disk: the same command again goes on from there.

Each stage that is done leaves a folder with the model as a checkpoint, its `StageResult`, what was measured before it
and the files it wrote. The name of that folder is a hash of all that its bytes follow from: the request, the parts of
`niwaki.run.key`, and the stages up to this one. So another last stage goes on from the same first ones, and anything
else begins anew; what the last two other requests left stays beside it until a run on the same folder comes to its end.
A stage that has begun has a folder of its own, in which its trainings and solves are kept while they go on (see
`niwaki.train.kept` and `niwaki.repair.kept_solves`). A model is taken up only if its tensors hash to what they were:
what is written at the end is to be the same bytes as without the interruption.

Of several processes the first one writes, and all go on if each can read what lies there: where it is one machine, or
one disk. Another number of them begins anew, as its last bits differ.
"""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from peft import PeftConfig, PeftModel
from peft.utils import ModulesToSaveWrapper
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn

from niwaki.anatomy import pool_by_, pooling_of, unwrap
from niwaki.checkpoint import load, new_parameters, write_adapter, write_model, write_tokenizer
from niwaki.config import recipe_to_dict
from niwaki.errors import NiwakiError
from niwaki.masks import MaskedLinear
from niwaki.processes import for_all, from_first, is_first
from niwaki.progress import say
from niwaki.results import SiteResult, StageResult
from niwaki.run.inputs import tokenizer_for
from niwaki.run.key import key_of, plain_digest, tensors_digest
from niwaki.run.tasks import Tasks
from niwaki.run.work import Work

_NOTES, _MODEL, _TOKENIZER, _FILES, _HIDDEN = "stage.json", "model", "tokenizer", "files", "hidden.safetensors"
_BEGUN = "-begun"
_REQUESTS = "requests.json"
"""The names of the stages of each of the last requests of which something is kept, the latest last."""
_REMEMBERED = 3
"""Of so many requests what they left is kept, the one at hand among them."""
_CHANGED = ("base_model_name_or_path", "modules_to_save", "init_lora_weights", "inference_mode")
"""What saving and loading changes in the config of an adapter: PEFT names the head once more each time."""


@dataclass(frozen=True)
class Past:
    """What stages that need not be done again made: of the work, of results, of measurements before each stage."""

    work: Work
    results: list[StageResult]
    states: list[dict[str, Any]]
    before_removal: Work | None
    """The work before the first stage that removes something, where that is among them."""


@contextmanager
def kept_stages(folder: Path, came: Work, tasks: Tasks) -> Iterator[Kept]:
    """What is kept of a recipe; if the body raises, it is said how to go on."""
    kept = Kept(folder, came, tasks)
    try:
        yield kept
    except BaseException:
        kept.leave()
        raise


class Kept:
    """What is kept, in `folder`, of the stages that make of `came` what its recipe asks; `tasks` measure it, too."""

    def __init__(self, folder: Path, came: Work, tasks: Tasks) -> None:
        self._folder, self._came = folder, came
        self._names = list(_names(came, tasks))

    def past(self, first: int, new: Path) -> Past:
        """The stages that are kept; `first` is the first that removes something, `new` gets the files they wrote."""
        nothing = Past(self._came, [], [], None)
        count = from_first(self._begin)
        if not count:
            return nothing
        trouble = "not every process can read it"
        try:
            past = self._read(count, first, new)
        except (OSError, ValueError, KeyError, NiwakiError) as error:
            past, trouble = nothing, str(error)
        if not for_all(past is not nothing):
            say(f"what was kept of an earlier run cannot be used: {trouble}", self._came.quiet)
            self.forget()
            return nothing
        say(f"going on after stage {count} of {len(self._names)}, which is kept", self._came.quiet)
        return past

    def _begin(self) -> int:
        """How many stages are kept, once what is not to be gone on from is removed."""
        if not self._came.recipe.resume:
            self.forget()
        self._remember([*self._others()[1 - _REMEMBERED :], self._names])
        return next((n for n, name in enumerate(self._names) if not (self._folder / name).is_dir()), len(self._names))

    def _others(self) -> list[list[str]]:
        """The requests that were here before and of which something is kept, each as the names of its stages."""
        try:
            requests = json.loads((self._folder / _REQUESTS).read_text("utf-8"))
        except (OSError, ValueError):
            return []
        return [names for names in requests if names != self._names and any(map(self._is_kept, names))]

    def _remember(self, requests: list[list[str]]) -> None:
        """Let these be the requests of which something is kept, and remove what is of none of them."""
        names = {_REQUESTS}.union(*requests)
        for place in self._folder.glob("*"):
            if place.name.removesuffix(_BEGUN) not in names:
                shutil.rmtree(place, ignore_errors=True)
        with suppress(OSError):  # on a full disk, say
            self._folder.mkdir(parents=True, exist_ok=True)
            (self._folder / _REQUESTS).write_text(json.dumps(requests), encoding="utf-8")

    def _is_kept(self, name: str) -> bool:
        """Whether the stage of this name is kept, or part of it."""
        return (self._folder / name).is_dir() or (self._folder / f"{name}{_BEGUN}").is_dir()

    def _read(self, count: int, first: int, new: Path) -> Past:
        """What so many stages made; the rest as for `past`.

        Raises:
            OSError, ValueError, KeyError, NiwakiError: it cannot be used.
        """
        notes = [json.loads((self._folder / name / _NOTES).read_text("utf-8")) for name in self._names[:count]]
        before = None
        if first < count:
            before = self._work_after(first - 1) if first else self._came
        work = self._work_after(count - 1)
        shutil.copytree(self._folder / self._names[count - 1] / _FILES, new, dirs_exist_ok=True)
        return Past(work, [_result(note["result"]) for note in notes], [note["before"] for note in notes], before)

    def begun(self, number: int) -> Path:
        """The folder of what stage `number` has done before it is done as a whole; it need not be there yet."""
        return self._folder / f"{self._names[number]}{_BEGUN}"

    def add(self, number: int, work: Work, result: StageResult, before: dict[str, Any], first: int, new: Path) -> None:
        """Keep what stage `number` made; of models the last, and the one before the first removal, are needed.

        So may be those of stages that another request has, too. What cannot be kept, on a full disk say, is said and
        left.
        """
        if not is_first():
            return
        place = self._folder / self._names[number]
        growing = self._folder / "growing"
        try:
            growing.mkdir(parents=True)
            _write(growing, work, with_tokenizer=work.inputs.tokenizer is not self._came.inputs.tokenizer)
            shutil.copytree(new, growing / _FILES)
            notes = {"result": dataclasses.asdict(result), "before": before, **_notes(work.model)}
            (growing / _NOTES).write_text(json.dumps(notes), encoding="utf-8")
            growing.rename(place)
            shutil.rmtree(self.begun(number), ignore_errors=True)
        except (OSError, SafetensorError, NiwakiError) as error:
            shutil.rmtree(growing, ignore_errors=True)
            say(f"stage {number + 1} is not kept: {' '.join(str(error).split())}", work.quiet)
            return
        shared = any(self._names[number - 1] in names for names in self._others())
        if number > 0 and number != first and not shared:
            shutil.rmtree(self._folder / self._names[number - 1] / _MODEL, ignore_errors=True)

    def forget(self) -> None:
        """Remove all that is kept of this request."""
        if is_first():
            for number, name in enumerate(self._names):
                shutil.rmtree(self._folder / name, ignore_errors=True)
                shutil.rmtree(self.begun(number), ignore_errors=True)

    def leave(self) -> None:
        """Say how to go on to the person whose run has ended, where something is kept."""
        count = sum((self._folder / name).is_dir() for name in self._names)
        begun = any(self.begun(number).is_dir() for number in range(len(self._names)))
        if count or begun:
            kept = f"{count} of {len(self._names)} stages{' and part of the next' * begun} are kept"
            say(f"{kept}: the same command goes on from there, with --restart it begins anew", self._came.quiet)
        elif is_first() and not self._others():
            shutil.rmtree(self._folder, ignore_errors=True)

    def _work_after(self, number: int) -> Work:
        """The work as a stage left it.

        Raises:
            ValueError: the model is not what it was.
        """
        place, work = self._folder / self._names[number], self._came
        notes = json.loads((place / _NOTES).read_text("utf-8"))
        if (place / _TOKENIZER).is_dir():
            work = work.with_tokenizer(tokenizer_for(work.model, place / _TOKENIZER))
        model = _read_model(place, notes, work)
        if tensors_digest(model) != notes["digest"]:
            raise ValueError(f"the model after stage {number + 1} is not what it was")
        return work.with_model(model)


def _names(came: Work, tasks: Tasks) -> Iterator[str]:
    """For each stage, the name of the folder in which it is kept."""
    plain = recipe_to_dict(came.recipe)
    stages = plain.pop("stages")
    for how in ("out", "activations_dir", "keep_adapter", "compact", "max_memory"):  # of no stage's doing
        del plain[how]
    found = plain_digest([plain, key_of(came, tasks)])
    for number, stage in enumerate(stages):
        found = plain_digest([found, stage])
        yield f"{number}-{found[:32]}"


def _write(folder: Path, work: Work, with_tokenizer: bool) -> None:
    """Write the model of the work, values that a checkpoint does not hold too, and its tokenizer where asked."""
    model, place = work.model, folder / _MODEL
    place.mkdir()
    if isinstance(model, PeftModel):
        write_adapter(model, place, place)
    else:
        write_model(model, place)
    if hidden := {name: tensor.detach().contiguous() for name, tensor in _hidden(model)}:
        save_file(hidden, folder / _HIDDEN)
    if with_tokenizer:
        write_tokenizer(work.inputs.tokenizer, folder / _TOKENIZER)


def _hidden(model: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    """The parameters of which a checkpoint holds what masks leave, or what an adapter put in their place."""
    for name, module in model.named_modules():
        if isinstance(module, MaskedLinear) and module.weight.numel():
            yield f"{name}.weight", module.weight
        elif isinstance(module, ModulesToSaveWrapper):
            for inner, parameter in module.original_module.named_parameters():
                yield f"{name}.original_module.{inner}", parameter


def _notes(model: nn.Module) -> dict[str, Any]:
    """What a checkpoint does not say of a model."""
    return {
        "digest": tensors_digest(model),
        "trained": [name for name, parameter in model.named_parameters() if parameter.requires_grad],
        "new": list(new_parameters(model)),
        "adapters": {name: {key: getattr(config, key) for key in _CHANGED} for name, config in _adapters(model)},
    }


def _adapters(model: nn.Module) -> Iterable[tuple[str, PeftConfig]]:
    return model.peft_config.items() if isinstance(model, PeftModel) else ()


def _read_model(folder: Path, notes: dict[str, Any], work: Work) -> Any:
    """The model that `_write` wrote, in memory as it was."""
    came = unwrap(work.model)
    model = load(folder / _MODEL, device=work.recipe.device, dtype="auto")
    if (folder / _HIDDEN).is_file():
        for name, weight in load_file(folder / _HIDDEN).items():
            model.get_parameter(name).data.copy_(weight)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name in notes["trained"])
    inner = cast(Any, unwrap(model))
    inner._niwaki_new_parameters = tuple(notes["new"])
    inner.name_or_path = inner.config._name_or_path = came.name_or_path
    if (pooling := pooling_of(came)) is not None:
        pool_by_(model, pooling)
    for name, config in _adapters(model):
        vars(config).update(notes["adapters"][name])
    return model


def _result(plain: dict[str, Any]) -> StageResult:
    layers = tuple(SiteResult(**layer) for layer in plain.pop("layers"))
    return StageResult(**{**plain, "layers": layers, "warnings": tuple(plain["warnings"])})
