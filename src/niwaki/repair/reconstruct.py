"""Weight by weight: each linear is sparsified so that it does the dense model's work on the pruned model's own inputs.

The unpruned optimum `W*` of `niwaki.repair.least_squares` is the weight that is then pruned under the same damped
moments: among all weights with so many zeros, the least `sum w |t - W x|^2 + d |W - W0|^2` is aimed at. Without targets
t is the linear's own output: SparseGPT and ALPS as published.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import Tensor, nn

from niwaki.adapters import apply_mask_
from niwaki.anatomy import BlockLinear
from niwaki.observe import Batch, TokenWeights
from niwaki.processes import Parts
from niwaki.repair.kept_targets import KeptTargets
from niwaki.repair.least_squares import Optimum, Sums, fit_with, optimum, store_
from niwaki.repair.sequential_least_squares import AfterLayer, sequential_least_squares_

Sparsify = Callable[[BlockLinear, Optimum], tuple[Tensor, Tensor]]
"""A linear and what is best for it -> its pruned weight and its mask, both `[out, in]`."""


def reconstruct_(
    model: nn.Module,
    dense: nn.Module | None,
    data: Sequence[Batch],
    sparsify: Sparsify,
    *,
    weights: TokenWeights | None = None,
    targets: bool = True,
    at_once: bool = False,
    kept_by: str | None = "",
    then: AfterLayer | None = None,
    kept: KeptTargets | None = None,
    progress: bool = False,
) -> list[str]:
    """Give every linear of `model`, when its turn has come, the weight and the mask that `sparsify` says; warnings.

    `weights` say how much each token matters; alike where they are not given. With `at_once` a layer is looked at once,
    see `sequential_least_squares_`, as `kept_by`. `then` is called after each layer. What the dense model gives is
    `kept` for others.

    Raises:
        WorkError: weights that are not finite, or moments that no damping makes invertible; names the linear.
    """
    warnings: list[str] = []

    def fit(linear: BlockLinear, sums: Sums) -> Parts:
        best = optimum(linear, sums)
        weight, mask = sparsify(linear, best)
        return {**fit_with(best, weight), "mask": mask, "raised": best.raised}

    def put_(linear: BlockLinear, fitted: Parts) -> None:
        if fitted["raised"] is not None:
            raised = f"damping was raised to {fitted['raised']:g} for the moments to be factorised"
            warnings.append(f"{linear.name}: {raised}")
        if linear.size:
            apply_mask_(linear.module, fitted["mask"])
        store_(linear, fitted)

    sequential_least_squares_(
        model, dense, data, lambda sums: [fit(*one) for one in sums], put_, weights=weights, targets=targets,
        at_once=at_once, kept_by=kept_by, then=then, kept=kept, progress=progress,
    )  # fmt: skip
    return warnings
