"""The model's side of a smaller vocabulary: rows of the embeddings, and the ids that its configs name.

Rows are taken as they are, so what a token gave it still gives. RoBERTa and its kin count positions from the id of the
padding on: there that id may not move, so every token below it stays.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, cast

import torch
from peft import PeftModel
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils.other import AuxiliaryTrainingWrapper
from torch import Tensor, nn

from niwaki.anatomy import body_of, own_config_, unwrap
from niwaki.errors import RequestError

_LISTS = ("suppress_tokens", "begin_suppress_tokens", "bad_words_ids", "force_words_ids")
"""Keys of a generation config that hold ids under other names than `..._token_id`."""


def embeddings_of(model: nn.Module) -> tuple[nn.Embedding, nn.Linear | None]:
    """The embedding of the tokens, and the linear that scores them where the model has one.

    Raises:
        RequestError: an adapter on either.
    """
    inner = unwrap(model)
    first, last = inner.get_input_embeddings(), inner.get_output_embeddings()
    for module in (first, last):
        if isinstance(module, BaseTunerLayer | AuxiliaryTrainingWrapper):
            names = ", ".join(cast(PeftModel, model).peft_config) if isinstance(model, PeftModel) else "default"
            rule = "adapter must not be on the embeddings for the vocabulary to be trimmed"
            raise RequestError(f"{rule}, got {names!r} with {type(module).__name__} there; merge it first")
    return cast(nn.Embedding, first), cast("nn.Linear | None", last)


def named_rows(model: nn.Module) -> set[int]:
    """Rows that must stay whatever the corpus: the ids in the configs, and those that may not move."""
    first, _ = embeddings_of(model)
    found: set[int] = set() if first.padding_idx is None else {first.padding_idx}
    for config in _configs(model):
        if getattr(config, "sequence_bias", None):
            raise RequestError("sequence_bias of generation_config must not be given for the vocabulary to be trimmed")
        for key, value in _ids(config):
            _mapped(value, lambda index: found.add(index) or index, key)
    positions = getattr(getattr(body_of(model), "embeddings", None), "position_embeddings", None)
    if isinstance(positions, nn.Embedding) and positions.padding_idx is not None:
        found |= set(range(positions.padding_idx + 1))
    return {index for index in found if 0 <= index < first.num_embeddings}


def keep_rows_(model: nn.Module, rows: list[int]) -> None:
    """Make row `i` of the embeddings the old row `rows[i]`, in place, and number the ids in the configs anew.

    What is tied stays tied, biases too. The ids in the configs must be among `rows`, or name no row.
    """
    first, last = embeddings_of(model)
    new = {old: index for index, old in enumerate(rows)}
    index, before = torch.tensor(rows), first.num_embeddings
    by_token = [first.weight] if last is None else [first.weight, last.weight, last.bias]
    taken = {id(parameter): _taken(parameter, index) for parameter in by_token if parameter is not None}
    first.num_embeddings = len(rows)
    if last is not None:
        last.out_features = len(rows)
    for module in unwrap(model).modules():
        for name, parameter in list(module.named_parameters(recurse=False, remove_duplicate=False)):
            if id(parameter) in taken:  # under whatever name: heads of masked words hold their bias twice
                setattr(module, name, taken[id(parameter)])
        if getattr(module, "vocab_size", None) == before:
            cast(Any, module).vocab_size = len(rows)
        padding = getattr(module, "padding_idx", None)
        if padding in new:
            cast(Any, module).padding_idx = new[padding]
    own_config_(model)
    for config in _configs(model):
        if hasattr(config, "vocab_size"):
            config.vocab_size = len(rows)
        for key, value in list(_ids(config)):
            setattr(config, key, _mapped(value, lambda old: new.get(old, old), key))


def _taken(parameter: Tensor, index: Tensor) -> nn.Parameter:
    rows = parameter.detach().index_select(0, index.to(parameter.device)).contiguous()
    return nn.Parameter(rows, requires_grad=parameter.requires_grad)


def _configs(model: nn.Module) -> list[Any]:
    inner = unwrap(model)
    generation = getattr(inner, "generation_config", None)
    return [inner.config, *([] if generation is None else [generation])]


def _ids(config: Any) -> Iterator[tuple[str, Any]]:
    """What a config says in token ids: by key, an id or lists of ids."""
    for key, value in vars(config).items():
        if (key.endswith(("_token_id", "_token_ids")) or key in _LISTS) and value is not None:
            yield key, value


def _mapped(value: Any, new: Callable[[int], int], key: str) -> Any:
    if isinstance(value, list | tuple):
        return [_mapped(part, new, key) for part in value]
    if isinstance(value, bool) or not isinstance(value, int):
        raise RequestError(f"{key} of the model's config must be ids of tokens, got {value!r}")
    return new(value)
