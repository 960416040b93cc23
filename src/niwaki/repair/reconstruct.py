"""Linear by linear, bottom-up: prune each so that it does the dense model's work on the pruned model's own inputs.

For a linear with input x in the pruned model (a 1 appended for the bias), let t be what it should give: the dense
linear's output; for the projections into the residual stream, dense(residual + output) - pruned(residual), so that what
earlier linears did wrong is made good. The unpruned optimum `W* = (sum t x^T + d W) (sum x x^T + d I)^-1` is the weight
that the OBS pass of `niwaki.repair.obs` then prunes under `sum x x^T + d I`: among all weights with the mask, it aims
at the least `sum |t - W x|^2 + d |W - W0|^2`. Without targets t is the linear's own output: SparseGPT as published.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn
from tqdm import tqdm

from niwaki.anatomy import BlockLinear, evaluation_mode, layers_of, linears_of
from niwaki.errors import WorkError
from niwaki.lora import bias_of, effective_weight, hold_, mask_of, set_effective_weight_
from niwaki.masks import Pattern
from niwaki.observe import Batch
from niwaki.repair.obs import obs_factor, obs_prune
from niwaki.repair.refit import Stream

DAMPING = 1e-2
_INNER = ("query", "key", "value", "up")
_GROUPS = (("query", "key", "value"), ("output",), ("up",), ("down",))
"""Parts of a layer in the order of the data; those of one group see the same input."""


@torch.no_grad()
def reconstruct_(
    model: nn.Module,
    dense: nn.Module,
    data: Sequence[Batch],
    zeros: dict[str, int],
    pattern: Pattern,
    *,
    masks: dict[str, Tensor] | None = None,
    targets: bool = True,
    progress: bool = False,
) -> list[str]:
    """Prune every linear of `model` to its number of `zeros`, or to its mask in `masks`, in place; returns warnings.

    The hidden states of the calibration data are carried from layer to layer: memory is rows x length x width, twice.

    Raises:
        WorkError: weights that are not finite, or moments that no damping makes invertible; names the linear.
    """
    warnings: list[str] = []
    with evaluation_mode(model, dense):
        dense_run, pruned_run = Stream(dense, data), Stream(model, data)
        theirs = {(x.layer, x.part): x for x in linears_of(dense)}
        ours = {(x.layer, x.part): x for x in linears_of(model)}
        layers = range(len(layers_of(model)))
        for index in tqdm(layers, desc="prune", unit="layer", disable=not progress, leave=False):
            wanted = list(dense_run.seen(index, *_places(theirs, index), advance=True))
            for group in _GROUPS:
                linears = [ours[index, part] for part in group if (index, part) in ours]
                if not linears:
                    continue
                sums = _sums(pruned_run, index, linears, wanted, targets)
                _prune_(linears, sums, zeros, pattern, masks, warnings)
            pruned_run.advance(index, [])
    return warnings


def _places(theirs: dict[tuple[int, str], BlockLinear], index: int) -> tuple[dict[str, nn.Module], ...]:
    inputs = {part: theirs[index, part].site.residual_sum for part in ("output", "down") if (index, part) in theirs}
    outputs = {part: theirs[index, part].module for part in _INNER if (index, part) in theirs}
    return inputs, outputs


@dataclass(frozen=True)
class _Sums:
    """Sums over tokens of one group of linears: moments of the shared input with 1 appended, cross moments of each."""

    moments: Tensor
    cross: list[Tensor] | None


def _sums(run: Stream, index: int, linears: list[BlockLinear], wanted: list[dict[str, Tensor]], targets: bool) -> _Sums:
    first = linears[0]
    inputs, outputs = {"x": first.module}, {}
    if first.part in ("output", "down") and targets:
        inputs["sum"] = first.site.residual_sum
        outputs["y"] = first.module
    moments: Tensor | float = 0.0
    cross: list[Tensor | float] = [0.0] * len(linears)
    for batch, dense in zip(run.seen(index, inputs, outputs), wanted, strict=True):
        x = torch.cat([batch["x"], batch["x"].new_ones(len(batch["x"]), 1)], 1)
        moments = moments + x.T @ x
        if targets:
            for number, linear in enumerate(linears):
                target = dense[linear.part]
                if outputs:
                    target = target - (batch["sum"] - batch["y"])
                cross[number] = cross[number] + target.T @ x
    found = [torch.as_tensor(c).double() for c in cross] if targets else None
    return _Sums(torch.as_tensor(moments).double(), found)


def _prune_(
    linears: list[BlockLinear],
    sums: _Sums,
    zeros: dict[str, int],
    pattern: Pattern,
    masks: dict[str, Tensor] | None,
    warnings: list[str],
) -> None:
    """Prune the linears of one group. A bias is free for whatever the weights become: its part leaves the moments."""
    name = linears[0].name
    moments, damping = _damped(sums.moments, name, warnings)
    n = len(moments) - 1
    factor = torch.linalg.cholesky(moments)
    free = moments[:n, :n] - torch.outer(moments[:n, n], moments[n, :n]) / moments[n, n]
    uppers = {
        True: obs_factor(torch.linalg.cholesky(free)) if sums.cross is not None else None,
        False: None,
    }
    for number, linear in enumerate(linears):
        bias = bias_of(linear.module)
        weight = effective_weight(linear.module).double()
        with_bias = bias is not None and sums.cross is not None
        if uppers[with_bias] is None:
            uppers[with_bias] = obs_factor(torch.linalg.cholesky(moments[:n, :n]))
        upper = cast(Tensor, uppers[with_bias])
        if sums.cross is not None and bias is not None:
            before = torch.cat([weight, bias.double()[:, None]], 1)
            # The ridge pulls towards the weight as it was: what the diagonal got, the cross moments get.
            best = torch.cholesky_solve((sums.cross[number] + damping * before).T, factor).T
            weight = best[:, :n]
            bias.copy_(best[:, n])
        elif sums.cross is not None:
            best = torch.linalg.solve(moments[:n, :n], (sums.cross[number][:, :n] + damping * weight).T).T
            weight = best
        mask = None if masks is None else masks[linear.name]
        before_mask = mask_of(linear.module)
        pruned, kept = obs_prune(
            weight.float(), upper, zeros[linear.name], pattern, linear.name, mask=mask, before=before_mask
        )
        if not bool(torch.isfinite(pruned).all()):
            raise WorkError(f"{linear.name}: the refitted weights are not finite")
        if with_bias and bias is not None:
            bias.add_(((weight - pruned) @ (moments[:n, n] / moments[n, n])).to(bias))
        hold_(linear.module, kept)
        set_effective_weight_(linear.module, pruned)


def _damped(moments: Tensor, name: str, warnings: list[str]) -> tuple[Tensor, float]:
    """`moments + d * I` and d, a hundredth of the mean of the diagonal, raised tenfold until it can be factorised."""
    scale = float(moments.diagonal().mean()) or 1.0
    damping = DAMPING
    while damping <= 1:
        raised = moments + damping * scale * torch.eye(len(moments), dtype=moments.dtype, device=moments.device)
        factor, failed = torch.linalg.cholesky_ex(raised)
        if not int(failed) and bool(torch.isfinite(factor).all()):
            if damping > DAMPING:
                warnings.append(f"{name}: damping was raised to {damping:g} for the moments to be factorised")
            return raised, damping * scale
        damping *= 10
    raise WorkError(f"{name}: the second moments cannot be factorised even with damping {damping / 10:g}")
