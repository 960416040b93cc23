"""What changed in what a model says: dense and pruned held against each other row by row.

Everything is bounded, and made of what two passes left (`niwaki.evaluate.judged`): nothing is run again. Plain data, as
it stands under `behaviour` in `result.json`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from niwaki.data.batches import UNLABELLED
from niwaki.evaluate.judged import Answers, Judged, NextTokens

EXAMPLES = 20
"""Rows that are shown."""
_CLASSES = 12
"""Classes of a confusion matrix; of more, the rarest are one."""
_NAMES = 40
"""Classes, labels or types whose quality is shown, the most frequent."""
_LONGEST = 240
"""Characters of a text that are shown."""
_POSITIONS = 24
"""Stretches of a window that a loss is shown for."""
_TOKENS = 20
_ROW_BY_ROW = ("class", "labels", "number")
"""Kinds of answers of which there is one a row of the data."""


def behaviour(dense: Judged, pruned: Judged, texts: Sequence[tuple[str, ...]] = ()) -> dict[str, Any]:
    """The `behaviour` of `result.json`; nothing where the two did not answer the same rows, or with other classes.

    `texts` are the rows as the data hold them; without, they are shown as the tokenizer reads them.

    `rows`, of which `changed` have another answer; how many are `right` in both, in one, in neither; `examples` of
    changed rows, first those that were right before. By kind of answers also `confusion`, `by_name` (F1 of classes,
    labels, types of entities), or of a language model `positions` and `tokens`, in nats.
    """
    if dense.next_tokens is not None and pruned.next_tokens is not None:
        return _of_next_tokens(dense.next_tokens, pruned.next_tokens)
    theirs, ours = dense.answers, pruned.answers
    if theirs is None or ours is None or theirs.kind != ours.kind or not _alike(theirs.names, ours.names):
        return {}
    ours = replace(ours, names=theirs.names, shown=theirs.shown) if ours.names else ours
    pairs = list(zip(_in_order(theirs), _in_order(ours), strict=False))
    if [theirs.truth[one] for one, _ in pairs] != [ours.truth[other] for _, other in pairs]:
        return {}
    if theirs.kind in _ROW_BY_ROW and len(texts) == len(pairs):
        order = theirs.order
        theirs = replace(theirs, text=lambda index: " / ".join(texts[order[index]]))
    found: dict[str, Any] = {"kind": theirs.kind, "rows": len(pairs)}
    if theirs.right is None or ours.right is None:
        return found | _of_numbers(theirs, ours, pairs)
    found |= _changes(theirs, ours, theirs.right, ours.right, pairs)
    if theirs.kind == "class":
        found["confusion"] = _confusion(theirs, ours)
    if theirs.kind in _ITEMS:
        found["by_name"] = _by_name(theirs, ours)
    return found


def _alike(names: tuple[str, ...], others: tuple[str, ...]) -> bool:
    """Whether outputs at the same place mean the same: as many, and not the same names in another order.

    One of two models may say LABEL_0 for what the other has a name for.
    """
    return len(names) == len(others) and (names == others or sorted(names) != sorted(others))


def _changes(
    theirs: Answers, ours: Answers, was_right: list[bool], is_right: list[bool], pairs: list[tuple[int, int]]
) -> dict[str, Any]:
    """How many answers are others, and right, and some of those that are others."""
    right = Counter((was_right[one], is_right[other]) for one, other in pairs)
    changed = [(one, other) for one, other in pairs if theirs.values[one] != ours.values[other]]
    changed.sort(key=lambda pair: (not was_right[pair[0]], is_right[pair[1]]))
    return {
        "changed": len(changed),
        "right": {
            "both": right[True, True],
            "dense_only": right[True, False],
            "pruned_only": right[False, True],
            "neither": right[False, False],
        },
        "examples": [_example(theirs, ours, pair) for pair in changed[:EXAMPLES]],
    }


def _in_order(answers: Answers) -> list[int]:
    """Indices of the rows as the data were given."""
    return sorted(range(len(answers.values)), key=lambda index: answers.order[index])


def _short(text: str) -> str:
    return text if len(text) <= _LONGEST else f"{text[: _LONGEST - 1].rstrip()}…"


def _example(dense: Answers, pruned: Answers, pair: tuple[int, int]) -> dict[str, Any]:
    one, other = pair
    return {
        "row": dense.order[one] + 1,
        "text": _short(dense.text(one)),
        "truth": _short(_shown(dense, one, dense.truth[one])),
        "dense": _short(dense.shown(one, dense.values[one])),
        "pruned": _short(pruned.shown(other, pruned.values[other])),
    }


def _shown(answers: Answers, index: int, truth: Any) -> str:
    return str(truth) or "no answer" if answers.kind == "text" else answers.shown(index, truth)


def _of_numbers(dense: Answers, pruned: Answers, pairs: list[tuple[int, int]]) -> dict[str, Any]:
    """How far numbers moved, and the rows where they moved most."""
    moved = [abs(pruned.values[other] - dense.values[one]) for one, other in pairs]
    order = sorted(range(len(pairs)), key=lambda index: -moved[index])
    return {
        "moved": {"mean": float(np.mean(moved)), "median": float(np.median(moved)), "most": float(np.max(moved))},
        "examples": [_example(dense, pruned, pairs[index]) for index in order[:EXAMPLES] if moved[index]],
    }


def _confusion(dense: Answers, pruned: Answers) -> dict[str, Any]:
    """Rows by what is true and what was said: `dense[truth][said]`."""
    names, most = dense.names, Counter(dense.truth)
    shown = list(range(len(names)))
    if len(names) > _CLASSES:
        shown = sorted(sorted(shown, key=lambda index: -most[index])[: _CLASSES - 1])
    place = {index: number for number, index in enumerate(shown)}
    labels = [names[index] for index in shown] + ["all others"] * (len(shown) < len(names))

    def matrix(answers: Answers) -> list[list[int]]:
        cells = np.zeros((len(labels), len(labels)), int)
        for truth, said in zip(answers.truth, answers.values, strict=True):
            cells[place.get(truth, -1), place.get(said, -1)] += 1
        return cells.tolist()

    return {"labels": labels, "dense": matrix(dense), "pruned": matrix(pruned)}


_ITEMS: dict[str, Callable[[Answers, Any], set[tuple[str, Any]]]] = {
    "class": lambda answers, value: {(answers.names[value], None)},
    "labels": lambda answers, value: {(answers.names[label], None) for label in value},
    "entities": lambda answers, value: {(kind, (first, last)) for kind, first, last in value},
    "tags": lambda answers, value: {(tag, place) for place, tag in enumerate(value)},
}
"""Kind of answers -> what is named in one, and where."""


def _by_name(dense: Answers, pruned: Answers) -> list[dict[str, Any]]:
    """F1 of each name, of those that occur most."""
    wanted, scores = Counter[str](), []
    for answers in (dense, pruned):
        right, said, items = Counter[str](), Counter[str](), _ITEMS[answers.kind]
        wanted.clear()
        for value, truth in zip(answers.values, answers.truth, strict=True):
            given, asked = items(answers, value), items(answers, truth)
            right.update(name for name, _ in given & asked)
            said.update(name for name, _ in given)
            wanted.update(name for name, _ in asked)
        scores.append({name: 2 * right[name] / (said[name] + wanted[name]) for name in wanted})
    return [
        {"name": name, "count": count, "dense": scores[0][name], "pruned": scores[1][name]}
        for name, count in wanted.most_common(_NAMES)
    ]


def _of_next_tokens(dense: NextTokens, pruned: NextTokens) -> dict[str, Any]:
    """Loss by position in a window, and the tokens that lost most in all; nothing where the tokens are others."""
    if len(dense.tokens) != len(pruned.tokens) or any(
        len(ours) != len(theirs) or bool((ours != theirs).any())
        for ours, theirs in zip(dense.tokens, pruned.tokens, strict=True)
    ):
        return {}
    tokens = np.concatenate([row.numpy() for row in dense.tokens])
    place = np.concatenate([np.arange(len(row)) for row in dense.tokens])
    counted = tokens != UNLABELLED
    tokens, place = tokens[counted], place[counted]
    nats = [np.concatenate([row.double().numpy() for row in side.nats])[counted] for side in (dense, pruned)]
    return {
        "kind": "next-token",
        "rows": len(dense.tokens),
        "tokens_seen": len(tokens),
        "positions": _positions(place, nats),
        "tokens": _tokens(tokens, nats, dense.shown),
    }


def _positions(place: np.ndarray, nats: list[np.ndarray]) -> list[dict[str, Any]]:
    """Mean nats of stretches of positions, each as long as the others."""
    length = -(-(int(place.max()) + 1) // _POSITIONS)
    stretch = place // length
    counts = np.bincount(stretch)
    dense, pruned = (np.bincount(stretch, side) / np.maximum(counts, 1) for side in nats)
    return [
        {
            "first": int(number * length) + 2,
            "last": min(int((number + 1) * length), int(place.max()) + 1) + 1,
            "tokens": int(count),
            "dense": float(dense[number]),
            "pruned": float(pruned[number]),
        }
        for number, count in enumerate(counts)
        if count
    ]


def _tokens(tokens: np.ndarray, nats: list[np.ndarray], shown: Callable[[int], str]) -> list[dict[str, Any]]:
    """The tokens on which most was lost in all: how often, mean nats before and after."""
    known, inverse, counts = np.unique(tokens, return_inverse=True, return_counts=True)
    dense, pruned = (np.bincount(inverse, side) for side in nats)
    worst = np.argsort(dense - pruned, kind="stable")[:_TOKENS]
    return [
        {
            "token": _short(shown(int(known[index]))),
            "count": int(counts[index]),
            "dense": float(dense[index] / counts[index]),
            "pruned": float(pruned[index] / counts[index]),
        }
        for index in worst
        if pruned[index] > dense[index]
    ]
