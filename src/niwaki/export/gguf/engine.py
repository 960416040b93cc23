"""A language model whose forward pass is llama.cpp's, so that whatever measures a model measures it there."""

from __future__ import annotations

import copy
from functools import cached_property
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from niwaki.anatomy import is_language_model
from niwaki.checkpoint import merged
from niwaki.errors import RequestError
from niwaki.export.calibration import Calibration
from niwaki.export.gguf import PACKAGES, fill_gguf
from niwaki.export.gguf.architecture import longest_text
from niwaki.export.gguf.llama_cpp import Session
from niwaki.export.packages import check_installed
from niwaki.export.placed import Placed, folder_of

MOST_ROWS = 256
"""Sequences that llama.cpp takes at once."""
_ROOM = 1024
"""Tokens that a text can go on for: memory is taken for all of them at once."""


def in_llama_cpp(
    model: nn.Module, tokenizer: Any = None, quantize: str = "none", calibration: Calibration | None = None
) -> Placed:
    """A model like `model` that runs in llama.cpp, on as many threads as PyTorch has.

    It has the configuration and the weights of `model`, with adapters merged; what it gives is what the file gives. It
    holds the keys and values of the last call alone, which `past_key_values` goes on from, for `_ROOM` tokens, where
    `use_cache` was asked.

    Raises:
        RequestError, WorkError: see `niwaki.export.gguf.export_gguf`.
    """
    del calibration  # its roundings look at no data
    if not is_language_model(model):
        raise RequestError("engine must be pytorch or onnxruntime for what is no language model, got 'llama.cpp'")
    check_installed("engine llama.cpp", PACKAGES, "gguf")
    there = copy.deepcopy(merged(model)).float().cpu()
    file = folder_of(there) / "model.gguf"
    fill_gguf(there, file, tokenizer, quantize)
    return _placed(there, file)


def of_gguf(model: nn.Module, place: Path, spared: list[str]) -> Placed:
    """The same of what `fill_gguf` wrote of `model` into `place`."""
    del spared  # there are none
    return _placed(copy.deepcopy(merged(model)).float().cpu(), place if place.is_file() else next(place.glob("*.gguf")))


def _placed(there: PreTrainedModel, file: Path) -> Placed:
    session = Session(file)
    longest = longest_text(there)

    def forward(
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        past_key_values: Any = None,
        use_cache: bool = False,
        **unused: Any,
    ) -> _Output:
        del unused
        real = torch.ones_like(input_ids, dtype=torch.bool)
        if past_key_values is None:
            real = real if attention_mask is None else attention_mask.bool()
            if len(input_ids) > MOST_ROWS:
                raise RequestError(f"batch_size must be at most {MOST_ROWS} for llama.cpp, got {len(input_ids)}")
            length = max(1, int(real.sum(1).max()))
            if length > longest:
                rule = f"max_length must be at most {longest} for llama.cpp, where every token sees all before it"
                raise RequestError(f"{rule}, got a text of {length} tokens")
            session.start(len(input_ids), min(longest, length + _ROOM) if use_cache else length)
        session.feed([row[own].tolist() for row, own in zip(input_ids, real, strict=True)])
        return _Output(session, real)

    cast(Any, there).forward = forward
    return Placed(there, file)


class _Output:
    """What a language model gives; logits are read from the engine when somebody asks, before the next call."""

    def __init__(self, session: Session, real: Tensor) -> None:
        self.past_key_values, self._real = session, real

    @cached_property
    def logits(self) -> Tensor:
        """`[rows, length, vocabulary]`, zero at padding."""
        found = torch.zeros(*self._real.shape, self.past_key_values.vocabulary)
        for index, place in enumerate(self._real.nonzero().tolist()):
            found[tuple(place)] = self.past_key_values.logits(index)
        return found
