"""What one pass over evaluation data told of a model: its figures, how sure they are, and what it said row by row.

Two models are compared by what their passes left (`niwaki.evaluate.behaviour`, `fidelity_of`), so that none runs over
the same data again. Predictions are kept where they are few numbers; those over a vocabulary are not.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from torch import Tensor, nn

from niwaki.anatomy import Predictions, joined, predicted_tokens, predictions_of
from niwaki.data import Batches
from niwaki.processes import Parts

MOST_NUMBERS = 2**23
"""Numbers of all predictions together that are kept at most: 32 MiB."""


@dataclass(frozen=True, eq=False)
class Answers:
    """What a model said of every row: `values`, which compare with those of another model, and whether they are right.

    `kind` says what values are: a `class`, a `choice`, a `number`, the `text` of an answer, the `rank` of what was to
    be found, or a tuple: of `labels`, of `entities` (type, first, last), of the `tags` of all words. Numbers are not
    right or wrong. `order` has the place of each row in the data as they were given. As a person reads them:
    `text(index)` is a row, `shown(index, value)` a value of it; `names` are those of classes and labels.
    """

    kind: str
    values: list[Any]
    truth: list[Any]
    right: list[bool] | None
    order: list[int]
    text: Callable[[int], str]
    shown: Callable[[int, Any], str]
    names: tuple[str, ...] = ()


@dataclass(frozen=True, eq=False)
class NextTokens:
    """Of a language model, row by row: `nats` `[length - 1]` of each next token, 0 where none counts, and the `tokens`.

    What does not count is -100 in `tokens`. `shown` is a token as a person reads it.
    """

    nats: list[Tensor]
    tokens: list[Tensor]
    shown: Callable[[int], str]


@dataclass(frozen=True, eq=False)
class Judged:
    """`quality` by metric, the `interval` of 95 % around it, and what there is to compare with another model's."""

    quality: dict[str, float]
    interval: dict[str, tuple[float, float]] = field(default_factory=dict)
    predictions: Predictions | None = None
    answers: Answers | None = None
    next_tokens: NextTokens | None = None

    def of(self, metric: str) -> Judged:
        """The same with one metric alone."""
        interval = {name: span for name, span in self.interval.items() if name == metric}
        return replace(self, quality={metric: self.quality[metric]}, interval=interval)


class Keeper:
    """Keeps the predictions of all batches, or none where they are more than `MOST_NUMBERS`."""

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self._room = MOST_NUMBERS

    def of(self, batch: dict[str, Any], outputs: Any) -> Parts:
        """What `outputs` of the model say of a batch where it was asked; nothing where that is too much."""
        keep = predicted_tokens(self.model, batch).to(next(self.model.parameters()).device)
        part = predictions_of(self.model, outputs, keep)
        self._room -= part.values.numel()
        if self._room < 0:
            return {"kind": part.kind, "values": None, "possible": None}
        return {"kind": part.kind, "values": part.values.float().cpu(), "possible": part.possible}

    @staticmethod
    def joined(seen: Sequence[Parts]) -> Predictions | None:
        """All that was kept `of` batches, one after the other; None where anything was not."""
        if any(part["values"] is None for part in seen):
            return None
        parts = [Predictions(part["kind"], part["values"], part["possible"]) for part in seen]
        return joined(parts) if 0 < sum(part.values.numel() for part in parts) <= MOST_NUMBERS else None


def order_of(batches: Iterable[Any], count: int) -> list[int]:
    """The place of each row of the batches in the data as they were given."""
    return batches.order if isinstance(batches, Batches) else list(range(count))


def readable(batches: Iterable[Any]) -> Callable[[int], str]:
    """Row of the batches -> its text as the tokenizer reads it, `/` between the texts of a pair; else nothing."""
    if not isinstance(batches, Batches):
        return lambda index: ""
    return lambda index: text_of_tokens(batches.tokenizer, batches.rows[index]["input_ids"])


def text_of_tokens(tokenizer: Any, ids: list[Any]) -> str:
    """The texts that tokens stand for, `/` where a mark of the tokenizer stands between two."""
    if ids and isinstance(ids[0], list):
        return " | ".join(text_of_tokens(tokenizer, each) for each in ids)
    names = ("cls_token_id", "sep_token_id", "bos_token_id", "eos_token_id", "pad_token_id")
    marks = {getattr(tokenizer, name, None) for name in names}
    parts: list[list[int]] = [[]]
    for token in ids:
        if token in marks:
            parts.append([])
        else:
            parts[-1].append(token)
    return " / ".join(tokenizer.decode(part).strip() for part in parts if part)


def shown_token(tokenizer: Any) -> Callable[[int], str]:
    """Token -> its text."""
    return lambda token: tokenizer.decode([token])
