"""Attention as one node of the graph, which ONNX Runtime has a kernel for: no matrix of weights is written anywhere.

Transformers lets a model compute its attention by a function of one's own. While a graph is exported that function is
`com.microsoft::MultiHeadAttention` of ONNX Runtime's contributed operators, with as many heads as the layer has left. A
model that computes its attention itself (MPNet, whose scores have a bias) is exported operation by operation.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.masking_utils import sdpa_mask

from niwaki.anatomy import family_of
from niwaki.anatomy.attention import attention_by, for_every_query_head

_NAME = "niwaki-onnx"


@contextmanager
def attention_as_one_node(model: PreTrainedModel) -> Iterator[None]:
    """While open, `model` can be exported and not run: where it can, its attention is one node."""
    if model.config._attn_implementation != "sdpa" or not family_of(model).attention_interface:
        yield
        return
    with attention_by(model, _NAME, _attend, sdpa_mask):
        yield


def _attend(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    is_causal: bool | None = None,
    **unused: Any,
) -> tuple[Tensor, None]:
    """As attention functions of Transformers: `[batch, heads, length, width]` -> `[batch, length, heads, width]`."""
    del unused
    key, value = for_every_query_head(query, key, value)
    batch, heads, length, width = query.shape
    causal = getattr(module, "is_causal", True) if is_causal is None else is_causal
    bias = attention_mask
    if bias is not None and bias.dtype == torch.bool:
        bias = torch.where(bias, 0.0, torch.finfo(query.dtype).min)
    if bias is not None:
        bias = bias.expand(-1, -1, length, -1)  # some masks are alike for all queries, which the node must see
    found = torch.onnx.ops.symbolic(
        "com.microsoft::MultiHeadAttention",
        [*(each.transpose(1, 2).flatten(2) for each in (query, key, value)), None, None, bias],
        {
            "num_heads": heads,
            "scale": width**-0.5 if scaling is None else float(scaling),
            "unidirectional": int(bool(causal) and attention_mask is None),
        },
        dtype=query.dtype,
        shape=(batch, length, heads * value.shape[3]),
        version=1,
    )
    return found.unflatten(2, (heads, value.shape[3])), None
