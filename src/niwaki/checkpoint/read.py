"""Load models, adapters and tokenizers; say in one line what is wrong with files that are not what they should be."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any, cast

import torch
from peft import PeftConfig, PeftModel
from safetensors import SafetensorError, safe_open
from torch import nn
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    PreTrainedModel,
)
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from niwaki.adapters import check_adapter, mask_adapters_
from niwaki.anatomy import FAMILIES, family_of, unwrap
from niwaki.anatomy.modeling_mobilellm import MODEL_TYPE, MobileLLMConfig, MobileLLMForCausalLM
from niwaki.checkpoint.files import INDEX, weight_files
from niwaki.checkpoint.hub import beside, local_folder
from niwaki.checkpoint.library import UNREADABLE, line, quiet
from niwaki.checkpoint.masks import MASKS, apply_saved_masks_
from niwaki.config import DTYPES
from niwaki.errors import RequestError, check_choice
from niwaki.surgery.shapes import METHOD, forget_


def load(
    source: str | Path,
    base_model: str | None = None,
    device: str = "cpu",
    labels: list[str] | None = None,
    dtype: str = "float32",
) -> PreTrainedModel | PeftModel:
    """Load a language model or a sequence classifier; `dtype` is float32, bfloat16, or auto.

    With auto the weights are as the files hold them, float16 as float32.

    `source` is a Hub id, a Transformers or Niwaki folder, or a PEFT adapter folder.

    A folder that holds an adapter beside its base (`keep_adapter`) is loaded with the adapter.

    With `labels` (names of classes, one name for a number to predict), a model without a task head that knows them gets
    a new one, to be trained.

    Raises:
        RequestError: nothing there, a damaged or non-safetensors file, a quantised model, an adapter that does not fit.
    """
    check_choice("dtype", dtype, DTYPES)
    name = str(source)
    folder = Path(name)
    if folder.is_dir():
        _check_files(folder)
    elif folder.is_absolute() or name.startswith((".", "~")) or folder.is_file():
        raise RequestError(f"model must be a Hub id or a folder with a model, got {name!r}")
    adapter = _adapter_in(local_folder(name))
    if adapter is not None:
        model: PreTrainedModel | PeftModel = _load_adapter(adapter, base_model, dtype)
    else:
        new = _new_head(name, labels) if labels else {}
        model = _load_plain(name, new, dtype)
        if new:
            _draw_last_layer_(model)
    model.eval()
    try:
        return cast("PreTrainedModel | PeftModel", model.to(device))  # type: ignore[arg-type]
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        rule = "device must be one that this PyTorch can use, such as cpu"
        raise RequestError(f"{rule}, got {device!r}: {line(error)}") from error


def load_tokenizer(source: str | Path, base_model: str | None = None) -> Any:
    """The tokenizer of a model folder or Hub id; of an adapter without one, its base model's."""
    folder = local_folder(str(source))
    if (folder / "adapter_config.json").is_file() and beside(folder, "tokenizer_config.json") is None:
        return load_tokenizer(_base_of(folder, base_model))
    try:
        tokenizer = AutoTokenizer.from_pretrained(str(source))
    except (OSError, ValueError) as error:
        raise RequestError(f"model must have tokenizer files, got {str(source)!r}: {line(error)}") from error
    # Without files Transformers makes one that knows no word.
    if len(tokenizer) <= len(set(tokenizer.all_special_ids)):
        raise RequestError(f"model must have tokenizer files, got {str(source)!r} without a vocabulary")
    return tokenizer


def new_parameters(model: nn.Module) -> tuple[str, ...]:
    """Names of the parameters of a loaded model that its checkpoint did not hold: a task head, fresh and random."""
    return getattr(unwrap(model), "_niwaki_new_parameters", ())


def _load_plain(name: str, options: dict[str, Any], dtype: str) -> PreTrainedModel:
    try:
        config = AutoConfig.from_pretrained(name, trust_remote_code=False, **options)
        if isinstance(config, MobileLLMConfig) and config.repeats == 1:
            config = config.to_llama()
        quantised = getattr(config, "quantization_config", None)
        if quantised is not None and dict(quantised).get("quant_method") != METHOD:
            raise RequestError(
                f"model must hold float weights, got {name!r} quantised; prune first, quantise afterwards"
            )
        table = getattr(config, METHOD, None)
        if table is not None:
            forget_(config)
            layers = table.get("layers") if isinstance(table, dict) else None
            config.quantization_config = {"quant_method": METHOD, "layers": layers}
        with quiet(progress=not Path(name).is_dir()):
            model, report = _auto_class(config).from_pretrained(
                name,
                config=config,
                dtype=dtype,
                use_safetensors=True,
                trust_remote_code=False,
                ignore_mismatched_sizes=bool(options),
                output_loading_info=True,
            )
            if dtype == "auto" and model.dtype != torch.bfloat16:
                model = model.float()  # float16 is for GPUs: its range is too small for sums
            apply_saved_masks_(model, local_folder(name))
    except RequestError:
        raise
    except UNREADABLE as error:
        raise _unreadable(name, error) from error
    missing = sorted({*report["missing_keys"], *(key for key, *_ in report["mismatched_keys"])})
    key = family_of(model).heads_key
    if getattr(config, key) < 1:
        raise RequestError(
            f"{key} in {str(Path(name) / 'config.json')!r} must be at least 1, got {getattr(config, key)}"
        )
    # Many checkpoints of encoders come without a pooler, which belongs to the task head in all but name.
    prefix = "" if model.can_generate() else f"{model.base_model_prefix}."
    body = [key for key in missing if key.startswith(prefix) and ".pooler." not in key]
    if body:
        rule = f"model must hold all weights of its {config.model_type} layers"
        raise RequestError(f"{rule}, got {name!r} without {body[0]} ({len(body)} missing)")
    model._niwaki_new_parameters = tuple(missing)
    return model


def loads_language_model(source: str, base_model: str | None = None) -> bool:
    """Whether `load` would give a language model; False also for what it would refuse. Only configs are read."""
    try:
        folder = _adapter_in(local_folder(source))
        place = source if folder is None else _base_of(folder, base_model)
        return _auto_class(AutoConfig.from_pretrained(place, trust_remote_code=False)) is AutoModelForCausalLM
    except (RequestError, *UNREADABLE):
        return False


def _auto_class(config: Any) -> Any:
    """The class that loads a checkpoint for what it was made for: the next token, or else classes."""
    causal = {name for family in FAMILIES if family.causal for name in family.model_types}
    names = {**MODEL_FOR_CAUSAL_LM_MAPPING_NAMES, MODEL_TYPE: MobileLLMForCausalLM.__name__}
    named = names.get(config.model_type) in (config.architectures or ())
    return AutoModelForCausalLM if named and config.model_type in causal else AutoModelForSequenceClassification


def _draw_last_layer_(model: PreTrainedModel) -> None:
    """Draw the layer that gives the logits anew where the checkpoint's has the right size, but is of other labels."""
    name, last = [(name, module) for name, module in model.named_modules() if isinstance(module, nn.Linear)][-1]
    if f"{name}.weight" in new_parameters(model):
        return
    with torch.no_grad():
        last.weight.normal_(0.0, cast(Any, model.config).initializer_range)
        last.bias.zero_()
    model._niwaki_new_parameters = (*new_parameters(model), f"{name}.weight", f"{name}.bias")  # type: ignore[assignment]


def _new_head(name: str, labels: list[str]) -> dict[str, Any]:
    """Config options of a new task head for `labels`; none where the checkpoint has a head that knows them."""
    try:
        config = AutoConfig.from_pretrained(name, trust_remote_code=False)
    except UNREADABLE as error:
        raise _unreadable(name, error) from error
    if _auto_class(config) is AutoModelForCausalLM:
        return {}
    has_head = any("ForSequenceClassification" in architecture for architecture in config.architectures or [])
    names = cast("dict[int, str]", config.id2label)
    known = {label.lower() for label in names.values()} | {str(index) for index in names}
    if has_head and (len(labels) == config.num_labels == 1 or known.issuperset(label.lower() for label in labels)):
        return {}
    new = labels if len(labels) > 1 else ["LABEL_0"]
    return {
        "num_labels": len(new),
        "id2label": dict(enumerate(new)),
        "label2id": {label: index for index, label in enumerate(new)},
    }


def _adapter_in(folder: Path) -> Path | None:
    """The folder of the adapter that `folder` holds or is; of several, the first by name. PEFT nests named ones."""
    inner = folder / "adapter"
    places = [inner, *sorted(place for place in inner.glob("*") if place.is_dir()), folder]
    return next((place for place in places if (place / "adapter_config.json").is_file()), None)


def _load_adapter(folder: Path, base_model: str | None, dtype: str) -> PeftModel:
    name = str(folder)
    try:
        config = PeftConfig.from_pretrained(name)
    except UNREADABLE as error:
        raise RequestError(f"adapter_config.json must be as PEFT writes it, got {name!r}: {line(error)}") from error
    check_adapter(name, config)
    if not (folder / "adapter_model.safetensors").is_file():
        raise RequestError(f"model must hold adapter_model.safetensors, got {name!r} without it")
    options: dict[str, Any] = {}
    with safe_open(folder / "adapter_model.safetensors", framework="pt") as tensors:
        keys = set(tensors.keys())
        for key in keys:
            if key.endswith((".classifier.weight", ".classifier.out_proj.weight")):
                options["num_labels"] = tensors.get_slice(key).get_shape()[0]
    place = _base_of(folder, base_model)
    if Path(place).is_dir():
        _check_files(Path(place))
    base = _load_plain(place, options, dtype)
    brought = {key.removeprefix("base_model.model.") for key in keys}
    base._niwaki_new_parameters = tuple(  # type: ignore[assignment]
        name for name in new_parameters(base) if name not in brought
    )
    try:
        with warnings.catch_warnings():
            # LoRA on a site without units: its factors have no elements.
            warnings.filterwarnings("ignore", "Initializing zero-element tensors is a no-op")
            # PEFT asks Transformers by the old name.
            warnings.filterwarnings("ignore", ".is_gradient_checkpointing. is deprecated", FutureWarning)
            apply_saved_masks_(base, folder)
            model = PeftModel.from_pretrained(base, str(folder))
        if (folder / MASKS).is_file():
            mask_adapters_(model)
        return model
    except UNREADABLE as error:
        raise RequestError(f"base_model must fit the adapter {str(folder)!r}: {line(error)}") from error


def _base_of(folder: Path, base_model: str | None) -> str:
    """Where the base of an adapter is: as asked; else as its config names it, on this machine or on the Hub.

    A folder is looked for as named from the working directory, then from the adapter's folder, then by its last name
    beside the adapter's folder (both were moved). The last places are the folders around it, where Niwaki writes the
    base.
    """
    if base_model is not None:
        return base_model
    try:
        named = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8"))["base_model_name_or_path"]
    except UNREADABLE as error:
        raise RequestError(f"base_model must be given: {str(folder)!r} names none: {line(error)}") from error
    if not named:
        raise RequestError(f"base_model must be given: the adapter {str(folder)!r} names none")
    around = folder.resolve().parent
    places = [Path(named), folder / named, around / Path(named).name, around, around.parent]
    for place in places:
        if (place / "config.json").is_file():
            return str(place)
    tried = ", ".join(repr(str(place)) for place in places)
    try:
        AutoConfig.from_pretrained(named, trust_remote_code=False)
    except (OSError, ValueError) as error:
        rule = f"base_model must be given: the base {named!r} that the adapter {str(folder)!r} names was not found"
        raise RequestError(f"{rule}; tried {tried} and the Hub") from error
    return str(named)


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


def _unreadable(name: str, error: BaseException) -> RequestError:
    if isinstance(error, OSError) and not Path(name).is_dir():
        rule = "model must be a folder, or a Hub model that can be reached or is in the cache"
    else:
        rule = "model must be a language model or a sequence classifier that loads"
    return RequestError(f"{rule}, got {name!r}: {line(error)}")
