"""ONNX: one file, checked with onnxruntime on padded batches before it takes its name."""

from __future__ import annotations

import copy
import importlib.util
import inspect
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from niwaki.adapters import remove_masks_
from niwaki.anatomy import check_task, is_language_model, longest_input, supported_task
from niwaki.checkpoint import forget_, merged, quiet
from niwaki.checkpoint.folder import atomic_file, atomic_folder
from niwaki.errors import RequestError, WorkError

TOLERANCE = 1e-4
"""Largest difference of a logit between onnxruntime and PyTorch."""


_PACKAGES = ("onnx", "onnxruntime", "onnxscript")


_MARK = "niwaki"
"""Key among the metadata of a model that Niwaki wrote."""


_CHECKED = ((1, 5), (1, 16), (2, 11), (5, 24), (8, 32))


def export_onnx(model: nn.Module, path: str | Path, tokenizer: Any = None, overwrite: bool = False) -> None:
    """Write an ONNX model: `input_ids`, `attention_mask` (`token_type_ids` where there are segments) -> what it says.

    All inputs are int64 `[batch, sequence]`, both free; `[batch, choices, sequence]` where a model chooses among texts.
    Outputs are float32 and called as in Transformers: `logits`; `start_logits` and `end_logits`; `last_hidden_state`. A
    `path` that ends in `.onnx` is that one file; else a folder with `model.onnx`, `config.json` and the tokenizer. The
    file is run by onnxruntime on padded batches of several shapes before it takes its name.

    Raises:
        RequestError: the packages of `niwaki[onnx]` are missing; `path` exists (with `overwrite`: and is not what
            Niwaki wrote); the model is too large for one file, or a language model.
        WorkError: logits that differ from PyTorch's by more than `TOLERANCE`.
    """
    missing = [name for name in _PACKAGES if importlib.util.find_spec(name) is None]
    if missing:
        raise RequestError(f"to onnx needs {', '.join(missing)}, not installed; do: pip install niwaki[onnx]")
    if is_language_model(model):
        raise RequestError("to must be merged or remote-code for a language model (its cache has no graph), got 'onnx'")
    plain = copy.deepcopy(merged(model)).eval().cpu().float()
    remove_masks_(plain)
    check_task(plain)
    target = Path(path)
    if target.suffix != ".onnx":
        with atomic_folder(target, overwrite) as folder:
            _write_onnx(plain, folder / "model.onnx", tokenizer)
            forget_(plain.config)
            plain.config.save_pretrained(folder)
            if tokenizer is not None:
                tokenizer.save_pretrained(folder)
        return
    with atomic_file(target, overwrite, _is_ours, "an ONNX model") as file:
        _write_onnx(plain, file, tokenizer)


class _Graph(nn.Module):
    """The graph that is exported: its inputs by name, and of what the model gives that which its task is about."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model, self.names = model, supported_task(model).outputs

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor, token_type_ids: Tensor | None = None
    ) -> tuple[Tensor, ...]:
        more = {} if token_type_ids is None else {"token_type_ids": token_type_ids}
        found = self.model(input_ids=input_ids, attention_mask=attention_mask, **more)
        return tuple(found[name] for name in self.names)


def _write_onnx(model: PreTrainedModel, file: Path, tokenizer: Any) -> None:
    """Export `model`, in evaluation mode on the CPU, to `file`, and check it there."""
    size = sum(tensor.numel() * tensor.element_size() for tensor in model.state_dict().values())
    if size >= 2**31:  # the limit of a protobuf message
        raise RequestError(f"model must be below 2 GiB to be one ONNX file, got {size / 2**30:.1f} GiB")
    graph = _Graph(model).eval()
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
                output_names=list(graph.names),
                dynamic_shapes={name: dict(enumerate(_axes(value))) for name, value in example.items()},
            )
            cast(Any, program).model.metadata_props[_MARK] = "1"
            cast(Any, program).save(str(file), external_data=False)
    except torch.onnx.OnnxExporterError as error:
        cause = " ".join(str(error.__cause__ or error).split())[:300]
        raise WorkError(f"onnx: torch could not export this {model.config.model_type} model: {cause}") from error
    _check_onnx(graph, file, batches)


def _is_ours(file: Path) -> bool:
    """Whether a file is an ONNX model that Niwaki wrote."""
    import onnx

    try:
        found = onnx.load(str(file), load_external_data=False)
    except Exception:  # whatever it is, and whatever protobuf says of it
        return False
    return any(entry.key == _MARK for entry in found.metadata_props)


def _axes(ids: Tensor) -> tuple[str, ...]:
    return ("batch", "sequence") if ids.dim() == 2 else ("batch", "choices", "sequence")


def _check_onnx(graph: _Graph, file: Path, batches: list[dict[str, Tensor]]) -> None:
    import onnxruntime

    session = onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
    worst, where = 0.0, (0, 0)
    for batch in batches:
        with torch.no_grad():
            expected = graph(**batch)
        given = session.run(list(graph.names), {name: value.numpy() for name, value in batch.items()})
        difference = max(
            float((torch.from_numpy(found) - wanted).abs().max()) for found, wanted in zip(given, expected, strict=True)
        )
        if not difference <= worst:  # not a number is the worst
            worst, where = difference, tuple(batch["input_ids"].shape)
    if not worst <= TOLERANCE:
        rule = f"onnx: logits must be within {TOLERANCE:g} of PyTorch's"
        raise WorkError(f"{rule}, got a difference of {worst:.3g} at batch {where[0]}, length {where[1]}")


def _padded_batches(model: PreTrainedModel, tokenizer: Any) -> list[dict[str, Tensor]]:
    """Random tokens `[batch, length]` of several shapes; every row but the first is padded on the right.

    No token of a row is the padding id, by which some models count positions, and others find the end of a row.
    """
    config, longest = cast(Any, model.config), longest_input(model)
    generator = torch.Generator().manual_seed(0)
    padding = _padding(model)
    words = [token for token in range(config.vocab_size) if token != padding]
    words = torch.tensor(words[min(5, len(words) - 1) :])
    batches = []
    for rows, length in _CHECKED:
        length = min(length, longest)
        ids = words[torch.randint(len(words), (rows, length), generator=generator)]
        lengths = torch.randint(1, length + 1, (rows, 1), generator=generator)
        lengths[0] = length
        mask = (torch.arange(length)[None] < lengths).long()
        batch = {"input_ids": torch.where(mask.bool(), ids, padding), "attention_mask": mask}
        if _has_segments(model, tokenizer):
            batch["token_type_ids"] = (torch.arange(length)[None] >= lengths // 2).long() * mask
        if supported_task(model).labels == "choice":  # each row twice
            batch = {name: value[:, None].repeat(1, 2, 1) for name, value in batch.items()}
        batches.append(batch)
    return batches


def _padding(model: PreTrainedModel) -> int:
    """The padding id of the model's config; 0 where it has none, or one that is not in its vocabulary."""
    padding = cast(Any, model.config).pad_token_id
    return padding if padding is not None and 0 <= padding < cast(Any, model.config).vocab_size else 0


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
