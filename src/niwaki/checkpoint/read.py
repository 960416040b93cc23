"""Load models and adapters; say in one line what is wrong with files that are not what they should be."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import cast

from peft import PeftModel
from safetensors import SafetensorError, safe_open
from transformers import PreTrainedModel

from niwaki.anatomy import BODY, Task, pool_by_, task_of
from niwaki.checkpoint.adapter import adapter_config, adapter_head, adapter_in, base_of, load_adapter
from niwaki.checkpoint.files import INDEX, weight_files
from niwaki.checkpoint.hub import local_folder
from niwaki.checkpoint.library import line
from niwaki.checkpoint.plain import NewLabels, head_for, load_plain, own_head
from niwaki.checkpoint.sentence import first_sentence_head, is_sentence_encoder, place_of_model
from niwaki.checkpoint.task import read_config, task_of_config
from niwaki.config import DTYPES
from niwaki.config.text import place_named
from niwaki.errors import RequestError, check_choice
from niwaki.numerics.device import device_named
from niwaki.numerics.seeds import seeded


def load(
    source: str | Path,
    base_model: str | None = None,
    device: str = "cpu",
    labels: Sequence[str] | NewLabels | None = None,
    dtype: str = "float32",
    *,
    seed: int = 0,
) -> PreTrainedModel | PeftModel:
    """Load a model of any task of `niwaki.anatomy.task`; `dtype` is float32, bfloat16, or auto.

    With auto the weights are as the files hold them, float16 as float32.

    `source` is a Hub id, a folder of Transformers, Sentence Transformers or Niwaki, or a PEFT adapter folder. What task
    it is for, its config says (`architectures`), or its adapter's (`task_type`). A sentence encoder carries along what
    makes one vector a text (see `niwaki.checkpoint.sentence`).

    A folder that holds an adapter beside its base (`keep_adapter`) is loaded with the adapter.

    With `labels` (names of classes, one name for a number to predict; `NewLabels` for another task than classifying
    rows), a model that has no task head, one that is only pretrained (for masked words, for the next token) and one of
    the same task with other labels get a new head, to be trained, that is drawn from `seed`.

    Raises:
        RequestError: nothing there, a damaged or non-safetensors file, a quantised model, one of another task or with
            tensors that it would not use, one that needs code of its own, an adapter that does not fit; no such device.
    """
    check_choice("dtype", dtype, DTYPES)
    there = device_named(device)
    source = place_named("model", source)
    name = place_of_model(source)
    adapter, sources = adapter_in(_checked(name)), [source]
    with seeded(seed):
        if adapter is not None:
            base = _base(adapter, base_model)
            sources.append(base)
            model: PreTrainedModel | PeftModel = load_adapter(adapter, base, dtype)
        else:
            model = load_plain(name, head_for(name, _as_new(labels)) if labels else own_head(name, source), dtype)
    model.eval()
    if task_of(model) is BODY and (found := first_sentence_head(map(local_folder, sources))) is not None:
        pool_by_(model, found)
    return cast("PreTrainedModel | PeftModel", model.to(there))  # type: ignore[arg-type]


def _as_new(labels: Sequence[str] | NewLabels) -> NewLabels:
    return labels if isinstance(labels, NewLabels) else NewLabels(tuple(labels))


def task_of_checkpoint(source: str, base_model: str | None = None) -> Task:
    """The task that a checkpoint was made for, supported or not; of an adapter, the task of the two together.

    Configs and the names of tensors are read, no weights.

    Raises:
        RequestError: nothing there that says it.
    """
    source = place_named("model", source)
    name = place_of_model(source)
    adapter = adapter_in(_checked(name))
    if adapter is not None:
        return adapter_head(adapter, _base(adapter, base_model)).task
    task = task_of_config(name, read_config(name))
    return BODY if task.pretraining and is_sentence_encoder(source) else task


def _base(adapter: Path, base_model: str | None) -> str:
    """Where the base of an adapter is; the adapter's own files are refused first."""
    adapter_config(adapter)
    base = base_of(adapter, base_model)
    _checked(base)
    return base


def _checked(name: str) -> Path:
    """The place of that name, where its files, if it is a folder, are whole; of a Hub id see `local_folder`."""
    folder = Path(name)
    if folder.is_dir():
        _check_files(folder)
    elif folder.is_absolute() or name.startswith((".", "~")) or folder.is_file():
        raise RequestError(f"model must be a Hub id or a folder with a model, got {name!r}")
    return local_folder(name)


def _check_files(folder: Path) -> None:
    if not any((folder / name).is_file() for name in ("config.json", "adapter_config.json")):
        raise RequestError(f"model must hold config.json or adapter_config.json, got {str(folder)!r}")
    if (folder / INDEX).is_file():
        weight_files(folder)
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        raise RequestError(f"model must hold safetensors weights, got {str(folder)!r} without any")
    for path in files:
        try:
            with safe_open(path, framework="pt"):
                pass
        except SafetensorError as error:
            raise RequestError(f"model file {str(path)!r} must be whole, got a damaged one: {line(error)}") from error
