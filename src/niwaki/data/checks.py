"""Batches as a caller gives them -> a list of plain dicts that the model takes; anything else is refused.

Every verb of the Python API begins here, before it changes anything. Deeper in, the same faults are an IndexError, a
statistic that is not finite, or a result that is wrong without a word.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from niwaki.data.batches import UNLABELLED, without_labels, without_labels_after_padding
from niwaki.errors import RequestError

_PLACES = ("start_positions", "end_positions")


@dataclass(frozen=True)
class Accepts:
    """What a model takes: ids below `vocabulary`, at most `longest` tokens in a row, labels of one kind.

    labels: "class" is `[rows]`, whole numbers below `classes`; "number" is `[rows]`, finite; "several" is
        `[rows, classes]`, 0 or 1; "token" is `[rows, length]`, whole numbers below `classes`, or -100; "choice" is
        `[rows]`, which of the texts of a row `[rows, texts, length]`; "span" is `start_positions` and `end_positions`
        `[rows]`, 0 to `length` (which is no place: the answer was cut off); with "none" labels are left out.
    padding: the id that a model takes for the end of a row, wherever the mask ends; None where it goes by the mask.
    shifts: the label of a token is predicted from the one before it.
    """

    vocabulary: int
    longest: int
    labels: str
    classes: int
    padding: int | None = None
    shifts: bool = False


def checked_batches(
    accepts: Accepts,
    data: Iterable[Mapping[str, Any]],
    name: str = "data",
    *,
    empty: bool = False,
    labelled: bool = False,
) -> list[dict[str, Any]]:
    """The batches of `data`, each a plain dict of tensors; the parameter is called `name` in errors.

    `empty` lets there be none; `labelled` asks each for `labels`.

    Raises:
        RequestError: no iterable of batches, a batch that is no mapping of tensors, ids, a mask or labels that the
            model does not take, a row without a real token; it says which batch.
    """
    wanted = f"{name} must be an iterable of batches (dicts of tensors, as a collator gives them)"
    if isinstance(data, Mapping):
        raise RequestError(f"{wanted}, got one mapping with {_listed(data)}; for a single batch give [batch]")
    if isinstance(data, str | bytes | Tensor) or not isinstance(data, Iterable):
        raise RequestError(f"{wanted}, got {_kind(data)}")
    batches = []
    for number, batch in enumerate(data):
        if not isinstance(batch, Mapping):
            raise RequestError(f"{wanted}, got {_kind(batch)} as batch {number}")
        try:
            batches.append(_checked(accepts, dict(batch), labelled))
        except _WrongBatchError as error:
            raise RequestError(f"{name}: batch {number}: {error}") from error
    if not batches and not empty:
        raise RequestError(f"{name} must give at least one batch, got none (a generator gives its batches only once)")
    return batches


class _WrongBatchError(Exception):
    """What of a batch must be how, and what it is."""


def _checked(accepts: Accepts, batch: dict[str, Any], labelled: bool) -> dict[str, Any]:
    if "input_ids" not in batch:
        raise _WrongBatchError(f"input_ids must be there, got {_listed(batch)}")
    if accepts.labels == "none":
        batch = without_labels(batch)
    for key in _PLACES if accepts.labels == "span" else ("labels",):
        if labelled and batch.get(key) is None:
            raise _WrongBatchError(f"{key} must be there to train on, got {_listed(batch)}")
    for key, value in [*batch.items()]:
        if value is not None and not isinstance(value, Tensor):
            hint = "; a collator makes tensors of rows" if isinstance(value, list) else ""
            raise _WrongBatchError(f"{key} must be a tensor, got {_kind(value)}{hint}")
        if value is not None and value.is_meta:
            raise _WrongBatchError(f"{key} must hold values, got a tensor on the meta device")
        if value is not None and value.is_inference():  # autograd keeps none that was made under inference mode
            batch[key] = value.clone()
    _check_ids(batch["input_ids"], accepts)
    shape = tuple(batch["input_ids"].shape)
    if (mask := batch.get("attention_mask")) is not None:
        _check_mask(mask, shape)
        _check_padding(batch["input_ids"], mask, accepts.padding)
    if (kinds := batch.get("token_type_ids")) is not None and tuple(kinds.shape) != shape:
        raise _WrongBatchError(f"token_type_ids must be {_shape(shape)} as input_ids, got {_shape(kinds)}")
    if accepts.labels == "span":
        for key in _PLACES:
            if (places := batch.get(key)) is not None:
                _check_whole_numbers(places, key, shape[:1], shape[-1] + 1, "the places of a row, or its length")
                if labelled and bool((places == shape[-1]).all()):
                    rule = f"{key} must be a place in one row at least, for a loss to be taken"
                    raise _WrongBatchError(f"{rule}, got {shape[-1]}, the length, in every row")
    elif (labels := batch.get("labels")) is not None:
        _check_labels(labels, accepts, shape)
    return without_labels_after_padding(batch) if accepts.shifts else batch


def _check_ids(ids: Any, accepts: Accepts) -> None:
    if not isinstance(ids, Tensor) or ids.dtype not in (torch.int64, torch.int32):
        found = _kind(ids) if not isinstance(ids, Tensor) else _dtype(ids)
        raise _WrongBatchError(f"input_ids must be whole numbers (int64 or int32), got {found}")
    wanted = "[rows, texts, length]" if accepts.labels == "choice" else "[rows, length]"
    if ids.dim() != wanted.count(",") + 1 or not ids.shape[0]:
        raise _WrongBatchError(f"input_ids must be {wanted} with at least one row, got {_shape(ids)}")
    if not ids.shape[-1] or not ids.numel():
        raise _WrongBatchError(f"every row must have at least one token, got input_ids of {_shape(ids)}")
    if ids.shape[-1] > accepts.longest:
        raise _WrongBatchError(f"rows must have at most the model's {accepts.longest} tokens, got {ids.shape[-1]}")
    lowest, highest = int(ids.min()), int(ids.max())
    if lowest < 0 or highest >= accepts.vocabulary:
        wrong = lowest if lowest < 0 else highest
        raise _WrongBatchError(f"input_ids must be 0 to {accepts.vocabulary - 1}, the model's tokens, got {wrong}")


def _check_mask(mask: Tensor, shape: tuple[int, ...]) -> None:
    if tuple(mask.shape) != shape:
        raise _WrongBatchError(f"attention_mask must be {_shape(shape)} as input_ids, got {_shape(mask)}")
    if not bool(((mask == 0) | (mask == 1)).all()):
        raise _WrongBatchError(f"attention_mask must be 1 for real tokens and 0 for padding, got {_dtype(mask)} others")
    bare = (mask.sum(-1) == 0).nonzero().flatten().tolist()
    if bare:
        raise _WrongBatchError(f"every row must have real tokens, got row {bare[0]} with padding alone")


def _check_padding(ids: Tensor, mask: Tensor, padding: int | None) -> None:
    if padding is None:
        return
    behind = mask.flip(1).cumsum(1).flip(1) == 0
    wrong = ids[behind & (ids != padding)]
    if len(wrong):
        rule = f"padding must have id {padding}, the model's pad_token_id, by which it finds the end of a row"
        raise _WrongBatchError(f"{rule}, got {int(wrong[0])}")


def _check_labels(labels: Tensor, accepts: Accepts, shape: tuple[int, ...]) -> None:
    rows, kind = shape[0], accepts.labels
    if kind == "number":
        _check_shape(labels, "labels", (rows,))
        if labels.dtype == torch.bool or not bool(torch.isfinite(labels).all()):
            found = "bool" if labels.dtype == torch.bool else "others"
            raise _WrongBatchError(f"labels must be finite numbers for a model with one output, got {found}")
    elif kind == "several":
        _check_shape(labels, "labels", (rows, accepts.classes))
        if not labels.is_floating_point() or not bool(((labels == 0) | (labels == 1)).all()):
            raise _WrongBatchError(f"labels must be floats that are 0 or 1, got {_dtype(labels)}")
    elif kind == "choice":
        _check_whole_numbers(labels, "labels", (rows,), shape[1], "the texts of a row")
    else:
        wanted = shape if kind == "token" else (rows,)
        what = f"a model of {accepts.classes} classes"
        _check_whole_numbers(labels, "labels", wanted, accepts.classes, what, left_out=kind == "token")


def _check_shape(labels: Tensor, key: str, shape: tuple[int, ...]) -> None:
    if tuple(labels.shape) != shape:
        raise _WrongBatchError(f"{key} must be {_shape(shape)} for this model, got {_shape(labels)}")


def _check_whole_numbers(
    labels: Tensor, key: str, shape: tuple[int, ...], count: int, what: str, *, left_out: bool = False
) -> None:
    _check_shape(labels, key, shape)
    if labels.dtype != torch.int64:
        raise _WrongBatchError(f"{key} must be int64 for {what}, got {_dtype(labels)}")
    outside = (labels < 0) | (labels >= count)
    wrong = labels[outside & (labels != UNLABELLED) if left_out else outside]
    if len(wrong):
        raise _WrongBatchError(f"{key} must be 0 to {count - 1}{' or -100' if left_out else ''}, got {int(wrong[0])}")


def _listed(batch: Mapping[Any, Any]) -> str:
    return ", ".join(map(str, batch)) or "nothing"


def _kind(value: Any) -> str:
    kind = type(value).__name__
    return f"a {kind} of {len(value)}" if isinstance(value, list | tuple) else kind


def _dtype(tensor: Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")


def _shape(of: Tensor | tuple[int, ...]) -> str:
    return str(list(of.shape if isinstance(of, Tensor) else of))
