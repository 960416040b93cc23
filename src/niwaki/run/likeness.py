"""How alike a model is to the one it came from, on the evaluation data, each as its own tokenizer cuts them."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, cast

from torch import nn

from niwaki.anatomy import accepts_of, one_a_row, supported_task, unwrap
from niwaki.data import Batches
from niwaki.evaluate import Judged
from niwaki.evaluate.fidelity import fidelity, fidelity_of, fidelity_of_words
from niwaki.run.inputs import Inputs


@dataclass(frozen=True)
class Side:
    """A plain model, and the rows of the evaluation data as `inputs` cut them, in their order."""

    model: nn.Module
    inputs: Inputs
    rows: list[dict[str, Any]]
    judged: Judged = field(default_factory=lambda: Judged({}))
    """What it said of them where it was measured."""

    @property
    def tests(self) -> Batches | None:
        """The rows as batches; None without data."""
        return self.inputs.batches(self.rows) if self.rows else None


def likeness(dense: Side, pruned: Side, *, progress: bool = False) -> dict[str, float]:
    """The `fidelity` of `result.json`; nothing where the two do not predict the same things of the same places.

    Where texts were cut alike, all predictions are compared, those that the measuring left where it kept them; else
    rows as wholes, the ends of answers where texts have as many tokens as before, or tags word by word.
    """
    task, other = (supported_task(side.model) for side in (dense, pruned))
    classes, other_classes = (accepts_of(side.model).classes for side in (dense, pruned))
    whole, wholes = (one_a_row(side.model) for side in (dense, pruned))
    if not dense.rows or task is not other or classes != other_classes or whole != wholes or _moved(dense, pruned):
        return {}
    theirs, ours = dense.judged.predictions, pruned.judged.predictions
    if [row["input_ids"] for row in dense.rows] == [row["input_ids"] for row in pruned.rows]:
        if theirs is not None and ours is not None:
            return fidelity_of(theirs, ours)
        return fidelity(dense.model, pruned.model, pruned.inputs.batches(pruned.rows), progress=progress)
    given, own = (side.inputs.batches(side.rows, sort_by_length=False) for side in (dense, pruned))
    lengths, own_lengths = ([len(row["input_ids"]) for row in side.rows] for side in (dense, pruned))
    if whole or (task.labels == "span" and lengths == own_lengths):
        return fidelity(dense.model, pruned.model, given, own, progress)
    return fidelity_of_words(dense.model, pruned.model, given, own) if task.labels == "token" else {}


def _moved(dense: Side, pruned: Side) -> bool:
    """Whether the outputs of the two have the same names in another order."""
    names, other = (list(cast(Any, unwrap(side.model).config).id2label.values()) for side in (dense, pruned))
    return names != other and sorted(names) == sorted(other)
