"""How much each token matters to the output of each linear, from one pass over the calibration data.

Not every token counts alike: after the last attention of a classifier that reads the first token, the others count for
nothing. The weight of a token is the squared size of the gradient of a logit contrast at the linear's output, so that
`sum w_t |error_t|^2` is, to first order, what an error at that linear does to the logits: least squares under the
curvature of the output, with the Kronecker factor of the inputs taken where it matters (Martens & Grosse, "Optimizing
neural networks with Kronecker-factored approximate curvature", 2015).
"""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import ExitStack

import torch
from torch import Tensor, nn
from tqdm import tqdm

from niwaki.anatomy import linears_of, real_logits
from niwaki.data import token_mask
from niwaki.observe.units import Batch, TokenWeights, at_tokens, frozen, to_device

FLOOR = 0.3
"""What every token weighs at least, as a share of the mean: gradients are local, and a token may matter further on."""


def token_weights(model: nn.Module, data: Iterable[Batch], *, seed: int = 0, progress: bool = False) -> TokenWeights:
    """`|g|^2 / mean + FLOOR` of every real token at every linear of the blocks, g the gradient at its output `[out]`.

    Memory is one number for each token and linear.
    """
    linears = linears_of(model)
    generator = torch.Generator().manual_seed(seed)
    found: TokenWeights = []
    with frozen(model, with_gradients=True) as device:
        for batch in tqdm(data, desc="weigh tokens", unit="batch", disable=not progress, leave=False):
            inputs = {name: value for name, value in to_device(batch, device).items() if name != "labels"}
            outputs: list[tuple[str, Tensor]] = []
            with ExitStack() as stack:
                for linear in linears:

                    def capture(_module: nn.Module, _args: object, output: Tensor, name: str = linear.name) -> None:
                        outputs.append((name, output))  # noqa: B023 - the hook is gone before the next batch

                    stack.callback(linear.module.register_forward_hook(capture).remove)
                keep = token_mask(inputs).bool()
                contrast = logit_contrast(real_logits(model(**inputs).logits, keep), generator)
            sizes: dict[str, list[Tensor]] = {}
            gradients = torch.autograd.grad(contrast, [output for _, output in outputs])
            for (name, _), gradient in zip(outputs, gradients, strict=True):
                sizes.setdefault(name, []).append(at_tokens(gradient, keep).float().square().sum(-1))
            found.append({name: torch.cat(parts) for name, parts in sizes.items()})
    return over_mean(found)


def over_mean(sizes: TokenWeights) -> TokenWeights:
    """Weights from squared sizes of gradients: what they are of their linear's mean, plus `FLOOR`."""
    means = {name: float(torch.cat([batch[name] for batch in sizes]).mean()) or 1.0 for name in sizes[0]}
    return [{name: size / means[name] + FLOOR for name, size in batch.items()} for batch in sizes]


def logit_contrast(logits: Tensor, generator: torch.Generator) -> Tensor:
    """Sum over rows of one logit, drawn evenly, less the mean of the row; the logit itself where there is only one.

    Rows count alike however sure the model is of them; that is the gradient of the KL to the model's own distribution
    in the limit of a high temperature.
    """
    if logits.shape[-1] == 1:
        return logits.sum()
    drawn = torch.randint(logits.shape[-1], (*logits.shape[:-1], 1), generator=generator).to(logits.device)
    return (logits.gather(-1, drawn) - logits.mean(-1, keepdim=True)).sum()
