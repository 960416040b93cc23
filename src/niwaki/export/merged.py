"""A plain Transformers folder, adapters merged and masks written into the weights."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

from torch import nn

from niwaki.adapters import masks_of, remove_masks_
from niwaki.anatomy import check_task
from niwaki.checkpoint import merged, save


def export_merged(model: nn.Module, path: str | Path, tokenizer: Any = None, overwrite: bool = False) -> None:
    """Write a Transformers folder without anything of Niwaki's where layers are even; uneven ones need its import.

    Zeros are in the weights, and no mask is beside them: other tools know none.

    Raises:
        RequestError: `path` is not empty, and with `overwrite` holds what Niwaki did not write.
    """
    check_task(model)
    plain = merged(model)
    if masks_of(plain):
        plain = copy.deepcopy(plain)
        remove_masks_(plain)
    save(plain, path, tokenizer, overwrite)
