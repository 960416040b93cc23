"""Which adapters can be pruned: LoRA whose effective weight is `W + s * B @ A`."""

from __future__ import annotations

from peft import PeftConfig, PeftModel
from torch import nn

from niwaki.anatomy import (
    check_task,
)
from niwaki.errors import RequestError


def check_model(model: nn.Module) -> None:
    """Refuse, before any work, a model that nothing here can be done with.

    Raises:
        RequestError: its family, its task or its adapters are not supported.
    """
    check_task(model)
    check_adapters(model)


def check_adapters(model: nn.Module) -> None:
    """Refuse adapters whose effective weight is not `W + s * B @ A`.

    Raises:
        RequestError: a DoRA adapter, or a tuner other than LoRA.
    """
    if not isinstance(model, PeftModel):
        return
    for name, config in model.peft_config.items():
        check_adapter(name, config)


def check_adapter(name: str, config: PeftConfig) -> None:
    """Refuse an adapter by its config.

    Raises:
        RequestError: see `check_adapters`.
    """
    if str(config.peft_type).rpartition(".")[2] != "LORA":
        raise RequestError(f"adapter {name!r} must be LoRA, got {config.peft_type!s}; merge it first")
    if getattr(config, "use_dora", False):
        raise RequestError(f"adapter {name!r} must be plain or rank-stabilised LoRA, got DoRA; merge it first")
