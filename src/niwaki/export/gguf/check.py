"""What llama.cpp makes of a file, against PyTorch."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import PreTrainedModel

from niwaki.checkpoint import merged
from niwaki.errors import WorkError
from niwaki.export.gguf.architecture import longest_text
from niwaki.export.gguf.llama_cpp import Session
from niwaki.export.gguf.vocabulary import PROBE

TOLERANCE = 1e-2
"""Largest difference of a logit, as a share of the largest there is where that is above 1, in float32."""
_LENGTH = 48


def text_to_try(model: PreTrainedModel, tokenizer: Any) -> Tensor:
    """Ids `[length]` of a text, or random ones of a model that came without a tokenizer."""
    size, length = cast(Any, model.config).vocab_size, min(_LENGTH, longest_text(model))
    if tokenizer is None:
        return torch.randint(size, (length,), generator=torch.Generator().manual_seed(0))
    return torch.tensor(tokenizer(PROBE, add_special_tokens=False)["input_ids"][:length])


def run(file: Path, ids: Tensor) -> Tensor:
    """Logits `[length, vocabulary]` of a text, half of it fed as one, the rest token by token."""
    session, half = Session(file), len(ids) // 2
    session.start(1, len(ids))
    found = [session.logits(index) for index in range(session.feed([ids[:half].tolist()]))]
    for token in ids[half:].tolist():
        session.feed([[token]])
        found.append(session.logits(0))
    return torch.stack(found)


def trial_perplexities(model: nn.Module, path: str | Path, tokenizer: Any) -> tuple[float, float]:
    """Perplexity of the trial text in PyTorch, and in llama.cpp by the file at `path` or in the folder there."""
    plain, place = merged(model).eval(), Path(path)
    file = next(place.glob("*.gguf")) if place.is_dir() else place
    ids = text_to_try(plain, tokenizer)
    with torch.no_grad():
        both = plain(input_ids=ids[None]).logits[0].float(), run(file, ids)
    here, there = (float(functional.cross_entropy(logits[:-1], ids[1:]).exp()) for logits in both)
    return here, there


def check_exact(model: PreTrainedModel, file: Path, ids: Tensor) -> None:
    """Refuse a file in float32 that does not compute what `model` does.

    Raises:
        WorkError: with the difference.
    """
    with torch.no_grad():
        wanted = model(input_ids=ids[None]).logits[0]
    difference = float((run(file, ids) - wanted).abs().max()) / max(1.0, float(wanted.abs().max()))
    if not difference <= TOLERANCE:
        raise WorkError(f"gguf: logits must be within {TOLERANCE:g} of PyTorch's, got a difference of {difference:.3g}")


def check_runs(file: Path, ids: Tensor, quantize: str) -> None:
    """Refuse a rounded file whose logits are not finite.

    Raises:
        WorkError: it is so.
    """
    if not bool(run(file, ids).isfinite().all()):
        raise WorkError(f"gguf: what the model gives in {quantize} is not finite")
