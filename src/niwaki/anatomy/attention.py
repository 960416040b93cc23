"""A model whose attention is computed by a function of ours for a while, as the attention interface lets it be."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel


@contextmanager
def attention_by(
    model: PreTrainedModel, name: str, attend: Callable[..., Any], mask: Callable[..., Any]
) -> Iterator[None]:
    """While open, every layer of `model` calls `attend` with what `mask` makes of the padding, known as `name`.

    The model is of a family with `attention_interface`. A name without a mask function of its own would get no masks.
    """
    before = model.config._attn_implementation or "eager"
    AttentionInterface.register(name, attend)
    AttentionMaskInterface.register(name, mask)
    try:
        model.set_attn_implementation(name)
        yield
    finally:
        model.set_attn_implementation(before)


def for_every_query_head(query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
    """Keys and values `[batch, query heads, length, width]`: each repeated for the query heads that share it."""
    shared = query.shape[1] // max(1, key.shape[1])
    if shared == 1:  # a graph would hold nodes that repeat nothing
        return key, value
    return key.repeat_interleave(shared, 1), value.repeat_interleave(shared, 1)
