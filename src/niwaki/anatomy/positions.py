"""How long an input may be: what the table of positions holds, or the config says."""

from __future__ import annotations

from typing import Any, cast

from torch import nn

from niwaki.anatomy.sites import body_of, unwrap


def longest_input(model: nn.Module) -> int:
    """The most tokens that a row may have. RoBERTa and its kin count positions from the padding id on."""
    table = getattr(getattr(body_of(model), "embeddings", None), "position_embeddings", None)
    if not isinstance(table, nn.Embedding):
        return int(cast(Any, unwrap(model).config).max_position_embeddings)
    return table.num_embeddings - (0 if table.padding_idx is None else table.padding_idx + 1)
