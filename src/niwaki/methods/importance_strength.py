"""How far the rule of the seed is to be trusted: the strength of inverse-importance that diverges least.

At strength s the ratios are s of the way from uniform ones to those of the formula. Each strength is tried on the model
as it stands, on drawn rows: its weights are taken away as the weight score ranks them (for a solve, as Wanda does: the
solve itself would be needed for each), none is refitted. Uniform is among them, so the rule is never worse there.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import Tensor, nn

from niwaki.adapters import effective_weight
from niwaki.allocation.sparsity import Profiles, towards_uniform
from niwaki.anatomy import BlockLinear
from niwaki.observe import Batch, Passes
from niwaki.processes import Parts, shared_out
from niwaki.scoring.sensitivity import ROWS, divergence_of

STRENGTHS = (0.0, 0.25, 0.5, 0.75, 1.0)


def best_strength(
    model: nn.Module,
    linears: Sequence[BlockLinear],
    zeros: dict[str, int],
    profiles: Profiles,
    mask_for: Callable[[BlockLinear, int], Tensor],
    data: Sequence[Batch],
    seed: int,
) -> float:
    """The strength of `STRENGTHS` that diverges least, the lowest of those that do; `zeros` are those of strength 1.

    `mask_for` gives the mask `[out, in]` of a linear with so many zeros.
    """
    with divergence_of(model, data, seed) as without:

        def divergence(strength: float) -> Parts:
            given = towards_uniform(zeros, profiles, strength)
            lost = [effective_weight(linear.module) * ~mask_for(linear, given[linear.name]) for linear in linears]
            return {"mean": without(list(zip(linears, lost, strict=True)))}

        found = [part["mean"] for part in shared_out(STRENGTHS, divergence)]
    return STRENGTHS[found.index(min(found))]


def strength_passes(rows: int) -> Passes:
    """What it costs of so many calibration rows: the dense model and each strength on the drawn ones."""
    return Passes((1 + len(STRENGTHS)) * min(ROWS / rows, 1.0) if rows else 0.0)
