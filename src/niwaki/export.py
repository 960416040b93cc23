"""A pruned model for those who do not have Niwaki: ONNX, a merged checkpoint, a checkpoint that brings its own code.

Every export has the signature `(model, path, tokenizer, overwrite)`. `model` is a plain model or a `PeftModel`, whose
adapters are merged in a copy; `path` is the folder to write, new or empty unless `overwrite` (for ONNX also the name
of a file that ends in `.onnx`). What is written takes its name at the end, whole, or not at all.
"""

from __future__ import annotations

import copy
import importlib.util
import inspect
import json
import logging
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import resources
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES as _CAUSAL
from transformers.models.auto.modeling_auto import MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES

from niwaki.anatomy import Site, body_of, family_of, is_language_model, linear_paths, sites_of, weight_of
from niwaki.checkpoint import METHOD, forget_, merged, quiet, save, shapes_of, write_model
from niwaki.errors import RequestError, WorkError
from niwaki.folder import atomic_folder, new_parents
from niwaki.lora import release_
from niwaki.modeling_mobilellm import MODEL_TYPE
from niwaki.surgery import output_inside, stale_numbers

TOLERANCE = 1e-4
"""Largest difference of a logit between onnxruntime and PyTorch."""

_PACKAGES = ("onnx", "onnxruntime", "onnxscript")
_CHECKED = ((1, 5), (1, 16), (2, 11), (5, 24), (8, 32))
_NO_CODE = {
    "gpt_neox": "whose weights have other names in files",
    MODEL_TYPE: "for which Transformers has no class",
}
_CODE = "modeling_niwaki"
_CLASS = "PrunedForSequenceClassification"
_WRITTEN_FOR = "DistilBertForSequenceClassification"


def export_onnx(model: nn.Module, path: str | Path, tokenizer: Any = None, overwrite: bool = False) -> None:
    """Write an ONNX model: `input_ids`, `attention_mask` (and `token_type_ids` of models with segments) -> `logits`.

    All inputs are int64 `[batch, sequence]`, both free; `logits` is float32 `[batch, labels]`. A `path` that ends in
    `.onnx` is that one file; else a folder with `model.onnx`, `config.json` and the tokenizer. The file is run by
    onnxruntime on padded batches of several shapes before it takes its name.

    Raises:
        RequestError: the packages of `niwaki[onnx]` are missing; `path` exists; the model is too large for one file, or
            a language model.
        WorkError: logits that differ from PyTorch's by more than `TOLERANCE`.
    """
    missing = [name for name in _PACKAGES if importlib.util.find_spec(name) is None]
    if missing:
        raise RequestError(f"to onnx needs {', '.join(missing)}, not installed; do: pip install niwaki[onnx]")
    if is_language_model(model):
        raise RequestError("to must be merged or remote-code for a language model (its cache has no graph), got 'onnx'")
    plain = copy.deepcopy(merged(model)).eval().cpu().float()
    release_(plain)
    sites_of(plain)
    target = Path(path)
    if target.suffix != ".onnx":
        with atomic_folder(target, overwrite) as folder:
            _write_onnx(plain, folder / "model.onnx", tokenizer)
            forget_(plain.config)
            plain.config.save_pretrained(folder)
            if tokenizer is not None:
                tokenizer.save_pretrained(folder)
        return
    if target.is_dir() or (target.exists() and not overwrite):
        raise RequestError(f"out must be a new file (or ask for --overwrite), got {str(target)!r}")
    target = target.resolve()
    with new_parents(target), tempfile.TemporaryDirectory(prefix=f".{target.name}-", dir=target.parent) as folder:
        file = Path(folder) / target.name
        _write_onnx(plain, file, tokenizer)
        file.replace(target)


def export_merged(model: nn.Module, path: str | Path, tokenizer: Any = None, overwrite: bool = False) -> None:
    """Write what `niwaki.save` writes, a Transformers folder. Uneven layers load after `import niwaki`.

    Raises:
        RequestError: `path` exists and is not empty.
    """
    sites_of(model)
    save(model, path, tokenizer, overwrite)


def export_remote_code(model: nn.Module, path: str | Path, tokenizer: Any = None, overwrite: bool = False) -> None:
    """Write a folder that loads where Niwaki is not installed, by the short `modeling_niwaki.py` that lies in it.

    `AutoModelForSequenceClassification.from_pretrained(path, trust_remote_code=True)` (`AutoModelForCausalLM` for a
    language model) runs that file; `niwaki.load` reads the same folder and runs none of it. Transformers has no other
    hook for the table in its config, so `from_pretrained(path)` without `trust_remote_code` refuses uneven weights
    (size mismatch), with Niwaki or without.

    Raises:
        RequestError: `path` exists and is not empty; a type of model whose weights Transformers renames in files, which
            it does for its own code alone, or which it does not know.
    """
    plain = merged(model)
    if plain.config.model_type in _NO_CODE:
        why = _NO_CODE[plain.config.model_type]
        raise RequestError(f"to must be merged for a {plain.config.model_type} model, {why}, got 'remote-code'")
    table = _table(plain)
    task = "CausalLM" if is_language_model(plain) else "SequenceClassification"
    classes = _CAUSAL if is_language_model(plain) else MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES
    dense = cast(str, classes[plain.config.model_type])
    code = resources.files("niwaki").joinpath(f"{_CODE}.py").read_text(encoding="utf-8")
    code = code.replace(_WRITTEN_FOR, dense).replace(_CLASS, dense)
    with atomic_folder(path, overwrite) as folder:
        write_model(plain, folder, tokenizer)
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        config.pop("quantization_config", None)
        config |= {
            METHOD: table,
            "architectures": [dense],
            "auto_map": {f"AutoModelFor{task}": f"{_CODE}.{dense}"},
        }
        text = json.dumps(config, indent=2, sort_keys=True)
        (folder / "config.json").write_text(f"{text}\n", encoding="utf-8")
        (folder / f"{_CODE}.py").write_text(code, encoding="utf-8")


EXPORTS = {"onnx": export_onnx, "merged": export_merged, "remote-code": export_remote_code}


def _table(model: PreTrainedModel) -> dict[str, Any]:
    """What `modeling_niwaki.py` must know: the shape of every linear, by its path in the layer; numbers that follow."""
    family, body = family_of(model), body_of(model)
    sites: dict[int, list[Site]] = {}
    for site in sites_of(model):
        sites.setdefault(site.layer, []).append(site)
    shapes = []
    for attention, ffn in sites.values():
        linears = {}
        for site in (attention, ffn):
            paths = linear_paths(family, site.kind)
            for path, linear in zip(paths, (*site.inputs, site.output), strict=True):
                linears[path] = list(weight_of(linear).shape)
        numbers = stale_numbers(attention, family, attention.units)
        shapes.append({"linears": linears, "numbers": numbers, "empty_attention": not attention.units})
    return {
        "layers": shapes_of(model),
        "shapes": shapes,
        "body": next(name for name, module in model.named_modules() if module is body),
        "layers_path": family.layers,
        "attention": family.attention,
        "output_inside": output_inside(family),
    }


class _Logits(nn.Module):
    """The graph that is exported: its inputs by name, the logits alone."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, input_ids: Tensor, attention_mask: Tensor, token_type_ids: Tensor | None = None) -> Tensor:
        more = {} if token_type_ids is None else {"token_type_ids": token_type_ids}
        return self.model(input_ids=input_ids, attention_mask=attention_mask, **more).logits


def _write_onnx(model: PreTrainedModel, file: Path, tokenizer: Any) -> None:
    """Export `model`, in evaluation mode on the CPU, to `file`, and check it there."""
    size = sum(tensor.numel() * tensor.element_size() for tensor in model.state_dict().values())
    if size >= 2**31:  # the limit of a protobuf message
        raise RequestError(f"model must be below 2 GiB to be one ONNX file, got {size / 2**30:.1f} GiB")
    graph = _Logits(model).eval()
    batches = _padded_batches(model, tokenizer)
    example = batches[-1]
    try:
        with _silent_exporter(), torch.no_grad():
            program = torch.onnx.export(
                graph,
                kwargs=example,
                dynamo=True,
                verbose=False,
                input_names=list(example),
                output_names=["logits"],
                dynamic_shapes={name: {0: "batch", 1: "sequence"} for name in example},
            )
            cast(Any, program).save(str(file), external_data=False)
    except torch.onnx.OnnxExporterError as error:
        cause = " ".join(str(error.__cause__ or error).split())[:300]
        raise WorkError(f"onnx: torch could not export this {model.config.model_type} model: {cause}") from error
    _check_onnx(graph, file, batches)


def _check_onnx(graph: nn.Module, file: Path, batches: list[dict[str, Tensor]]) -> None:
    import onnxruntime

    session = onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
    worst, where = 0.0, (0, 0)
    for batch in batches:
        with torch.no_grad():
            expected = graph(**batch)
        found = torch.from_numpy(session.run(["logits"], {name: value.numpy() for name, value in batch.items()})[0])
        difference = float((found - expected).abs().max())
        if not difference <= worst:  # not a number is the worst
            worst, where = difference, tuple(batch["input_ids"].shape)
    if not worst <= TOLERANCE:
        rule = f"onnx: logits must be within {TOLERANCE:g} of PyTorch's"
        raise WorkError(f"{rule}, got a difference of {worst:.3g} at batch {where[0]}, length {where[1]}")


def _padded_batches(model: PreTrainedModel, tokenizer: Any) -> list[dict[str, Tensor]]:
    """Random tokens `[batch, length]` of several shapes; every row but the first is padded on the right."""
    config = cast(Any, model.config)
    generator = torch.Generator().manual_seed(0)
    padding = int(config.pad_token_id or 0)
    # Some families count positions from the padding id on.
    longest = int(config.max_position_embeddings) - padding - 1
    batches = []
    for rows, length in _CHECKED:
        length = min(length, longest)
        ids = torch.randint(min(5, config.vocab_size - 1), config.vocab_size, (rows, length), generator=generator)
        lengths = torch.randint(1, length + 1, (rows, 1), generator=generator)
        lengths[0] = length
        mask = (torch.arange(length)[None] < lengths).long()
        batch = {"input_ids": torch.where(mask.bool(), ids, padding), "attention_mask": mask}
        if _has_segments(model, tokenizer):
            batch["token_type_ids"] = (torch.arange(length)[None] >= lengths // 2).long() * mask
        batches.append(batch)
    return batches


def _has_segments(model: PreTrainedModel, tokenizer: Any) -> bool:
    """Whether the model tells a second segment from the first, and its tokenizer says which tokens are in it."""
    if "token_type_ids" not in inspect.signature(model.forward).parameters:
        return False
    several = int(getattr(model.config, "type_vocab_size", 1)) > 1
    return several and (tokenizer is None or "token_type_ids" in tokenizer.model_input_names)


@contextmanager
def _silent_exporter() -> Iterator[None]:
    """No warnings or log lines of the exporter while open."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "torch.export", "onnxscript", "onnx_ir")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with quiet(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
