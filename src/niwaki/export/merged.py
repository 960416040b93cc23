"""A plain Transformers folder, adapters merged and masks written into the weights."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

from torch import nn

from niwaki.adapters import masks_of, remove_masks_
from niwaki.anatomy import check_task
from niwaki.checkpoint import merged, write_model
from niwaki.export.destination import place_of


def export_merged(model: nn.Module, path: str | Path, tokenizer: Any = None, overwrite: bool = False) -> None:
    """Write a Transformers folder without anything of Niwaki's where layers are even; uneven ones need its import.

    Zeros are in the weights, and no mask is beside them: other tools know none.

    Raises:
        RequestError: `path` is not empty, and with `overwrite` holds what Niwaki did not write.
    """
    with place_of(path, overwrite) as folder:
        fill_merged(model, folder, tokenizer)


def fill_merged(model: nn.Module, folder: Path, tokenizer: Any = None) -> None:
    """Write what `export_merged` does into a folder that is there."""
    check_task(model)
    plain = merged(model)
    if masks_of(plain):
        plain = copy.deepcopy(plain)
        remove_masks_(plain)
    write_model(plain, folder, tokenizer)
