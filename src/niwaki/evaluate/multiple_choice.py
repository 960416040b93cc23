"""Multiple choice without a network: the choice that the model finds most likely after the prompt.

With l_i the log-likelihood of choice i given the prompt, `acc` takes the largest l_i, `acc_norm` the largest
l_i / len(choice_i), in characters. All of it is done as lm-evaluation-harness does it (`api/task.py`,
`api/model.py: _encode_pair`, `models/huggingface.py: _loglikelihood_tokens`), so that the figures are the same.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn.utils.rnn import pad_sequence

from niwaki.anatomy import evaluation_mode, longest_input
from niwaki.data.batches import UNLABELLED
from niwaki.data.questions import Question
from niwaki.errors import RequestError
from niwaki.evaluate.token_losses import token_losses
from niwaki.numerics.half import half_in_float32
from niwaki.processes import Parts, shared_out
from niwaki.progress import bar

Pair = tuple[list[int], list[int]]
"""The tokens of a prompt, and those of what follows it."""


@dataclass(frozen=True)
class Mean:
    """A mean over the rows of a task and its standard error; None where it has none (a single row)."""

    value: float
    stderr: float | None


def encode_questions(tokenizer: Any, questions: Sequence[Question]) -> list[Pair]:
    """One pair for each choice of each question, in order; a choice follows its prompt after a space."""
    return [encode_pair(tokenizer, question.prompt, f" {text}") for question in questions for text in question.choices]


def encode_pair(tokenizer: Any, prompt: str, continuation: str) -> Pair:
    """Tokens of both, as they are where one follows the other.

    Spaces that end the prompt go to what follows; both are tokenised as one, less what the prompt takes alone.
    An empty prompt is the first token of the tokenizer (BOS, or else EOS).

    Raises:
        RequestError: an empty prompt for a tokenizer that has neither; nothing left to predict.
    """
    prompt, spaces = prompt.rstrip(), prompt[len(prompt.rstrip()) :]
    continuation = spaces + continuation
    first = tokenizer.eos_token_id if tokenizer.bos_token_id is None else tokenizer.bos_token_id
    before = _tokens(tokenizer, prompt, first) if prompt or spaces else []
    if before:
        after = _tokens(tokenizer, prompt + continuation, first)[len(before) :]
    elif first is None:
        raise RequestError("tasks: an empty prompt needs a tokenizer with a bos_token or eos_token, got neither")
    else:
        after = tokenizer(continuation, add_special_tokens=False, verbose=False)["input_ids"]
        before, after = ([first], after) if after[:1] != [first] else (after[:1], after[1:])
    if not after:
        raise RequestError(f"tasks: every choice must be a token at least, got none for {continuation!r}")
    return before, after


def _tokens(tokenizer: Any, text: str, first: int | None) -> list[int]:
    """With the special tokens that the tokenizer adds by itself, unless the text has the first one already."""
    marked = first is not None and text.startswith(tokenizer.decode(first))
    return tokenizer(text, add_special_tokens=not marked, verbose=False)["input_ids"]


@torch.inference_mode()
def log_likelihoods(model: nn.Module, pairs: Sequence[Pair], batch_size: int, progress: bool = False) -> list[float]:
    """Log-likelihood of the second part of each pair given the first, in nats.

    What is longer than the model's context loses its start. Rows are padded on the right, where no token looks.

    Raises:
        RequestError: a second part longer than the context. WorkError: logits that are not finite.
    """
    device, longest = next(model.parameters()).device, longest_input(model)
    if pairs and (most := max(len(after) for _, after in pairs)) > longest:
        raise RequestError(f"tasks: choices must have at most {longest} tokens, the model's context, got {most}")
    order = sorted(range(len(pairs)), key=lambda i: -len(pairs[i][0]) - len(pairs[i][1]))
    parts = [order[start : start + batch_size] for start in range(0, len(order), batch_size)]

    def likelihoods(chosen: list[int]) -> Parts:
        rows = [torch.tensor([*pairs[i][0], *pairs[i][1]][-longest - 1 : -1]) for i in chosen]
        wanted = torch.full((len(rows), len(rows[0])), UNLABELLED)
        for labels, row, i in zip(wanted, rows, chosen, strict=True):
            labels[len(row) - len(pairs[i][1]) : len(row)] = torch.tensor(pairs[i][1])
        inputs = {"input_ids": pad_sequence(rows, batch_first=True).to(device)}
        return {"found": [-float(losses.sum()) for losses in token_losses(model, inputs, wanted.to(device))]}

    with evaluation_mode(model), half_in_float32(model):
        told = shared_out(bar(parts, phase="choices", unit="batches", progress=progress), likelihoods)
    by_pair = dict(zip(order, (each for part in told for each in part["found"]), strict=True))
    return [by_pair[i] for i in range(len(pairs))]


def multiple_choice(
    model: nn.Module, questions: Sequence[Question], pairs: Sequence[Pair], batch_size: int, progress: bool = False
) -> dict[str, Mean]:
    """`acc` and `acc_norm` over the questions; `pairs` are theirs, as `encode_questions` gives them.

    Raises:
        RequestError, WorkError: see `log_likelihoods`.
    """
    return accuracies(questions, log_likelihoods(model, pairs, batch_size, progress))


def accuracies(questions: Sequence[Question], sums: Sequence[float]) -> dict[str, Mean]:
    """`acc` and `acc_norm` from the log-likelihoods of all choices of all questions, in order."""
    every = iter(sums)
    right: dict[str, list[bool]] = {"acc": [], "acc_norm": []}
    for question in questions:
        found = np.array([next(every) for _ in question.choices])
        lengths = np.array([len(text) for text in question.choices])
        right["acc"].append(int(found.argmax()) == question.gold)
        right["acc_norm"].append(int((found / lengths).argmax()) == question.gold)
    return {name: _mean(values) for name, values in right.items()}


def _mean(values: list[bool]) -> Mean:
    n, mean = len(values), sum(values) / len(values)
    if n == 1:
        return Mean(mean, None)
    variance = sum((value - mean) ** 2 for value in values) / (n - 1)
    return Mean(mean, math.sqrt(variance / n))
