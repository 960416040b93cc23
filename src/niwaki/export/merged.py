"""A plain Transformers folder, adapters merged."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import nn

from niwaki.anatomy import sites_of
from niwaki.checkpoint import save


def export_merged(model: nn.Module, path: str | Path, tokenizer: Any = None, overwrite: bool = False) -> None:
    """Write what `niwaki.save` writes, a Transformers folder. Uneven layers load after `import niwaki`.

    Raises:
        RequestError: `path` is not empty, and with `overwrite` holds what Niwaki did not write.
    """
    sites_of(model)
    save(model, path, tokenizer, overwrite)
