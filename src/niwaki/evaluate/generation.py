"""How a language model goes on from a text: token by token, with the keys and values of those before."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn


def feed(model: nn.Module, ids: Tensor) -> Any:
    """Let a model read `ids` `[rows, length]` one token after the other; what it gives for the last."""
    given: Any = None
    for token in ids.split(1, 1):
        past = {} if given is None else {"past_key_values": given.past_key_values}
        given = model(input_ids=token, use_cache=True, **past)
    return given


@torch.inference_mode()
def greedy(model: nn.Module, ids: Tensor, tokens: int) -> Tensor:
    """The `tokens` likeliest tokens `[tokens]` after the text `ids` `[length]`, each one after those before it."""
    given, found = model(input_ids=ids[None], use_cache=True), []
    for _ in range(tokens):
        found.append(given.logits[0, -1].argmax())
        given = model(input_ids=found[-1][None, None], past_key_values=given.past_key_values, use_cache=True)
    return torch.stack(found)
