"""How alike two models are on the same data, whatever their task: no labels are looked at."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from niwaki.anatomy import Predictions, Said, evaluation_mode, joined
from niwaki.data import token_mask, without_labels
from niwaki.data.batches import UNLABELLED
from niwaki.errors import RequestError
from niwaki.evaluate.finite import check_finite
from niwaki.numerics.half import half_in_float32
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
        return _compared((_predicted(dense, batch), _predicted(pruned, own)) for batch, own in pairs)


def fidelity_of(dense: Predictions, pruned: Predictions) -> dict[str, float]:
    """The same of predictions that were kept, of the same things in the same order."""
    return _compared([((dense,), (pruned,))])


def _compared(pairs: Iterable[tuple[Iterable[Predictions], Iterable[Predictions]]]) -> dict[str, float]:
    """The figures over all pairs of what dense and pruned say of the same, each in as many parts."""
    kind, count = "", 0
    apart = alike = 0.0
    for theirs, ours in pairs:
        for wanted, mine in zip(theirs, ours, strict=True):
            kind = mine.kind
            apart += float(mine.divergence_from(wanted).double().sum())
            alike += float(mine.agrees_with(wanted).sum()) if kind in ("class", "labels") else 0.0
            count += len(mine.values)
    if not count:
        raise RequestError("eval_data must hold at least one row, got none")
    if kind == "vector":
        return {"cosine": 1 - apart / count}
    agreement = {"agreement": alike / count} if kind != "number" else {}
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
            labelled = ((batch, batch["labels"] != UNLABELLED) for batch in data if "labels" in batch)
            parts = [part for batch, where in labelled for part in _predicted(model, batch, where)]
            found.append(joined(parts) if parts else None)
    theirs, ours = found
    if theirs is None or ours is None or len(theirs.values) != len(ours.values):
        return {}
    return {
        "agreement": float(ours.agrees_with(theirs).mean()),
        "kl": max(0.0, float(ours.divergence_from(theirs).double().mean())),
    }


def _predicted(model: nn.Module, batch: Batch, keep: Tensor | None = None) -> Iterator[Predictions]:
    """What a model says of a batch, part by part, of tokens where `keep` is True; by default of all real ones."""
    device = next(model.parameters()).device
    inputs = {name: value.to(device) for name, value in without_labels(batch).items()}
    keep = token_mask(inputs).bool() if keep is None else keep.to(device)
    for part in Said(model, inputs).parts(keep):
        found = part().float()
        check_finite(model, found.values)
        yield found
