"""One streamed pass over calibration data -> running sums, from which every score is made.

All statistics are sums over real (not padded) tokens or over rows, so two observations add: over batches, processes,
restarts. Nothing kept here grows with the data, but for one number for each token and output projection. Gradients are
read by hooks on activations, so frozen weights are observed like the rest, and weights never receive a gradient here
(the backward pass costs one forward, not two). Whole second moments are summed in a pass of their own, a layer at a
time, by `niwaki.observe.moments`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, fields
from typing import Any

import torch
from torch import Tensor, nn
from tqdm import tqdm

from niwaki.anatomy import (
    Site,
    evaluation_mode,
    is_language_model,
    is_regression,
    real_logits,
    sites_of,
    unwrap,
    with_labels,
)
from niwaki.data import token_mask
from niwaki.errors import RequestError, WorkError
from niwaki.numerics.half import half_in_float32
from niwaki.observe.attention import attention_moments, collect_attention

Batch = dict[str, Any]
TokenWeights = list[dict[str, Tensor]]
"""Of each batch, the weights `[real tokens]` by name of the linear, of each run of its layer, one after the other."""


@dataclass
class SiteStatistics:
    """Sums of one site. `n` columns of the output projection (`units * width`), `d` model width.

    inputs: `[n]` sum of x, the input of the output projection, over tokens.
    squares: `[n]` sum of x^2 over tokens.
    output_gradients: `[d, d]` sum of g g^T over tokens, g the gradient of the pseudo-loss at the projection's output.
    moments: `[n, n]` sum of w x x^T, w what the token matters: filled in for one site at a time, see
        `niwaki.observe.moments`.
    fisher: `[units]` sum over rows of (dL/dm)^2, m a mask on the unit, L the task loss of the row.
    taylor: `[units]` sum over rows of |dL/dm|.
    attention: `[units, 3]` per head: variance over keys, over inputs, and the number of (row, query) pairs.
    """

    inputs: Tensor | float = 0.0
    squares: Tensor | float = 0.0
    output_gradients: Tensor | float = 0.0
    moments: Tensor | float = 0.0
    fisher: Tensor | float = 0.0
    taylor: Tensor | float = 0.0
    attention: Tensor | float = 0.0

    def __add__(self, other: SiteStatistics) -> SiteStatistics:
        return SiteStatistics(*(getattr(self, f.name) + getattr(other, f.name) for f in fields(self)))


@dataclass
class Statistics:
    """Sums of all sites by name, with the number of tokens and rows they are over.

    token_sizes: of each batch, by output projection, |g|^2 of every real token: the one thing that is not a sum.
    """

    sites: dict[str, SiteStatistics] = field(default_factory=dict)
    token_sizes: TokenWeights = field(default_factory=list)
    tokens: int = 0
    rows: int = 0
    forward_passes: float = 0.0
    backward_passes: float = 0.0

    def __add__(self, other: Statistics) -> Statistics:
        names = {**self.sites, **other.sites}
        empty = SiteStatistics()
        return Statistics(
            {name: self.sites.get(name, empty) + other.sites.get(name, empty) for name in names},
            self.token_sizes + other.token_sizes,
            self.tokens + other.tokens,
            self.rows + other.rows,
            max(self.forward_passes, other.forward_passes),
            max(self.backward_passes, other.backward_passes),
        )


@dataclass(frozen=True)
class Need:
    """What a request needs: task-loss gradients, gradients of the model's own distribution, attention maps, moments."""

    task_gradients: bool = False
    output_gradients: bool = False
    attention: bool = False
    moments: bool = False

    def __or__(self, other: Need) -> Need:
        return Need(*(getattr(self, f.name) or getattr(other, f.name) for f in fields(self)))


def observe(
    model: nn.Module,
    data: Iterable[Batch],
    need: Need,
    *,
    query_heads: bool = False,
    seed: int = 0,
    temperature: float = 2.0,
    progress: bool = False,
) -> Statistics:
    """Run the calibration batches once through `model` and return the sums that `need` asks for.

    `query_heads` says what the units are, see `niwaki.anatomy.sites_of`.

    Raises:
        RequestError: no batches; task gradients asked of batches without labels.
        WorkError: a loss or statistic that is not finite, naming the site.
    """
    sites = sites_of(model, query_heads)
    total = Statistics({site.name: SiteStatistics() for site in sites})
    generator = torch.Generator().manual_seed(seed)
    with frozen(model, with_gradients=need.task_gradients or need.output_gradients) as device:
        for batch in tqdm(data, desc="observe", unit="batch", disable=not progress, leave=False):
            _observe_batch(model, sites, to_device(batch, device), need, generator, temperature, total)
    if not total.rows:
        raise RequestError("data must hold at least one batch, got none")
    for name, statistics in total.sites.items():
        for f in fields(statistics):
            value = getattr(statistics, f.name)
            if isinstance(value, Tensor) and not bool(torch.isfinite(value).all()):
                raise WorkError(f"{name}: statistic {f.name!r} is not finite; check the weights and the inputs")
    total.forward_passes = 1.0
    total.backward_passes = float(need.task_gradients) + float(need.output_gradients)
    return total


def _observe_batch(
    model: nn.Module,
    sites: list[Site],
    batch: Batch,
    need: Need,
    generator: torch.Generator,
    temperature: float,
    total: Statistics,
) -> None:
    """Add the sums of one batch, in float32, to `total` in place: those of all sites are not held twice."""
    mask = token_mask(batch)
    keep = mask.bool()
    if need.task_gradients:
        batch = with_labels(model, batch)
    found = total.sites
    captured: dict[str, list[tuple[Tensor, Tensor]]] = {site.name: [] for site in sites}  # of each run of the layer

    def capture(site: Site) -> Callable[..., None]:
        def hook(_module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> None:
            captured[site.name].append((args[0], output))

        return hook

    with ExitStack() as stack:
        for site in sites:
            stack.callback(site.output.register_forward_hook(capture(site)).remove)
        maps = stack.enter_context(collect_attention(model, sites)) if need.attention else {}
        with_gradients = need.task_gradients or need.output_gradients
        with torch.set_grad_enabled(with_gradients):
            labels = batch.get("labels")
            outputs = model(**batch) if labels is not None else model(**batch, return_dict=True)
            logits = outputs.logits
            if not bool(torch.isfinite(logits).all()):
                raise WorkError("calibration: the model's logits are not finite; " + _first_non_finite(captured))

    def inputs_of(site: Site) -> Tensor:
        return torch.cat([at_tokens(x.detach(), keep).float() for x, _ in captured[site.name]])

    for site in sites:
        x = inputs_of(site)
        found[site.name].inputs += x.sum(0)
        found[site.name].squares += x.square().sum(0)
        if need.attention and site.kind == "attention":
            for probabilities in maps.pop(site.name):
                found[site.name].attention += attention_moments(probabilities.float(), keep, site)

    if need.task_gradients:
        if labels is None:
            raise RequestError("data must hold labels for the scores fisher and taylor, got batches without `labels`")
        loss = outputs.loss * losses_in(model, batch)
        if not bool(torch.isfinite(loss)):
            raise WorkError("calibration: the task loss is not finite")
        inputs = {s.name: [x for x, _ in captured[s.name]] for s in sites}
        gradients = _gradients(loss, inputs, retain_graph=need.output_gradients)
        for site in sites:
            products = [
                x.detach().float() * g.float() for x, g in zip(inputs[site.name], gradients[site.name], strict=True)
            ]
            product = torch.stack(products).sum(0).reshape(*mask.shape, -1) * mask[..., None]
            per_row = product.sum(1).reshape(len(product), site.units, site.width).sum(-1)
            found[site.name].fisher += per_row.square().sum(0)
            found[site.name].taylor += per_row.abs().sum(0)
    if need.output_gradients:
        loss = pseudo_loss(real_logits(logits, keep), generator, temperature, regression=is_regression(model))
        gradients = _gradients(loss, {s.name: [y for _, y in captured[s.name]] for s in sites})
        sizes: dict[str, Tensor] = {}
        for site in sites:
            g = torch.cat([at_tokens(part, keep).float() for part in gradients[site.name]])
            found[site.name].output_gradients += g.T @ g
            sizes[site.output_name] = g.square().sum(-1)
        total.token_sizes.append(sizes)
    total.tokens += int(keep.sum())
    total.rows += len(mask)


def _gradients(loss: Tensor, values: dict[str, list[Tensor]], *, retain_graph: bool = False) -> dict[str, list[Tensor]]:
    """The gradients of `loss` at these values, in the same order under the same names."""
    found = iter(torch.autograd.grad(loss, [x for parts in values.values() for x in parts], retain_graph=retain_graph))
    return {name: [next(found) for _ in parts] for name, parts in values.items()}


def at_tokens(values: Tensor, keep: Tensor) -> Tensor:
    """`[real tokens, n]` of `values` `[rows, length, n]`, which some layers flatten to `[rows * length, n]`."""
    return values.reshape(*keep.shape, values.shape[-1])[keep]


def losses_in(model: nn.Module, batch: Batch) -> int:
    """How many losses the model's own loss on the batch is the mean of: those of its rows, or of its next tokens."""
    if is_language_model(model):
        return max(1, int((batch["labels"][:, 1:] != -100).sum()))
    return len(batch["labels"])


def pseudo_loss(logits: Tensor, generator: torch.Generator, temperature: float, *, regression: bool) -> Tensor:
    """A loss whose squared gradient is, in the mean, the curvature of the KL to the model itself.

    Labels are drawn from the model's own distribution softened by `temperature` (for regression: a unit normal
    around the prediction), so the mean of g g^T is the true Fisher, not the empirical one that vanishes where the
    model is right. Martens, "New insights and perspectives on the natural gradient method", 2020.
    """
    if regression:
        noise = torch.randn(logits.shape, generator=generator).to(logits)
        return (logits * noise).sum()
    logp = torch.log_softmax(logits.float() / temperature, -1)
    drawn = torch.multinomial(logp.detach().exp().cpu(), 1, generator=generator).to(logits.device)
    return -logp.gather(-1, drawn).sum()


def to_device(batch: Batch, device: torch.device) -> Batch:
    return {name: value.to(device) if isinstance(value, Tensor) else value for name, value in batch.items()}


def _first_non_finite(captured: dict[str, list[tuple[Tensor, Tensor]]]) -> str:
    for name, runs in captured.items():
        if not all(bool(torch.isfinite(output).all()) for _, output in runs):
            return f"first seen in {name}"
    return "first seen after the last layer"


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
