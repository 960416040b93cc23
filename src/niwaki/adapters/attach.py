"""New LoRA around a plain model, and which of its parameters are trained."""

from __future__ import annotations

import warnings
from collections.abc import Collection
from itertools import pairwise
from typing import Any, cast

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from peft.tuners.lora import LoraLayer
from torch import nn

from niwaki.adapters.masked_lora import mask_adapters_
from niwaki.anatomy import (
    body_of,
    check_units,
    layers_of,
    sites_of,
    supported_task,
    unwrap,
    weight_of,
)
from niwaki.config.finetune import LORA_RANK
from niwaki.errors import RequestError
from niwaki.numerics.layout import is_transposed
from niwaki.numerics.seeds import seeded

_SAVED_WITH = ("modules_to_save", "trainable_tokens_delta")


def attach_lora(model: nn.Module, rank: int, *, seed: int = 0) -> PeftModel:
    """A `PeftModel` around `model` (changed in place) with LoRA on all linears of the blocks, and the task head saved.

    `lora_alpha` is twice the rank; the factors are drawn from `seed`. Linears that lost all their rows or columns get
    no factors. A head that predicts words, which may be the embedding, is left as it is.

    Raises:
        RequestError: all of them did.
    """
    check_units(model)
    inner = unwrap(model)
    linears = {
        linear for site in sites_of(inner) for linear in (*site.inputs, site.output) if weight_of(linear).numel() > 0
    }
    config = LoraConfig(
        task_type=supported_task(inner).peft,
        fan_in_fan_out=any(is_transposed(linear) for linear in linears),
        r=rank,
        lora_alpha=2 * rank,
        target_modules=[name for name, module in inner.named_modules() if module in linears],
        modules_to_save=_head_names(inner),
    )
    with warnings.catch_warnings(), seeded(seed):
        # PEFT asks Transformers by the old name.
        warnings.filterwarnings("ignore", ".is_gradient_checkpointing. is deprecated", FutureWarning)
        model = cast(PeftModel, get_peft_model(inner, config))
    mask_adapters_(model)
    return model


def to_train_(model: nn.Module, rank: int, *, seed: int = 0) -> PeftModel:
    """The `PeftModel` to train: `model` if it is one, else with new LoRA of this rank around it (see `attach_lora`).

    What the active adapters own requires gradients, and nothing else.
    """
    tuned = model if isinstance(model, PeftModel) else attach_lora(model, rank, seed=seed)
    owned = _owned(tuned)
    for name, parameter in tuned.named_parameters():
        parameter.requires_grad_(name in owned)
    return tuned


def weights_to_train_(model: nn.Module) -> nn.Module:
    """`model`, of which all weights that are left in the blocks require gradients, and what `to_train_` would train.

    Of a plain model that is its task head.
    """
    trained = _with_blocks(model)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name in trained)
    return model


def _with_blocks(model: nn.Module) -> dict[str, nn.Parameter]:
    """The parameters of the blocks but for adapters that are not active, and what is trained beside them, by name."""
    beside = _owned(model) if isinstance(model, PeftModel) else _of_heads(unwrap(model))
    blocks = {id(parameter) for layer in layers_of(model) for parameter in layer.parameters()}
    return beside | {
        name: parameter
        for name, parameter in model.named_parameters()
        if id(parameter) in blocks and not any(part.startswith("lora_") for part in name.split("."))
    }


def check_trainable(model: nn.Module, rank: int | None = None, *, full: bool = False) -> None:
    """Refuse, before anything is changed, a model whose adapters, or new ones of this rank, cannot be trained.

    With `full` it is all weights of a model without adapters.

    Raises:
        RequestError: the model has no units; what would be trained is in less than float32, where small steps round to
            nothing (new LoRA is in float32 whatever it adapts); an adapter that is merged, switched off or of another
            rank than was asked, or that has nothing to train; with `full`, an adapter.
    """
    check_units(model)
    if full:
        if isinstance(model, PeftModel):
            raise RequestError("full must be asked of a model without an adapter, got one with; merge it first")
        trained = dict(model.named_parameters())
    elif isinstance(model, PeftModel):
        trained = _owned(model)
        _check_adapter_state(model, rank, trained)
    else:
        trained = _of_heads(unwrap(model))
    check_float32(trained)


def check_weights_trainable(model: nn.Module) -> None:
    """Refuse, before anything is changed, a model that `weights_to_train_` cannot be asked of.

    Raises:
        RequestError: see `check_trainable`.
    """
    check_trainable(model)
    check_float32(_with_blocks(model))


def check_float32(trained: dict[str, nn.Parameter]) -> None:
    """Refuse to train, by name, what is in less than float32, where small steps round to nothing.

    Raises:
        RequestError: naming the first.
    """
    for name, parameter in trained.items():
        if parameter.dtype in (torch.bfloat16, torch.float16):
            kind = str(parameter.dtype).removeprefix("torch.")
            raise RequestError(f"dtype must be float32 to train {name}, got {kind}")


def _check_adapter_state(model: PeftModel, rank: int | None, trained: dict[str, nn.Parameter]) -> None:
    names = ", ".join(model.active_adapters)
    for layer in (module for module in model.modules() if isinstance(module, LoraLayer)):
        if layer.merged:
            raise RequestError(f"adapter must be unmerged to be trained, got {names} merged; call unmerge_adapter")
        if layer.disable_adapters:
            raise RequestError(f"adapter must be on to be trained, got {names} off; call enable_adapter_layers")
    if not any(parameter.numel() for parameter in trained.values()):
        raise RequestError(f"adapter must have parameters to train, got {names or 'none active'} without")
    check_rank(rank, {cast(LoraConfig, model.peft_config[name]).r for name in model.active_adapters})


def check_rank(rank: int | None, ranks: Collection[int]) -> None:
    """Refuse to ask for another rank than those of the adapter that is there; the default is that of any.

    Raises:
        RequestError: with its ranks.
    """
    if rank not in (None, *ranks, LORA_RANK):
        found = " and ".join(map(str, sorted(ranks)))
        raise RequestError(f"lora_rank must be left out for a model that has an adapter (of rank {found}), got {rank}")


def _owned(model: PeftModel) -> dict[str, nn.Parameter]:
    """What the active adapters train, by name: factors, modules and tokens saved with them, biases where asked."""
    active = set(model.active_adapters)
    biases = {cast(LoraConfig, model.peft_config[name]).bias for name in active}
    of_layers = {f"{name}.base_layer.bias" for name, part in model.named_modules() if isinstance(part, LoraLayer)}
    found = {}
    for name, parameter in model.named_parameters():
        parts = name.split(".")
        owners = {after for part, after in pairwise(parts) if part.startswith("lora_") or part in _SAVED_WITH}
        original = "original_module" in parts
        bias = parts[-1] == "bias" and ("all" in biases or ("lora_only" in biases and name in of_layers))
        if (owners & active) if owners else (bias and not original):
            found[name] = parameter
    return found


def _of_heads(inner: nn.Module) -> dict[str, nn.Parameter]:
    """The parameters of the task head that is trained with new adapters, by name."""
    heads = {name: getattr(inner, name) for name in _head_names(inner)}
    return {f"{head}.{name}": p for head, part in heads.items() for name, p in part.named_parameters()}


def _head_names(inner: nn.Module) -> list[str]:
    """The parts of a model beside its body; none where it predicts words: that head may be its embedding.

    A model without a task head is its body.
    """
    if supported_task(inner).pretraining:
        return []
    parts, body = inner.named_children(), body_of(inner)
    return [name for name, part in parts if part is not body and next(part.parameters(), None) is not None]


def forget_base_(model: nn.Module) -> None:
    """Have adapters name no base: it is no longer what lies where it came from, and PEFT would write that name."""
    if isinstance(model, PeftModel):
        cast(Any, model.get_base_model()).name_or_path = ""
        for config in model.peft_config.values():
            config.base_model_name_or_path = None


def forget_initialisation_(model: PeftModel) -> None:
    """Say in the config of every adapter that it starts from nothing, as one does whose trained factors are loaded.

    PiSSA, OLoRA, CorDA and others take their first factors out of the base. PEFT does so again to load an adapter; the
    base that is written beside it is without them already.
    """
    for config in cast("dict[str, LoraConfig]", model.peft_config).values():
        config.init_lora_weights = True
        config.loftq_config = {}
        for name in ("eva_config", "corda_config", "lora_ga_config"):
            if hasattr(config, name):
                setattr(config, name, None)
