"""The controller of one training: reads gradients, counts optimizer steps, moves the masks, leaves nothing behind.

One optimizer step t is: backward passes of all micro-batches -> (hook before the optimizer's step) the signed gradient
of the whole batch goes into the scores -> the optimizer steps -> (hook after it) grown weights get the step of their
age -> `step()` moves the masks if t is an update. A step that a GradScaler skipped never reaches the hooks, so it
changes nothing and is not counted.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable
from typing import Any, cast

import torch
from torch import Tensor, nn

from niwaki.adapters import apply_mask_, check_adapters, check_masked, dense_weight, forget_base_, lift_mask_, mask_of
from niwaki.allocation.sparsity import SPARSITY_ALLOCATORS, Profiles, check_budget, whole_blocks
from niwaki.anatomy import BlockLinear, accepts_of, check_filter, linears_of, weight_of
from niwaki.config import DynamicSparsityConfig, LayerAdaptive
from niwaki.config.fields import defaults
from niwaki.data import checked_batches
from niwaki.errors import RequestError, WorkError, check_kind
from niwaki.masks import Block, MaskedLinear, NByM, check_divides, choose, lowest
from niwaki.methods.dynamic.capture import Capture
from niwaki.methods.dynamic.history import Update, summary, with_later
from niwaki.methods.dynamic.optimizer_state import Ages, bare, clear_, gathers
from niwaki.methods.dynamic.reallocate import across, from_units, in_groups, size, to_units, unit_size, within
from niwaki.methods.dynamic.schedules import Schedule, plan_schedule
from niwaki.methods.dynamic.scores import (
    DROP_SCORERS,
    GROW_SCORERS,
    Scorer,
    Seen,
    alike,
    needs_gradients,
    scores_values,
    shuffle,
    stood_in,
)
from niwaki.methods.weight_profiles import profile_linears
from niwaki.numerics.decimals import shown_least
from niwaki.numerics.layout import is_transposed
from niwaki.observe import Batch, Passes
from niwaki.processes import from_first

Masks = dict[str, Tensor]


class Controller:
    """Moves the masks of `model` while `optimizer` trains it; call `step()` after every `optimizer.step()`.

    `steps` is the number of optimizer steps of the whole training. A model that holds masks starts from them, any
    other from `start_sparsity` (or, for `constant`, from `sparsity`) of the smallest weights by `allocation`. `data`
    (batches) is looked at by allocations that need it; `scaler` is the GradScaler of the loop, if it has one.

    What the filter of `config` spares is left alone: its weights, and masks that it holds. The sparsity is that of all
    linears still.

    A model is moved by one controller: an earlier one whose training did not end is detached first.

    Raises:
        RequestError: before anything is changed: the model, the adapter or a pattern does not fit; the model has more
            zeros than asked; the schedule does not reach its target; the optimizer lacks parameters that are trained;
            `returns` is asked where no weight is trained itself.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: Any,
        config: DynamicSparsityConfig,
        steps: int,
        *,
        data: Iterable[Batch] = (),
        scaler: Any = None,
    ) -> None:
        self.model = model
        self.config, self.pattern = config, config.zero_pattern
        self.given, self.optimizer = optimizer, bare(optimizer)
        linears = linears_of(model)
        self.linears = {linear.name: linear for linear in linears if config.may_cut(linear.site)}
        self.sizes = {name: linear.size for name, linear in self.linears.items()}
        self.total = sum(linear.size for linear in linears)
        self.held = self._check(model)
        spared = (mask_of(linear.module) for linear in linears if linear.name not in self.linears)
        self.still = sum(mask.numel() - size(mask) for mask in spared if mask is not None)
        self.schedule = self._planned(steps, self._held_sparsity() if self.held else None)
        batches = checked_batches(accepts_of(model), data, empty=True)
        for mover in _movers(linears):
            mover.detach()
        self.profiles, self.passes = self._profiles(model, batches)
        self.done = 0
        self.generator = torch.Generator().manual_seed(config.seed)
        self.seen = {name: Seen() for name in self.linears}
        self.history: list[Update] = []
        self.shortfall: str | None = None
        self.bases: dict[str, MaskedLinear] = {}
        self.ages: dict[str, Ages] = {}
        self.resting: Masks = {}
        self.capture = Capture(self.bases, scaler)
        self.state, self._stepped = "attached", False
        self._hooks: list[Any] = []
        try:
            self._attach()
        except BaseException:
            self.detach()
            raise

    def _attach(self) -> None:
        """Hold the first masks, lay the values under them aside, and hook into the optimizer."""
        if self.held:
            first = self._whole(self.held)
        else:
            first = {name: from_units(mask, self.pattern) for name, mask in self._start().items()}
        for name, linear in self.linears.items():
            apply_mask_(linear.module, first[name])
            self.bases[name] = _base(linear)
            self.bases[name].mover = self
        self.first = {name: mask.clone() for name, mask in self.masks.items()}
        self.ever = {name: mask.clone() for name, mask in self.masks.items()}
        self.newest = {name: torch.zeros_like(mask) for name, mask in self.masks.items()}
        # Weights that are themselves trained are 0.0 under the mask, where nothing moves them; what they were is here.
        for name, base in self.bases.items():
            if base.weight.requires_grad:
                self.ages[name] = Ages(base.weight)
                self.resting[name] = torch.zeros_like(base.weight.data)
                self._rest(name, ~self.first[name], torch.zeros_like(self.first[name]))
        self._hooks = [
            self.optimizer.register_step_pre_hook(self._before_step),
            self.optimizer.register_step_post_hook(self._after_step),
        ]
        self.arm()

    @property
    def masks(self) -> Masks:
        """The masks as they are, by the name of the linear, `[out, in]`, True where a weight is active."""
        return {name: base.mask for name, base in self.bases.items()}

    @property
    def zeros(self) -> int:
        """Weights that are zero now, those of spared linears among them."""
        return self.still + sum(base.mask.numel() - size(base.mask) for base in self.bases.values())

    @property
    def wanted(self) -> int:
        """Weights that are zero at the end."""
        return self._zeros()

    def summary(self, step: int) -> dict[str, float]:
        """What the update after a step did to all linears together, for a log."""
        made = [row for row in self.history if row.step == step]
        return summary(made, self.sizes, self.still, self.total)

    @property
    def final(self) -> bool:
        """Whether the masks are as asked and will not move any more."""
        return self.done >= self.schedule.last

    def scheduled(self, step: int) -> int:
        """Zeros after optimizer step `step`, whole blocks of them beside those of spared linears."""
        return self._zeros(self.schedule.sparsity(step))

    def dense(self, name: str) -> Tensor:
        """The weight of a linear with the value that would return where it is zero, `[out, in]`."""
        weight = dense_weight(self.linears[name].module)
        returns = name in self.resting and self.config.returns == "value"
        return weight.add_(self.resting[name]) if returns else weight

    def scored(self, name: str) -> Tensor:
        """The same for a score: where a trained weight has no value to return with, with what stands for one.

        A frozen weight without a value gets none: it would be 0 still after it returned.
        """
        if name not in self.resting or not scores_values(self.config):
            return self.dense(name)
        return stood_in(self.dense(name), self.bases[name].mask)

    def step(self) -> list[Update]:
        """To be called after `optimizer.step()`, once; says what an update did, nothing where there was none.

        Raises:
            WorkError: a gradient or a score that is not finite, naming the linear.
            RequestError: the controller was detached.
        """
        self.check_not_detached()
        if not self._stepped:  # skipped by the scaler, between two micro-batches, or finished
            if self._hooks and not gathers(self.given):
                self.arm()
            return []
        self._stepped = False
        self.done += 1
        made = self._update() if self.done in self.schedule.updates else []
        self.history += made
        self.arm()
        return made

    def arm(self) -> None:
        """Capture the gradient of the next step if it is to be looked at, and forget one that was not used."""
        self.capture.arm(needs_gradients(self.config) and self.schedule.captures(self.done + 1))

    def finish(self) -> None:
        """Take all hooks away. The masks stay held, at exactly the asked sparsity; adapters no longer name a base.

        A training that ended before the target (steps that a scaler skipped are none) is brought to it by dropping the
        smallest weights, with a warning, which `shortfall` has too.

        Raises:
            RequestError: the controller was detached.
        """
        self.check_not_detached()
        if self.zeros < self.wanted:
            self.shortfall = (
                f"training ended at step {self.done} of {self.schedule.steps}, before the sparsity "
                f"{self.config.sparsity:g} was reached: {self.wanted - self.zeros} weights were dropped untrained"
            )
            warnings.warn(self.shortfall, stacklevel=2)
            magnitudes = {name: to_units(self.dense(name).abs(), self.pattern) for name in self.linears}
            active = {name: self._units(mask) for name, mask in self.masks.items()}
            made = self._move(self._reallocated(active, magnitudes, magnitudes, self.config.sparsity, 0.0))
            self.history = with_later(self.history, made)
        self.state = "finished"
        forget_base_(self.model)
        self._release()

    def detach(self) -> None:
        """Put back what the controller changed, for a training that failed or was given up; after `finish`, nothing.

        The model holds the masks that it held before, or none. Under them are the values that were there; of weights
        that are themselves trained, those that they were dropped with. What the optimizer did stays.
        """
        if self.state != "attached":
            return
        self.state = "detached"
        moved = [name for name, base in self.bases.items() if vars(base).get("mover") is self]
        self._release()
        for name in moved:
            self.give_back_(name)
            if name in self.held:
                apply_mask_(self.linears[name].module, self.held[name])
            else:
                lift_mask_(self.linears[name].module)

    def give_back_(self, name: str) -> None:
        """Write the values that were laid aside into the weight, but not over what was loaded since."""
        if name in self.resting:
            weight = self.bases[name].weight.data
            weight.add_(self.resting[name].masked_fill(weight != 0, 0))

    def check_not_detached(self) -> None:
        """Refuse to go on with a controller that was detached.

        Raises:
            RequestError: it was, by a call of `detach` or by a later controller of the model.
        """
        if self.state == "detached":
            raise RequestError("controller must be the last one attached to its model, got one that was detached")

    def _release(self) -> None:
        """Take all hooks away."""
        self.capture.arm(False)
        for hook in self._hooks:
            hook.remove()
        self._hooks, self._stepped = [], False
        for base in self.bases.values():
            vars(base).pop("mover", None)

    def _check(self, model: nn.Module) -> Masks:
        """Refuse what cannot be done; the masks that the model holds, if any."""
        check_adapters(model)
        check_masked(model)
        check_filter(model, self.config)
        if not self.linears:
            raise RequestError("model must have linears: looked for query, key, value, output, up, down, found none")
        held: Masks = {}
        for name, linear in self.linears.items():
            if is_transposed(linear.module):
                raise RequestError(f"{name} must store its weight [out, in] for its mask to move, got a Conv1D")
            check_divides(linear.shape, self.pattern, name)
            mover = getattr(_base(linear), "mover", None)
            mask = mask_of(linear.module) if mover is None else mover.held.get(name)
            if mask is not None:
                if not self._fits(mask):
                    raise RequestError(f"pattern must be that of the masks the model holds, got {self.pattern}")
                held[name] = mask.clone()
        _check_optimizer(self.optimizer, list(self.linears.values()))
        if self.config.returns != "value" and not any(_base(x).weight.requires_grad for x in self.linears.values()):
            rule = "returns must be left out where no weight is trained itself (under LoRA each keeps its value)"
            raise RequestError(f"{rule}, got {self.config.returns!r}")
        return held

    def _held_sparsity(self) -> float:
        """The sparsity of the masks that the model came with, as the one that is asked counts it."""
        zeros = sum(mask.numel() - size(mask) for mask in self.held.values())
        if isinstance(self.pattern, NByM):
            return zeros / sum(self.sizes.values())
        return (zeros + self.still) / self.total

    def _planned(self, steps: int, start: float | None) -> Schedule:
        """The schedule, from the sparsity that the model holds, if it holds masks."""
        if start is not None and start > self.config.sparsity + 0.5 / self.total:
            raise RequestError(
                f"sparsity must be at least the {shown_least(start):.4f} the model holds, got {self.config.sparsity:g}"
            )
        if start is not None and self.config.schedule == "constant" and self._units_zero(start) != self._units_zero():
            raise RequestError(f"schedule must rise from the {start:.4f} of zeros the model holds, got 'constant'")
        if start is not None and self.config.start_sparsity:
            rule = f"start_sparsity must be left out for a model that holds masks, as it starts from their {start:.4f}"
            raise RequestError(f"{rule}, got {self.config.start_sparsity:g}")
        allocated = self.config.allocation != defaults(self.config)["allocation"]
        if start is not None and self.config.reallocation == "across" and allocated:
            rule = "allocation must be left out with reallocation across for a model that holds masks"
            raise RequestError(f"{rule}, as it starts from them, got {self.config.allocation!r}")
        return plan_schedule(self.config, steps, start)

    def _whole(self, held: Masks) -> Masks:
        """Masks of all linears: those that are held, and others that keep everything."""
        return {
            name: held.get(name, torch.ones(linear.shape, dtype=torch.bool, device=weight_of(linear.module).device))
            for name, linear in self.linears.items()
        }

    def _fits(self, mask: Tensor) -> bool:
        if isinstance(self.pattern, NByM):
            return bool((mask.reshape(-1, self.pattern.m).sum(1) == self.pattern.n).all())
        return torch.equal(from_units(self._units(mask), self.pattern), mask)

    def _units(self, mask: Tensor) -> Tensor:
        return to_units(mask.float(), self.pattern) > 0 if isinstance(self.pattern, Block) else mask

    def _units_zero(self, sparsity: float | None = None) -> int:
        """Units to be zero in all linears that may be cut: what is zero in the others counts for the sparsity too."""
        sparsity = self.config.sparsity if sparsity is None else sparsity
        if isinstance(self.pattern, NByM):  # of every group alike
            return round(sparsity * sum(self.sizes.values()))
        return max(0, round(sparsity * self.total) - self.still) // unit_size(self.pattern)

    def _zeros(self, sparsity: float | None = None) -> int:
        """Weights to be zero in all."""
        return self._units_zero(sparsity) * unit_size(self.pattern) + self.still

    def _kept(self, sparsity: float | None = None) -> int:
        return sum(self.sizes.values()) // unit_size(self.pattern) - self._units_zero(sparsity)

    def _least(self, active: Masks) -> dict[str, int]:
        """Units that stay active in each linear at the least: the highest sparsity holds to within one unit."""
        most = {name: -(-self.profiles[name].most // unit_size(self.pattern)) for name in active}
        return {name: min(mask.numel() - most[name], size(mask)) for name, mask in active.items()}

    def _profiles(self, model: nn.Module, data: Iterable[Batch]) -> tuple[Profiles, Passes]:
        """What the allocation knows of the linears, and the passes over the data that it took."""
        rule = LayerAdaptive(
            sparsity=self.config.sparsity,
            allocation=self.config.allocation,
            weight_score="magnitude",
            pattern=self.config.pattern,
            seed=self.config.seed,
            max_sparsity=None if isinstance(self.pattern, NByM) else self.config.highest,
            keep_layers=self.config.keep_layers,
            only=self.config.only,
            spared=self.config.spared,
        )
        found, passes = profile_linears(model, rule, data)
        if not isinstance(self.pattern, NByM):
            check_budget(found, self._zeros(), self.config.told)
        return found, passes

    def _kept_each(self, sparsity: float) -> dict[str, int]:
        """Units active in each linear by the allocation, the same on all processes: the first one's."""
        unit = unit_size(self.pattern)

        def kept() -> dict[str, int]:
            zeros = SPARSITY_ALLOCATORS[self.config.allocation](self.profiles, self._zeros(sparsity), 1.0)
            zeros = whole_blocks(zeros, unit, self.profiles) if unit > 1 else zeros
            return {name: (self.sizes[name] - zeros[name]) // unit for name in self.linears}

        return from_first(kept)

    def _start(self) -> Masks:
        """Units that are active at the start: the largest weights of every linear."""
        magnitudes = {name: dense_weight(linear.module).abs() for name, linear in self.linears.items()}
        if isinstance(self.pattern, NByM):
            return {name: choose(values, 0, self.pattern, name) for name, values in magnitudes.items()}
        kept = self._kept_each(self.schedule.sparsity(0))
        units = {name: to_units(values, self.pattern) for name, values in magnitudes.items()}
        return {
            name: ~lowest(unit.flatten(), unit.numel() - kept[name]).reshape(unit.shape) for name, unit in units.items()
        }

    def _before_step(self, *_: Any) -> None:
        if self.capture.armed:
            for name, gradient in self.capture.take().items():
                self.seen[name].add(self.config, self.scored(name), gradient)

    def _after_step(self, *_: Any) -> None:
        self._stepped = True
        for name, age in self.ages.items():
            # An optimizer that looks at a matrix as a whole, such as Muon, writes under the mask too.
            age.parameter.data.mul_(self.bases[name].mask)
            age.correct_(self.optimizer)

    def _update(self) -> list[Update]:
        sparsity, share = self.schedule.sparsity(self.done), self.schedule.replaced(self.done)
        active = {name: self._units(mask) for name, mask in self.masks.items()}
        drop, grow = {}, {}
        for name in self.linears:
            drop[name] = self._score(DROP_SCORERS[self.config.drop], name)
            same = not share or self.config.grow == self.config.drop
            grow[name] = drop[name] if same else self._score(GROW_SCORERS[self.config.grow], name)
            if share and self.config.grow == "shuffled":
                grow[name] = shuffle(grow[name], active[name], self.generator)
        new = self._reallocated(active, drop, grow, sparsity, share)
        for seen in self.seen.values():
            seen.gradient = None
        return self._move(new)

    def _reallocated(self, active: Masks, drop: Masks, grow: Masks, sparsity: float, share: float) -> Masks:
        """The units that are active at `sparsity`, by their scores, after at most `share` of them were replaced."""
        one_kind = alike(self.config)
        if isinstance(self.pattern, NByM):
            return {n: in_groups(active[n], drop[n], grow[n], self.pattern, share, one_kind) for n in active}
        if self.config.reallocation == "within":
            return within(active, drop, grow, self._kept_each(sparsity), share, one_kind)
        return across(active, drop, grow, self._kept(sparsity), share, self._least(active), one_kind)

    def _score(self, scorer: Scorer, name: str) -> Tensor:
        found = scorer(lambda: self.dense(name), self.seen[name], self.generator)
        if bool(found.isnan().any()):
            raise WorkError(f"{name}: a weight score is NaN at step {self.done}; lower the learning rate")
        return to_units(found, self.pattern)

    def _move(self, new: Masks) -> list[Update]:
        """Make the masks of units the masks of the model."""
        made = []
        for name, units in new.items():
            base = self.bases[name]
            mask, after = base.mask, from_units(units, self.pattern)
            dropped, grown = mask & ~after, after & ~mask
            if name in self.ages:
                self._rest(name, dropped, grown)
                clear_(self.optimizer, self.ages[name].parameter, dropped)
                self.ages[name].change(dropped, grown)
            base.mask = after
            born = size(self.newest[name])
            made.append(
                Update(
                    step=self.done,
                    linear=name,
                    sparsity=1 - size(after) / self.sizes[name],
                    dropped=size(dropped),
                    grown=size(grown),
                    regrown=size(grown & self.ever[name]),
                    survival=size(self.newest[name] & after) / born if born else None,
                    distance=size(after ^ self.first[name]) / self.sizes[name],
                )
            )
            self.ever[name] |= after
            self.newest[name] = grown
        return made

    def _rest(self, name: str, dropped: Tensor, grown: Tensor) -> None:
        """Lay aside the values of dropped weights that are trained; give the grown ones back what they had, or zero."""
        weight, resting = self.ages[name].parameter.data, self.resting[name]
        resting[dropped] = weight[dropped]
        weight[dropped] = 0
        if self.config.returns == "value":
            weight[grown] = resting[grown]
        resting[grown] = 0


def _base(linear: BlockLinear) -> MaskedLinear:
    """The linear itself, or the one that LoRA is around; it is masked once a mask was applied."""
    return cast(MaskedLinear, getattr(linear.module, "base_layer", linear.module))


def _movers(linears: Iterable[BlockLinear]) -> list[Controller]:
    """The controllers that move masks of these linears."""
    found = (getattr(_base(linear), "mover", None) for linear in linears)
    return list({id(mover): mover for mover in found if mover is not None}.values())


def _check_optimizer(optimizer: torch.optim.Optimizer, linears: list[BlockLinear]) -> None:
    """Refuse an optimizer that lacks trained parameters of these linears."""
    check_kind("optimizer", optimizer, torch.optim.Optimizer, "a PyTorch optimizer")
    known = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
    for linear in linears:
        for name, parameter in linear.module.named_parameters():
            if parameter.requires_grad and id(parameter) not in known:
                rule = "optimizer must hold every parameter that is trained (build it after the adapter is attached)"
                raise RequestError(f"{rule}, got one without {linear.name}.{name}")
