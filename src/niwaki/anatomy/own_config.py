"""A config of a model's own: one object may be that of several models, and what is written is true of one of them."""

from __future__ import annotations

import copy
from typing import Any, cast

from torch import nn

from niwaki.anatomy.sites import unwrap


def own_config_(model: nn.Module) -> Any:
    """Give `model`, and every part of it that has the same config, a copy that is theirs alone; returns it."""
    inner = unwrap(model)
    shared: Any = inner.config
    own = copy.deepcopy(shared)
    for module in model.modules():
        config = vars(module).get("config")
        if config is shared:
            cast(Any, module).config = own
        elif getattr(config, "__dict__", {}).get("_shared") is shared:  # see `surgery.modeling_niwaki.OwnConfig`
            cast(Any, config)._shared = own
    return own
