"""Attention probabilities where fused kernels return none: collected for one pass, reduced to sums per head at once.

For a query q of a row with K real keys and head h, let p be the distribution over keys. Two variances are summed:

- over keys: `sum_k (p_k - 1/K)^2`, how far the distribution is from spreading evenly (0: an even spread);
- over inputs: the same around the row's mean distribution over its queries, `sum_k (p_qk - mean_q p_qk)^2`: how
  much the head's pattern changes from query to query (0: the same pattern whatever the query).

A head that looks everywhere alike, or at the same place whatever it reads, does not vary: the seed's text calls it
redundant. Padding keys and padding queries do not count. K is the number of real keys that the query may see: in a
causal model itself and what came before it, in a sliding window what lies in it. The heads of one unit are taken
together.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from transformers.masking_utils import eager_mask

from niwaki.anatomy import Site, family_of, unwrap
from niwaki.anatomy.attention import attention_by, for_every_query_head
from niwaki.observe.statistics import UnitSums

_NAME = "niwaki_observed"


def _observed_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    softcap: float | None = None,
    **_: Any,
) -> tuple[Tensor, Tensor]:
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    key, value = for_every_query_head(query, key, value)
    scores = query @ key.transpose(2, 3) * scale
    if softcap is not None:
        scores = softcap * torch.tanh(scores / softcap)
    if attention_mask is not None:
        scores = scores + attention_mask
    probabilities = scores.softmax(-1)
    mixed = (probabilities @ value).transpose(1, 2).contiguous()
    if attention_mask is not None:  # of padding, of what comes later, of what is outside a sliding window
        probabilities = probabilities.masked_fill(attention_mask < torch.finfo(scores.dtype).min / 2, torch.nan)
    return mixed, probabilities


@contextmanager
def attention_seen(
    model: nn.Module, sites: Iterable[Site], keep: Tensor, sums: Mapping[str, UnitSums]
) -> Iterator[None]:
    """While open, each forward pass adds what it shows of the heads of `sites` to their `sums`, by name of the site.

    `keep` `[rows, length]` says which tokens are real. A map is forgotten as soon as it is summed.
    """
    inner = unwrap(model)
    hooks = []
    for site in sites:
        if site.attention is None:
            continue

        def add(_module: nn.Module, _args: Any, output: Any, site: Site = site) -> None:
            if output[1] is None:  # a site without heads
                rows, length = output[0].shape[:2]
                seen = output[0].new_zeros(rows, 0, length, length)
            else:
                seen = output[1].detach()
            sums[site.name].attention += attention_moments(seen.float(), keep, site)

        hooks.append(site.attention.register_forward_hook(add))
    asked, by_us = bool(inner.config.output_attentions), family_of(inner).attention_interface
    try:
        with ExitStack() as stack:
            if by_us:
                stack.enter_context(attention_by(inner, _NAME, _observed_attention, eager_mask))
            else:
                inner.config.output_attentions = True
            yield
    finally:
        if not by_us:
            inner.config.output_attentions = asked
        for hook in hooks:
            hook.remove()


def attention_moments(probabilities: Tensor, keep: Tensor, site: Site) -> Tensor:
    """Sums `[units, 3]` of one batch: variance over keys, over inputs, and the count of (row, query) pairs.

    `probabilities` `[rows, heads, queries, keys]` are NaN, or just 0, at keys that a query may not see.
    """
    real = keep.to(probabilities)
    keys = real[:, None, None, :]
    queries = real[:, None, :, None]
    count = real.sum(1).clamp(min=1)[:, None, None, None]  # a row of padding alone adds nothing
    visible = keys.expand(-1, 1, keep.shape[1], -1).tril() if site.causal else keys
    if probabilities.shape[1]:  # all heads of a layer see the same
        visible = visible * ~probabilities[:, :1].isnan()
    p = probabilities.nan_to_num(0.0) * keys
    even = 1 / visible.sum(-1, keepdim=True).clamp(min=1)
    over_keys = ((p - even).square() * visible).sum(-1, keepdim=True) * queries
    mean = (p * queries).sum(2, keepdim=True) / count
    over_inputs = (p - mean).square().sum(-1, keepdim=True) * queries
    pairs = torch.full((p.shape[1],), float(real.sum()), device=p.device)
    sums = torch.stack([over_keys.sum((0, 2, 3)), over_inputs.sum((0, 2, 3)), pairs], 1)
    return sums.reshape(site.units, -1, 3).sum(1) if site.units else sums
