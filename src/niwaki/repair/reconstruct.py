"""Weight by weight: prune each linear so that it does the dense model's work on the pruned model's own inputs.

The unpruned optimum `W*` of `niwaki.repair.sequential_least_squares` is the weight that the OBS pass of
`niwaki.sparsify.obs` then prunes under the same damped moments: among all weights with the mask, it aims at the least
`sum w |t - W x|^2 + d |W - W0|^2`. Without targets t is the linear's own output: SparseGPT as published.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from niwaki.adapters import apply_mask_, bias_of, mask_of, set_effective_weight_
from niwaki.anatomy import BlockLinear
from niwaki.errors import WorkError
from niwaki.masks import Pattern
from niwaki.observe.units import Batch, TokenWeights
from niwaki.repair.sequential_least_squares import DAMPING, Optimum, optimum, sequential_least_squares
from niwaki.sparsify.obs import obs_factor, obs_prune


@torch.no_grad()
def reconstruct_(
    model: nn.Module,
    dense: nn.Module | None,
    data: Sequence[Batch],
    zeros: dict[str, int],
    pattern: Pattern,
    *,
    mask_for: Callable[[BlockLinear], Tensor] | None = None,
    weights: TokenWeights | None = None,
    targets: bool = True,
    progress: bool = False,
) -> list[str]:
    """Prune every linear of `model` to its number of `zeros`, in place; returns warnings.

    `mask_for` chooses the mask of a linear, when its turn has come; the OBS pass does so as it goes where it is not
    given. `weights` say how much each token matters; alike where they are not given.

    Raises:
        WorkError: weights that are not finite, or moments that no damping makes invertible; names the linear.
    """
    warnings: list[str] = []
    for linear, sums in sequential_least_squares(
        model, dense, data, weights=weights, targets=targets, progress=progress
    ):
        best = optimum(linear, sums)
        if best.damping > DAMPING:
            warnings.append(f"{linear.name}: damping was raised to {best.damping:g} for the moments to be factorised")
        _prune_(linear, best, zeros[linear.name], pattern, mask_for(linear) if mask_for else None)
    return warnings


def _prune_(linear: BlockLinear, best: Optimum, zeros: int, pattern: Pattern, mask: Tensor | None) -> None:
    upper = obs_factor(best.factor).float()
    before = mask_of(linear.module)
    pruned, kept = obs_prune(best.weight.float(), upper, zeros, pattern, linear.name, mask=mask, before=before)
    if not bool(torch.isfinite(pruned).all()):
        raise WorkError(f"{linear.name}: the refitted weights are not finite")
    bias = bias_of(linear.module)
    if bias is not None and best.bias is not None:
        bias.copy_(best.bias + (best.weight - pruned) @ best.mean)
    apply_mask_(linear.module, kept)
    set_effective_weight_(linear.module, pruned)
