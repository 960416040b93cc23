"""Sublayer by sublayer, bottom-up: refit each output projection to the dense model on the pruned model's own inputs.

For a sublayer let r = dense(residual + output) - pruned(residual + output) at each real token, and x the input of the
pruned output projection, with a 1 appended for the bias. The correction that minimises
`sum |r - dW x|^2 + lambda |dW|^2` is `dW = (sum r x^T) (sum x x^T + lambda I)^-1`. The target holds the residual
stream, so what earlier cuts did wrong is made good here too (K-prune, Park et al., ICLR
2024). The ridge pulls towards the weights as they were, so few data change little. `bias` refits the appended 1
alone: the mean of r.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from tqdm import tqdm

from niwaki.anatomy import Call, Site, first_layer_call, layers_of, sites_of
from niwaki.data import token_mask
from niwaki.errors import WorkError
from niwaki.lora import bias_of, effective_weight, set_effective_weight_
from niwaki.observe import Batch
from niwaki.solve import damped_factor

DAMPING = 1e-2


@torch.no_grad()
def refit_(model: nn.Module, dense: nn.Module, data: Iterable[Batch], method: str, *, progress: bool = False) -> None:
    """Refit all output projections of `model` (`bias` or `least-squares`) to `dense`, in place.

    The hidden states of the calibration data are carried from layer to layer: memory is rows x length x width, twice.

    Raises:
        WorkError: a correction that is not finite, or a solve that no damping saves; names the site.
    """
    modes = model.training, dense.training
    model.eval()
    dense.eval()
    dense_run, pruned_run = Stream(dense, data), Stream(model, data)
    sites = {(site.layer, site.kind): site for site in sites_of(model)}
    dense_sites = {(site.layer, site.kind): site for site in sites_of(dense)}
    layers = range(len(layers_of(model)))
    for index in tqdm(layers, desc="repair", unit="layer", disable=not progress, leave=False):
        kinds = ("attention", "ffn")
        targets = dense_run.advance(index, [dense_sites[index, kind].residual_sum for kind in kinds])
        for kind, target in zip(kinds, targets, strict=True):
            site = sites[index, kind]
            _refit_site_(site, target, pruned_run.inputs_and_sums(index, site), method)
        pruned_run.advance(index, [])
    model.train(modes[0])
    dense.train(modes[1])


def _refit_site_(site: Site, targets: list[Tensor], seen: Iterable[tuple[Tensor, Tensor]], method: str) -> None:
    moments: Tensor | float = 0.0
    cross: Tensor | float = 0.0
    for target, (x, total) in zip(targets, seen, strict=True):
        missing = (target - total).double()
        x = torch.cat([x.double(), x.new_ones(len(x), 1, dtype=torch.double)], 1)
        moments = moments + x.T @ x
        cross = cross + missing.T @ x
    moments, cross = torch.as_tensor(moments), torch.as_tensor(cross)
    if method == "bias":
        correction = torch.zeros_like(cross)
        correction[:, -1] = cross[:, -1] / moments[-1, -1]
    else:
        correction = torch.cholesky_solve(cross.T, damped_factor(moments, site.name, DAMPING)).T
    if not bool(torch.isfinite(correction).all()):
        raise WorkError(f"{site.name}: the refitted weights are not finite")
    set_effective_weight_(site.output, effective_weight(site.output) + correction[:, :-1])
    bias = bias_of(site.output)
    if bias is not None:
        bias += correction[:, -1].to(bias)


class _Seen(Exception):  # noqa: N818 - not an error: it ends a layer's pass that has shown what was wanted
    pass


class Stream:
    """The hidden states of all batches before one layer, carried on a layer at a time."""

    def __init__(self, model: nn.Module, data: Iterable[Batch]) -> None:
        self.layers = layers_of(model)
        self.calls: list[Call] = []
        self.keep: list[Tensor] = []
        device = next(model.parameters()).device
        for batch in data:
            inputs = {k: v.to(device) for k, v in batch.items() if isinstance(v, Tensor) and k != "labels"}
            self.calls.append(first_layer_call(model, inputs))
            self.keep.append(token_mask(inputs).bool())

    def _run(self, index: int) -> Iterable[tuple[int, Any]]:
        for number, (args, kwargs) in enumerate(self.calls):
            output = self.layers[index](*args, **kwargs)
            yield number, output[0] if isinstance(output, tuple) else output

    def advance(self, index: int, sums: list[nn.Module]) -> list[list[Tensor]]:
        """Carry all batches through layer `index`; return the real tokens' inputs of each module in `sums`."""
        seen: list[list[Tensor]] = [[] for _ in sums]
        hooks = []
        for module, found in zip(sums, seen, strict=True):

            def keep(_module: nn.Module, args: tuple[Tensor, ...], found: list[Tensor] = found) -> None:
                found.append(args[0])

            hooks.append(module.register_forward_pre_hook(keep))
        outputs = []
        for number, output in self._run(index):
            for found in seen:
                found[-1] = found[-1][self.keep[number]]
            outputs.append(output)
        for hook in hooks:
            hook.remove()
        self.calls = [((out, *args[1:]), kwargs) for out, (args, kwargs) in zip(outputs, self.calls, strict=True)]
        return seen

    def inputs_and_sums(self, index: int, site: Site) -> Iterable[tuple[Tensor, Tensor]]:
        """For each batch, the real tokens' inputs of the site's output projection and residual + output."""
        seen: dict[str, Tensor] = {}
        hooks = [
            site.output.register_forward_pre_hook(lambda _m, args: seen.__setitem__("x", args[0])),
            site.residual_sum.register_forward_pre_hook(lambda _m, args: seen.__setitem__("sum", args[0])),
        ]
        for number, _ in self._run(index):
            yield seen["x"][self.keep[number]], seen["sum"][self.keep[number]]
        for hook in hooks:
            hook.remove()

    def seen(
        self, index: int, inputs: dict[str, nn.Module], outputs: dict[str, nn.Module], *, advance: bool = False
    ) -> Iterable[dict[str, Tensor]]:
        """For each batch, the real tokens' inputs and outputs of these modules of layer `index`, by key.

        With `advance` the batches are carried through the layer; without, no more of it is run than is needed.
        """
        found: dict[str, Tensor] = {}
        hooks = []

        def note(key: str, value: Tensor) -> None:
            found[key] = value
            if not advance and len(found) == len(inputs) + len(outputs):
                raise _Seen

        for key, module in inputs.items():

            def before(_module: nn.Module, args: tuple[Tensor, ...], key: str = key) -> None:
                note(key, args[0])

            hooks.append(module.register_forward_pre_hook(before))
        for key, module in outputs.items():

            def after(_module: nn.Module, _args: Any, output: Tensor, key: str = key) -> None:
                note(key, output)

            hooks.append(module.register_forward_hook(after))
        calls = []
        for (args, kwargs), keep in zip(self.calls, self.keep, strict=True):
            found.clear()
            try:
                output = self.layers[index](*args, **kwargs)
                calls.append(((output[0] if isinstance(output, tuple) else output, *args[1:]), kwargs))
            except _Seen:
                pass
            yield {key: value[keep] for key, value in found.items()}
        for hook in hooks:
            hook.remove()
        if advance:
            self.calls = calls
