"""A data set of the Hub -> a frame of one split, with the names of its classes. No code of a data set is run.

Which split: as asked; for training `train`; for evaluation `validation`, and `test` where there is none. Names of
classes (`ClassLabel`) take the place of their numbers: the numbers are the data set's own, a model has others.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import pandas as pd

from niwaki.errors import RequestError


@dataclass(frozen=True)
class HubSplit:
    """One split: its name, its rows, and by column the names of classes in the order of the data set."""

    split: str
    frame: pd.DataFrame
    classes: dict[str, tuple[str, ...]]


class _NoSplitError(Exception):
    """The splits that there are."""


def read_hub(source: str, role: str, split: str | None = None, config: str | None = None) -> HubSplit:
    """`split` of the data set `source`, which is `owner/name`, `name` or `glue/task`; `role` is train or validation.

    Raises:
        RequestError: no such data set, split or config (those that there are are named), or the Hub cannot be reached.
    """
    parameter, asked = ("train_data", "train_split") if role == "train" else ("eval_data", "eval_split")
    name, task = source, config
    if source.startswith("glue/"):
        name, task = "glue", source.removeprefix("glue/")
        if config is not None:
            raise RequestError(f"data_config must be asked for glue, not for {source!r}, got {config!r}")
    wanted = split or role
    try:
        try:
            found = _load(name, task, wanted, parameter, source)
        except _NoSplitError as error:
            splits = error.args[0]
            if split or role == "train" or "test" not in splits or any(s.startswith("validation") for s in splits):
                raise
            wanted = "test"
            found = _load(name, task, wanted, parameter, source)
    except _NoSplitError as error:
        seen = ", ".join(error.args[0])
        raise RequestError(f"{asked} must be one of {seen} for {source!r}, got {wanted!r}") from error
    frame = found.to_pandas()
    return HubSplit(wanted, frame, name_classes_(frame, _classes_of(found.features)))


def name_classes_(frame: pd.DataFrame, classes: dict[str, tuple[str, ...]]) -> dict[str, tuple[str, ...]]:
    """Put the names of classes in the place of their numbers, in place; None for a row without one (often -1)."""
    for column, names in classes.items():
        numbers = frame[column].tolist()
        frame[column] = pd.Series(
            [
                [_named(i, names) for i in value] if hasattr(value, "__len__") else _named(value, names)
                for value in numbers
            ],
            dtype=object,
        )
    return classes


def _named(number: Any, names: tuple[str, ...]) -> str | None:
    return names[int(number)] if not pd.isna(number) and 0 <= number < len(names) else None


def _classes_of(features: Mapping[str, Any] | None) -> dict[str, tuple[str, ...]]:
    from datasets import ClassLabel

    # The classes of a column, or of the elements of one of lists.
    found = {column: getattr(feature, "feature", feature) for column, feature in (features or {}).items()}
    return {column: tuple(feature.names) for column, feature in found.items() if isinstance(feature, ClassLabel)}


def _load(name: str, config: str | None, split: str, parameter: str, source: str) -> Any:
    """The split, as `datasets` gives it.

    Raises:
        _NoSplitError: another split than asked. RequestError: anything else.
    """
    from datasets import load_dataset

    try:
        found = load_dataset(name, config, split=split)
    except Exception as error:  # of any kind: `datasets`, the Hub's client and its connections have no common one
        line = " ".join(str(error).split())
        listed = re.search(r"[Uu]nknown split.*?\[(.*?)\]", line)
        if listed:
            raise _NoSplitError(_words(listed[1])) from error
        listed = re.search(r"(?:available configs: |Available: )\[(.*?)\]", line)
        if listed:
            rule = f"data_config must be one of {', '.join(_words(listed[1]))} for {source!r}"
            raise RequestError(f"{rule}, got {config!r}") from error
        rule = f"{parameter} must be an existing file or a Hub data set"
        raise RequestError(f"{rule}, got {source!r}: {line[:200] or type(error).__name__}") from error
    if isinstance(found, Mapping):
        if split not in found:
            raise _NoSplitError([str(name) for name in found])
        return found[split]
    return found


def _words(listed: str) -> list[str]:
    return re.findall(r"'([^']*)'", listed)
