"""How good the vectors of a sentence encoder are: on pairs with a score, and at finding what answers a query.

Alike is what the cosine says, whatever the length of the vectors. Every query searches all second texts of the data,
each of which counts once; it is answered by any of those that stand beside it.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from niwaki.anatomy import Predictions, predictions_of
from niwaki.data import Batches, token_mask
from niwaki.data.batches import ANSWER
from niwaki.data.sentences import OfPair
from niwaki.errors import RequestError
from niwaki.evaluate.finite import check_finite
from niwaki.evaluate.judged import Answers, Judged
from niwaki.evaluate.passes import seen_over
from niwaki.evaluate.rows import correlations, of_numbers
from niwaki.evaluate.sums import figures_and_intervals
from niwaki.processes import Parts

NEAREST = (1, 10)
SEARCH_METRICS = (*(f"recall_at_{k}" for k in NEAREST), "mrr")
EMBEDDING_METRICS = ("spearman", "pearson", *SEARCH_METRICS)


@torch.inference_mode()
def embeddings(model: nn.Module, batches: Iterable[dict[str, Any]], progress: bool = False) -> Judged:
    """`NUMBER_METRICS` of the cosine and the score, or `SEARCH_METRICS`, by what the pairs are.

    Raises:
        RequestError: batches that do not come from such pairs. WorkError: vectors that are not finite.
    """
    if not isinstance(batches, Batches) or not batches.rows or ANSWER not in batches.rows[0]:
        raise RequestError("eval_data must be pairs, with a score or of queries and what they are to find")

    def see(batch: dict[str, Any], outputs: Any) -> Parts:
        keep = token_mask(batch).bool().to(next(model.parameters()).device)
        vectors = predictions_of(model, outputs, keep).values.float().cpu()
        check_finite(model, vectors)
        return {"vectors": F.normalize(vectors, dim=-1)}

    seen = seen_over(model, batches, see, progress)
    of: list[OfPair] = [row[ANSWER] for row in batches.rows]
    vectors = torch.cat([part["vectors"] for part in seen])
    if of[0].score is None:
        judged = _search(of, vectors)
    else:
        first, second = ([*rows.values()] for rows in _rows_by_pair(of))
        cosines = (vectors[first] * vectors[second]).sum(-1).numpy().astype(float)
        truth = np.array([of[row].score for row in first], float)
        texts = [f"{of[one].text} / {of[other].text}" for one, other in zip(first, second, strict=True)]
        answers = of_numbers(cosines, truth, list(range(len(texts))), texts.__getitem__)
        judged = Judged(*correlations(cosines, truth), answers=answers)
    return replace(judged, predictions=Predictions("vector", vectors))


def _rows_by_pair(of: list[OfPair]) -> tuple[dict[int, int], dict[int, int]]:
    """Pair -> row of its first, and of its second text, in the order of the pairs, which is that of the data."""
    rows = sorted(range(len(of)), key=lambda row: of[row].pair)
    first, second = ({of[row].pair: row for row in rows if of[row].side == side} for side in (0, 1))
    return first, second


def _search(of: list[OfPair], vectors: Tensor) -> Judged:
    """Of every query the share of its documents among the k nearest, and 1 / the place of the nearest of its own."""
    first, second = _rows_by_pair(of)
    documents = {of[row].text: row for row in second.values()}
    numbers = {text: number for number, text in enumerate(documents)}
    asked = {of[row].text: row for row in first.values()}
    place_in_data = {of[row].text: pair for pair, row in reversed(first.items())}
    wanted: dict[str, set[int]] = {text: set() for text in asked}
    for pair, row in first.items():
        wanted[of[row].text].add(numbers[of[second[pair]].text])
    corpus, places, sums = vectors[list(documents.values())], list[int](), list[list[float]]()
    for text, index in asked.items():
        alike = corpus @ vectors[index]  # of two that are as alike the first is found first
        ranks = sorted(1 + int((alike > alike[n]).sum() + (alike[:n] == alike[n]).sum()) for n in wanted[text])
        shares = [sum(rank <= k for rank in ranks) / len(ranks) for k in NEAREST]
        sums.append([*shares, 1 / ranks[0], 1.0])
        places.append(ranks[0])
    quality, interval = figures_and_intervals(
        np.array(sums), lambda sums: dict(zip(SEARCH_METRICS, (sums[:, :-1] / sums[:, -1:]).T, strict=True))
    )
    answers = Answers(
        kind="rank",
        values=places,
        truth=[1] * len(places),
        right=[place == 1 for place in places],
        order=[place_in_data[text] for text in asked],
        text=list(asked).__getitem__,
        shown=lambda _, place: f"found at place {place}",
    )
    return Judged(quality, interval, answers=answers)
