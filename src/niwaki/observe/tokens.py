"""How much each token matters to the output of each linear.

Not every token counts alike: after the last attention of a classifier that reads the first token, the others count for
nothing. Weighted by the squared size of the gradient of a logit contrast at the linear's output, `sum w_t |error_t|^2`
is, to first order, what an error at that linear does to the logits: least squares under the curvature of the output,
with the Kronecker factor of the inputs taken where it matters (Martens & Grosse, "Optimizing neural networks with
Kronecker-factored approximate curvature", 2015). But few tokens hold most of these squares, as if there were only
`(sum w)^2 / sum w^2` of them (Kish, "Survey Sampling", 1965), and what is fitted to few does not hold on others. So a
token weighs as its gradient does, not as the square.
"""

from __future__ import annotations

import torch
from torch import Tensor

from niwaki.processes import add_up

TokenWeights = list[dict[str, Tensor]]
"""Of each batch, the weights `[real tokens]` by name of the linear, of each run of its layer, one after the other."""
FLOOR = 0.3
"""What every token weighs at least, as a share of the mean: gradients are local, and a token may matter further on."""


def over_mean(squares: TokenWeights) -> TokenWeights:
    """Weights from the `squares` of sizes of gradients, `|g| / mean + FLOOR`: one number for each token and linear.

    The mean is over the tokens of all processes.
    """
    sizes = [{name: squared.sqrt() for name, squared in batch.items()} for batch in squares]
    means = {}
    for name in sizes[0]:
        found = torch.cat([batch[name] for batch in sizes]).double()
        total, tokens = add_up(torch.stack([found.sum(), torch.ones_like(found).sum()])).tolist()
        means[name] = total / tokens or 1.0
    return [{name: size / means[name] + FLOOR for name, size in batch.items()} for batch in sizes]
