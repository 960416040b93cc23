"""How well a model answers questions on contexts: as SQuAD measures it, 1.1 and 2.0.

Of every question, over all rows that its context was cut into, the best span is taken: the greatest sum of a start and
an end logit, both in the context, the end not before the start, the answer not longer than `LONGEST` tokens. Where some
questions have no answer (SQuAD 2.0), that stands against the sum at the first place, the least of the question's rows.
Texts are compared without case, articles and punctuation.
"""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Iterable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from niwaki.anatomy import Predictions
from niwaki.data import Batches, token_mask
from niwaki.data.answers import Asked
from niwaki.data.batches import ANSWER
from niwaki.errors import RequestError
from niwaki.evaluate.finite import check_finite
from niwaki.evaluate.judged import Answers, Judged, Keeper, text_of_tokens
from niwaki.evaluate.passes import seen_over
from niwaki.evaluate.sums import figures_and_intervals
from niwaki.processes import Parts

ANSWER_METRICS = ("f1", "exact_match")
LONGEST = 30
"""Tokens of an answer at most."""
LIKELIEST = 20
"""Starts and ends that are looked at, the likeliest of each."""


def check_questions(batches: Any, name: str = "eval_data") -> Batches:
    """`batches`, which know the texts of their answers.

    Raises:
        RequestError: they do not come from questions on contexts; calls them `name`.
    """
    if not isinstance(batches, Batches) or not batches.rows or ANSWER not in batches.rows[0]:
        raise RequestError(f"{name} must be questions on contexts (SQuAD's form) for a model that answers them")
    return batches


@torch.inference_mode()
def answered(model: nn.Module, batches: Iterable[dict[str, Any]], progress: bool = False) -> Judged:
    """`ANSWER_METRICS`, means over the questions, against the answer that fits best.

    Raises:
        RequestError: see `check_questions`. WorkError: logits that are not finite.
    """
    batches = check_questions(batches)
    best: dict[int, tuple[float, str]] = {}
    none: dict[int, float] = {}
    keeper = Keeper(model)

    def see(batch: dict[str, Any], outputs: Any) -> Parts:
        keep, both = token_mask(batch).bool(), (outputs.start_logits.float().cpu(), outputs.end_logits.float().cpu())
        check_finite(model, torch.stack(both)[:, keep])
        return keeper.of(batch, outputs) | dict(zip(("starts", "ends"), both, strict=True))

    seen = seen_over(model, batches, see, progress)
    logits = (pair for part in seen for pair in zip(part["starts"], part["ends"], strict=True))
    for row, (start, end) in zip(batches.rows, logits, strict=True):
        asked: Asked = row[ANSWER]
        nothing = float(start[0] + end[0])
        none[asked.number] = min(nothing, none.get(asked.number, nothing))
        found = _best_span(asked, start, end)
        best[asked.number] = max(found, best.get(asked.number, found))
    right = {row[ANSWER].number: row[ANSWER].answers for row in batches.rows}
    unanswered = any(not answers for answers in right.values())
    said = {asked: "" if unanswered and none[asked] > score else text for asked, (score, text) in best.items()}
    return _judged(said, right, batches, keeper.joined(seen))


def _judged(
    said: dict[int, str], right: dict[int, tuple[str, ...]], batches: Batches, predictions: Predictions | None
) -> Judged:
    """What was `said` to each question, held against the answers that would be `right`."""
    scores = [max((_compared(said[asked], answer) for answer in right[asked] or ("",)), key=sum) for asked in right]
    quality, interval = figures_and_intervals(
        np.array([(*score, 1.0) for score in scores]),
        lambda sums: dict(zip(ANSWER_METRICS, (sums[:, :2] / sums[:, 2:]).T, strict=True)),
    )
    first: dict[int, int] = {}
    for index, row in enumerate(batches.rows):
        asked = row[ANSWER].number
        if asked not in first or batches.order[index] < batches.order[first[asked]]:
            first[asked] = index
    places = [first[asked] for asked in right]
    answers = Answers(
        kind="text",
        values=[said[asked] for asked in right],
        truth=[" | ".join(dict.fromkeys(right[asked])) for asked in right],
        right=[bool(same) for _, same in scores],
        order=list(right),
        text=lambda index: text_of_tokens(batches.tokenizer, batches.rows[places[index]]["input_ids"]),
        shown=lambda _, value: value or "no answer",
    )
    return Judged(quality, interval, predictions, answers)


def _best_span(asked: Asked, start: Tensor, end: Tensor) -> tuple[float, str]:
    """The likeliest answer that stands in the context, and its sum of logits; no text where there is none."""
    inside = [place for place, span in enumerate(asked.offsets) if span is not None]
    starts, ends = start.tolist(), end.tolist()
    likeliest = [sorted(inside, key=lambda place: -logits[place])[:LIKELIEST] for logits in (starts, ends)]
    found = (float("-inf"), "")
    for first in likeliest[0]:
        for last in likeliest[1]:
            if first <= last < first + LONGEST:
                spans = asked.offsets[first], asked.offsets[last]
                text = asked.context[spans[0][0] : spans[1][1]] if spans[0] and spans[1] else ""
                found = max(found, (starts[first] + ends[last], text))
    return found


def _compared(said: str, right: str) -> tuple[float, float]:
    """F1 over words, and whether they are the same."""
    ours, theirs = _words(said), _words(right)
    same = float(ours == theirs)
    common = sum((Counter(ours) & Counter(theirs)).values())
    if not ours or not theirs or not common:
        return same, same
    precision, recall = common / len(ours), common / len(theirs)
    return 2 * precision * recall / (precision + recall), same


def _words(text: str) -> list[str]:
    """Words as SQuAD compares them: lower case, without punctuation and articles."""
    bare = "".join(character for character in text.lower() if character not in string.punctuation)
    return re.sub(r"\b(a|an|the)\b", " ", bare).split()
