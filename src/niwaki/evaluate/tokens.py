"""Metrics of models that say one thing a token: entities found, or tags that are right.

Only tokens with a label count: of a word that is cut into pieces that is the first one (`niwaki.data.tagged`). Entities
are what seqeval makes of the tags of a row, BIO, IOBES or BILOU: one is right where its kind, start and end are. A row
that was cut into several, as it is longer than the model takes, is one again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, cast

import numpy as np
import torch
from torch import nn

from niwaki.anatomy import unwrap
from niwaki.data import Batches
from niwaki.data.batches import ANSWER, UNLABELLED
from niwaki.data.tagged import of_entities
from niwaki.errors import RequestError
from niwaki.evaluate.finite import check_finite
from niwaki.evaluate.judged import Answers, Judged, Keeper, readable
from niwaki.evaluate.passes import seen_over
from niwaki.evaluate.sums import f1, figures_and_intervals, ratio
from niwaki.processes import Parts

ENTITY_METRICS = ("f1", "precision", "recall", "token_accuracy")
TAG_METRICS = ("token_accuracy",)

Tags = tuple[str, ...]


@torch.inference_mode()
def tags(model: nn.Module, batches: Iterable[dict[str, Any]], progress: bool = False) -> Judged:
    """`ENTITY_METRICS` where the model's tags are of entities (`B-PER`, `O`), else `TAG_METRICS`.

    Raises:
        RequestError: a batch without labels, or no token with one. WorkError: logits that are not finite.
    """
    names = cast("dict[int, str]", unwrap(model).config.id2label)
    keeper, truth, found = Keeper(model), list[Tags](), list[Tags]()

    def see(batch: dict[str, Any], outputs: Any) -> Parts:
        labels = batch["labels"].cpu()
        counted = labels != UNLABELLED
        logits = outputs.logits.float().cpu()[counted]
        check_finite(model, logits)
        said = torch.full_like(labels, UNLABELLED)
        said[counted] = logits.argmax(-1)
        return keeper.of(batch, outputs) | {"labels": labels, "said": said}

    seen = seen_over(model, batches, see, progress, lacking="a table without tags")
    for part in seen:
        for labels, said in zip(part["labels"], part["said"], strict=True):
            counted = labels != UNLABELLED
            truth.append(tuple(names[label] for label in labels[counted].tolist()))
            found.append(tuple(names[label] for label in said[counted].tolist()))
    if not any(truth):
        raise RequestError("eval_data must hold tagged tokens, got none")
    parse = _entities if of_entities(names.values()) else None
    wholes = _wholes(batches, len(truth))
    truth, found = (
        [tuple(tag for row in rows for tag in cut[row]) for rows in wholes.values()] for cut in (truth, found)
    )
    quality, interval = _figures(found, truth, parse)
    return Judged(quality, interval, keeper.joined(seen), _answers(found, truth, parse, batches, wholes))


def _wholes(batches: Iterable[Any], count: int) -> dict[int, list[int]]:
    """Rows of the data as they were given -> those of the batches that they were cut into, in order."""
    if not isinstance(batches, Batches):
        return {row: [row] for row in range(count)}
    wholes: dict[int, list[int]] = {}
    for row in sorted(range(count), key=batches.order.__getitem__):
        wholes.setdefault(batches.rows[row].get(ANSWER, batches.order[row]), []).append(row)
    return wholes


Entities = tuple[tuple[str, int, int], ...]


def _entities(row: Tags) -> Entities:
    """Type, first and last word of each entity of a row; what BILOU calls L and U are the E and S of IOBES."""
    from seqeval.metrics.sequence_labeling import get_entities  # here: it takes a second to import

    return tuple(get_entities([_IOBES.get(tag[:2], tag[:2]) + tag[2:] for tag in row]))


_IOBES = {"L-": "E-", "U-": "S-"}


def _figures(
    found: list[Tags], truth: list[Tags], parse: Callable[[Tags], Entities] | None
) -> tuple[dict[str, float], dict[str, tuple[float, float]]]:
    rows = []
    for given, wanted in zip(found, truth, strict=True):
        right = sum(ours == theirs for ours, theirs in zip(given, wanted, strict=True))
        ours, theirs = (set(parse(row)) if parse else set() for row in (given, wanted))
        rows.append([right, len(wanted), len(ours & theirs), len(ours), len(theirs)])

    def figures(sums: np.ndarray) -> dict[str, np.ndarray]:
        words, all_words, right, got, asked = sums.T
        accuracy = {"token_accuracy": ratio(words, all_words)}
        if parse is None:
            return accuracy
        return {"f1": f1(right, got, asked), "precision": ratio(right, got), "recall": ratio(right, asked)} | accuracy

    return figures_and_intervals(np.array(rows), figures)


def _answers(
    found: list[Tags],
    truth: list[Tags],
    parse: Callable[[Tags], Entities] | None,
    batches: Iterable[Any],
    wholes: dict[int, list[int]],
) -> Answers:
    """Entities, or tags where there are none, of every row of the data."""
    cut, text = list(wholes.values()), readable(batches)

    def shown(index: int, value: Any) -> str:
        words = [word for row in cut[index] for word in _words(batches, row)]
        if parse is None:
            pairs = zip(words, value, strict=True) if len(words) == len(value) else ()
            return " ".join(f"{word}/{tag}" for word, tag in pairs) or " ".join(value)
        return ", ".join(f"{kind}: {' '.join(words[first : last + 1])}" for kind, first, last in value) or "none"

    values, wanted = ([parse(row) if parse else row for row in rows] for rows in (found, truth))
    return Answers(
        kind="entities" if parse else "tags",
        values=values,
        truth=wanted,
        right=[ours == theirs for ours, theirs in zip(values, wanted, strict=True)],
        order=list(wholes),
        text=lambda index: " ".join(text(row) for row in cut[index]),
        shown=shown,
    )


def _words(batches: Iterable[Any], index: int) -> list[str]:
    """The words of a row: what its tokens stand for, from one with a label to the next."""
    if not isinstance(batches, Batches):
        return []
    row = batches.rows[index]
    starts = [place for place, label in enumerate(row["labels"]) if label != UNLABELLED]
    ends = [*starts[1:], len(row["input_ids"])]
    pieces = [row["input_ids"][start:end] for start, end in zip(starts, ends, strict=True)]
    return [batches.tokenizer.decode(piece, skip_special_tokens=True).strip() for piece in pieces]
