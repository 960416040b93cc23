"""One streamed pass over calibration data -> running sums, from which every score is made.

Nothing kept here grows with the data, but for one number for each token and linear where that is asked. Whole second
moments of inputs are summed in a pass of their own, a layer at a time, by `niwaki.observe.moments`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from niwaki.anatomy import evaluation_mode, linears_of, sites_of, unwrap, with_labels
from niwaki.errors import RequestError
from niwaki.numerics.half import half_in_float32
from niwaki.observe.shares import shared
from niwaki.observe.statistics import Batch, LinearSums, Need, Passes, Statistics, UnitSums, to_device
from niwaki.observe.watch import observe_batch
from niwaki.progress import bar

_APART = 1_000_003
"""Between the seeds of two batches: more than users have seeds close by."""


def observe(
    model: nn.Module,
    data: Iterable[Batch],
    need: Need,
    *,
    query_heads: bool = False,
    seed: int = 0,
    progress: bool = False,
) -> Statistics:
    """Run the calibration batches once through `model` and return the sums that `need` asks for.

    `query_heads` says what the units are, see `niwaki.anatomy.sites_of`.

    Raises:
        RequestError: no batches; task gradients asked of batches without labels.
        WorkError: logits, a loss or a statistic that is not finite, naming the linear where one can be named.
    """
    sites, linears = sites_of(model, query_heads), linears_of(model)
    total = Statistics({x.name: LinearSums() for x in linears}, {site.name: UnitSums() for site in sites})
    shown = bar(data, phase="observe", unit="batches", progress=progress)
    with frozen(model, with_gradients=need.task or need.contrast) as device:
        for number, batch in shared(shown):
            here = to_device(with_labels(model, batch) if need.task else batch, device)
            # Of its own for each batch: whichever process has it draws alike.
            generator = torch.Generator().manual_seed(seed + number * _APART)
            observe_batch(model, sites, linears, here, need, generator, total)
    total.add_up_()
    if not total.rows:
        raise RequestError("data must hold at least one batch, got none")
    total.check_finite()
    total.passes = Passes(1.0, float(need.task) + float(need.contrast))
    return total


@contextmanager
def frozen(model: nn.Module, *, with_gradients: bool) -> Iterator[torch.device]:
    """Evaluation mode, no gradient for weights; with gradients, activations carry them from the embeddings on."""
    trainable = [p for p in model.parameters() if p.requires_grad]
    for p in trainable:
        p.requires_grad_(False)

    def require(_module: nn.Module, _args: Any, output: Tensor) -> Tensor:
        return output.requires_grad_() if with_gradients else output

    hook = unwrap(model).get_input_embeddings().register_forward_hook(require)
    try:
        with evaluation_mode(model), half_in_float32(model):
            yield next(model.parameters()).device
    finally:
        hook.remove()
        for p in trainable:
            p.requires_grad_(True)
