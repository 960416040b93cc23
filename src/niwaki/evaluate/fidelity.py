"""How alike two models are on the same data, whatever their task; of labels only where they stand is looked at."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import nn

from niwaki.anatomy import Predictions, Said, evaluation_mode, joined, predicted_tokens
from niwaki.data import without_labels
from niwaki.errors import RequestError
from niwaki.evaluate.finite import check_finite
from niwaki.numerics.half import half_in_float32
from niwaki.processes import Parts, shared_out
from niwaki.progress import bar

Batch = dict[str, Any]


@torch.inference_mode()
def fidelity(
    dense: nn.Module,
    pruned: nn.Module,
    batches: Iterable[Batch],
    pruned_batches: Iterable[Batch] | None = None,
    progress: bool = False,
) -> dict[str, float]:
    """`agreement`, the share of the predictions that choose alike, and `kl`, the mean divergence in nats.

    Of a number the mean half squared error alone, as `kl` (that of two Gaussians of variance 1); of vectors `cosine`,
    their mean cosine. `pruned_batches` are the same rows in the same order, where the pruned model has a tokenizer of
    its own. Both models are in evaluation mode meanwhile.

    Raises:
        RequestError: no batch. WorkError: outputs that are not finite.
    """
    shown = bar(batches, phase="compare", unit="batches", progress=progress)
    pairs = ((batch, batch) for batch in shown) if pruned_batches is None else zip(shown, pruned_batches, strict=True)
    with evaluation_mode(dense, pruned), half_in_float32(dense, pruned):
        return _figures(shared_out(pairs, lambda pair: _apart(*map(_predicted, (dense, pruned), pair))))


def fidelity_of(dense: Predictions, pruned: Predictions) -> dict[str, float]:
    """The same of predictions that were kept, of the same things in the same order."""
    return _figures([_apart((dense,), (pruned,))])


def _apart(dense: Iterable[Predictions], pruned: Iterable[Predictions]) -> Parts:
    """Their kind and count, and of each part the sums of how far apart and how often alike they are."""
    kind, count, apart, alike = "", 0, list[float](), list[float]()
    for theirs, ours in zip(dense, pruned, strict=True):
        kind, count = ours.kind, count + len(ours.values)
        apart.append(float(ours.divergence_from(theirs).double().sum()))
        alike.append(float(ours.agrees_with(theirs).sum()) if kind in ("class", "labels") else 0.0)
    return {"kind": kind, "count": count, "apart": apart, "alike": alike}


def _figures(parts: Sequence[Parts]) -> dict[str, float]:
    """The figures over all batches."""
    count = sum(part["count"] for part in parts)
    if not count:
        raise RequestError("eval_data must hold at least one row, got none")
    apart, alike = (sum(each for part in parts for each in part[name]) for name in ("apart", "alike"))
    if parts[0]["kind"] == "vector":
        return {"cosine": 1 - apart / count}
    agreement = {"agreement": alike / count} if parts[0]["kind"] != "number" else {}
    return agreement | {"kl": max(0.0, apart / count)}


@torch.inference_mode()
def fidelity_of_words(
    dense: nn.Module, pruned: nn.Module, batches: Iterable[Batch], pruned_batches: Iterable[Batch]
) -> dict[str, float]:
    """The same of two models that tag words and cut them into other pieces: where words have labels, in order.

    Nothing where not all words have one in both.
    """
    found = []
    with evaluation_mode(dense, pruned), half_in_float32(dense, pruned):
        for model, data in ((dense, batches), (pruned, pruned_batches)):
            labelled = (batch for batch in data if "labels" in batch)
            seen = shared_out(labelled, lambda batch, model=model: _of_words(model, batch))
            found.append(joined([Predictions(**part) for part in seen]) if seen else None)
    theirs, ours = found
    if theirs is None or ours is None or len(theirs.values) != len(ours.values):
        return {}
    return {
        "agreement": float(ours.agrees_with(theirs).mean()),
        "kl": max(0.0, float(ours.divergence_from(theirs).double().mean())),
    }


def _of_words(model: nn.Module, batch: Batch) -> Parts:
    found = joined(list(_predicted(model, batch)))
    return {"kind": found.kind, "values": found.values, "possible": found.possible}


def _predicted(model: nn.Module, batch: Batch) -> Iterator[Predictions]:
    """What a model says of a batch where it was asked, part by part."""
    device = next(model.parameters()).device
    inputs = {name: value.to(device) for name, value in without_labels(batch).items()}
    for part in Said(model, inputs).parts(predicted_tokens(model, batch).to(device)):
        found = part().float()
        check_finite(model, found.values)
        yield found
