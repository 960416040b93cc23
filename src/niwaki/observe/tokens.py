"""How much each token matters to the output of each linear.

Not every token counts alike: after the last attention of a classifier that reads the first token, the others count for
nothing. The weight of a token is the squared size of the gradient of a logit contrast at the linear's output, so that
`sum w_t |error_t|^2` is, to first order, what an error at that linear does to the logits: least squares under the
curvature of the output, with the Kronecker factor of the inputs taken where it matters (Martens & Grosse, "Optimizing
neural networks with Kronecker-factored approximate curvature", 2015).
"""

from __future__ import annotations

from collections.abc import Iterable

from torch import nn

from niwaki.observe.observe import observe
from niwaki.observe.statistics import Batch, Need, TokenWeights, mean_of

FLOOR = 0.3
"""What every token weighs at least, as a share of the mean: gradients are local, and a token may matter further on."""


def token_weights(model: nn.Module, data: Iterable[Batch], *, seed: int = 0, progress: bool = False) -> TokenWeights:
    """`|g|^2 / mean + FLOOR` of every real token at every linear of the blocks, from one pass over the data.

    Memory is one number for each token and linear.
    """
    return over_mean(observe(model, data, Need(token_sizes=True), seed=seed, progress=progress).token_sizes)


def over_mean(sizes: TokenWeights) -> TokenWeights:
    """Weights from squared sizes of gradients: what they are of their linear's mean, plus `FLOOR`."""
    means = {name: mean_of(sizes, name) for name in sizes[0]}
    return [{name: size / means[name] + FLOOR for name, size in batch.items()} for batch in sizes]
