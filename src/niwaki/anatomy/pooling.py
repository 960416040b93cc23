"""How a model without a task head makes one vector a text of the vectors of its tokens: what a sentence encoder is.

Transformers has no place for it: Sentence Transformers keeps it beside the model, in modules of its own (see
`niwaki.checkpoint.sentence`). Here a model carries it along, so that scores, recovery and fidelity look at texts.
"""

from __future__ import annotations

from typing import Protocol, cast

from torch import Tensor, nn

from niwaki.anatomy.sites import unwrap


class Pooling(Protocol):
    """Vectors of tokens `[texts, length, width]` and True at real ones `[texts, length]` -> `[texts, size]`."""

    def __call__(self, states: Tensor, keep: Tensor) -> Tensor: ...


def pool_by_(model: nn.Module, pooling: Pooling) -> None:
    """Have `model` carry `pooling` from now on, also its copies; it is no module of the model and in no state dict."""
    vars(unwrap(model))["_niwaki_pooling"] = pooling


def pooling_of(model: nn.Module) -> Pooling | None:
    """What the model makes one vector a text by; None where it gives one for each token."""
    return cast("Pooling | None", vars(unwrap(model)).get("_niwaki_pooling"))
