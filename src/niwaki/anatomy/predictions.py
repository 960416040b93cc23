"""What a model says of a batch, whatever its task: predictions, and how far those of two models are apart.

A model makes n predictions of m numbers each: one a row, one a real token, two a row where it points at the start and
the end of an answer. What the numbers mean is their `kind`:

- `class`: logits, of which the greatest is chosen; two models are compared by the KL of their softmax;
- `labels`: logits of labels that hold or not, each for itself; by the sum of the KL of their sigmoids;
- `number`: one number; by half the squared error;
- `vector`: what a token or a text is as a vector; by 1 - cos, whatever its length.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from niwaki.anatomy.pooling import pooling_of


@dataclass(frozen=True, eq=False)
class Predictions:
    """`values` `[n, m]` of one kind; `possible` `[n, m]` says which classes can be chosen, None that all can."""

    kind: str
    values: Tensor
    possible: Tensor | None = None

    def contrast(self, generator: torch.Generator) -> Tensor:
        """A number whose gradient g says what the output feels: `E[g g^T]` is its curvature, to a constant.

        The sum over predictions of one logit, drawn evenly, less their mean; of all labels, or of the parts of a vector
        of length 1, each with a sign that is drawn; the number itself where there is only one. Rows count alike however
        sure the model is of them: that is the gradient of the KL to the model's own distribution in the limit of a high
        temperature. The mean of its g g^T is so a Fisher information (Martens, "New insights and perspectives on the
        natural gradient method", 2020) that does not vanish where the model is right.
        """
        values = self.values
        if values.shape[-1] == 1:
            return values.sum()
        if self.kind == "vector":  # 1 - cos is half the squared distance of the two at length 1
            values = F.normalize(values, dim=-1)
        if self.kind != "class":
            signs = torch.randint(2, values.shape, generator=generator).to(values) * 2 - 1
            return (values * signs).sum()
        if self.possible is None:
            drawn = torch.randint(values.shape[-1], (*values.shape[:-1], 1), generator=generator).to(values.device)
            return (values.gather(-1, drawn) - values.mean(-1, keepdim=True)).sum()
        weights = self.possible.float()
        drawn = torch.multinomial(weights.cpu(), 1, generator=generator).to(values.device)
        mean = values.masked_fill(~self.possible, 0.0).sum(-1, keepdim=True) / weights.sum(-1, keepdim=True)
        return (values.gather(-1, drawn) - mean).sum()

    def divergence_from(self, dense: Predictions) -> Tensor:
        """How far each prediction is from that of `dense`, `[n]`, not below 0 but for rounding: see the first lines."""
        ours, theirs = self.values, dense.values
        if self.kind == "number":
            return (ours - theirs).square().sum(-1) / 2
        if self.kind == "vector":
            return 1 - F.cosine_similarity(ours, theirs, dim=-1)
        if self.kind == "labels":
            yes = theirs.sigmoid() * (F.logsigmoid(theirs) - F.logsigmoid(ours))
            no = (-theirs).sigmoid() * (F.logsigmoid(-theirs) - F.logsigmoid(-ours))
            return (yes + no).sum(-1)
        p, q = (self._only_possible(logits).log_softmax(-1) for logits in (theirs, ours))
        return F.kl_div(q, p, log_target=True, reduction="none").sum(-1)

    def agrees_with(self, dense: Predictions) -> Tensor:
        """Whether each prediction `[n]` chooses the class, or every label, that the one of `dense` does: 1 or 0."""
        if self.kind == "labels":
            return ((self.values > 0) == (dense.values > 0)).all(-1).float()
        chosen, wanted = (self._only_possible(p.values).argmax(-1) for p in (self, dense))
        return (chosen == wanted).float()

    @property
    def all_alike(self) -> bool:
        """Whether every one chooses the same class or labels, or is the same number to three digits."""
        if self.kind == "vector":
            return False
        if self.kind == "number":
            size = float(self.values.abs().max())
            return float(self.values.max() - self.values.min()) <= 1e-3 * size
        said = self.values > 0 if self.kind == "labels" else self._only_possible(self.values).argmax(-1, keepdim=True)
        return bool((said == said[:1]).all())

    def parts(self, size: int) -> Iterator[Predictions]:
        """The same, `size` predictions at a time."""
        possible = [None] * len(self.values) if self.possible is None else self.possible.split(size)
        for values, allowed in zip(self.values.split(size), possible, strict=False):
            yield Predictions(self.kind, values, allowed)

    def float(self) -> Predictions:
        """The same in single precision."""
        return Predictions(self.kind, self.values.float(), self.possible)

    def double(self) -> Predictions:
        """The same in double precision."""
        return Predictions(self.kind, self.values.double(), self.possible)

    def _only_possible(self, logits: Tensor) -> Tensor:
        return logits if self.possible is None else logits.masked_fill(~self.possible, torch.finfo(logits.dtype).min)


def joined(parts: list[Predictions]) -> Predictions:
    """Predictions of several batches one after the other; those over places are filled up to the longest row."""
    most = max(part.values.shape[-1] for part in parts)
    values = torch.cat([F.pad(part.values, (0, most - part.values.shape[-1])) for part in parts])
    if parts[0].possible is None:
        return Predictions(parts[0].kind, values)
    possible = [F.pad(torch.as_tensor(part.possible), (0, most - part.values.shape[-1])) for part in parts]
    return Predictions(parts[0].kind, values, torch.cat(possible))


def of_rows(outputs: Any, keep: Tensor, model: Any) -> Predictions:
    """One prediction a row: a class, a number, or several labels, as the config says."""
    del keep
    if model.config.problem_type == "multi_label_classification":
        return Predictions("labels", outputs.logits)
    return Predictions("number" if model.config.num_labels == 1 else "class", outputs.logits)


def of_choices(outputs: Any, keep: Tensor, model: Any) -> Predictions:
    """One prediction a row: which of its texts."""
    del keep, model
    return Predictions("class", outputs.logits)


def of_tokens(outputs: Any, keep: Tensor, model: Any) -> Predictions:
    """One prediction a real token: its class, or a word."""
    del model
    return Predictions("class", outputs.logits[keep])


def of_spans(outputs: Any, keep: Tensor, model: Any) -> Predictions:
    """Two predictions a row, all starts and then all ends: which of its real tokens."""
    del model
    return Predictions("class", torch.cat([outputs.start_logits, outputs.end_logits]), torch.cat([keep, keep]))


def of_states(outputs: Any, keep: Tensor, model: Any) -> Predictions:
    """One prediction a text where the model pools (see `niwaki.anatomy.pooling`), else one a real token: its state."""
    states, pooling = outputs.last_hidden_state, pooling_of(model)
    return Predictions("vector", states[keep] if pooling is None else pooling(states, keep))
