"""Calibration rows as the packages for language models take them: one at a time, without padding, without labels."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from niwaki.data import token_mask, without_labels


def one_by_one(batches: Sequence[dict[str, Tensor]]) -> DataLoader[Any]:
    """All rows of `batches`, as batches of one."""
    rows = []
    for batch in batches:
        for row, length in enumerate(token_mask(batch).sum(1).tolist()):
            rows.append({name: value[row : row + 1, :length] for name, value in without_labels(batch).items()})
    return DataLoader(cast("Dataset[Any]", rows), batch_size=None)
