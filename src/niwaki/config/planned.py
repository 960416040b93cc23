"""Where a stage has its budget and its plan from, if not from a number and from the model at hand."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NoReturn

from niwaki.config.fields import BUDGET, check_at_least, check_unused, option
from niwaki.errors import RequestError


@dataclass(frozen=True, kw_only=True)
class Planned:
    """A plan that was made before, a budget that is searched."""

    plan: str | None = option(
        None,
        "Folder of `niwaki plan` that says what goes; on the rows it was made from nothing is observed again.",
        BUDGET,
        place=True,
    )
    keep_quality: float | None = option(
        None,
        "In place of a budget: the share of the dense model's metric to keep, in (0, 1]. Of the budgets tried, the "
        "smallest that keeps it on training rows that are held out is taken.",
        BUDGET,
    )
    tries: int = option(6, "Budgets that are tried for --keep-quality.", BUDGET)

    def check_planned(self, budgets: tuple[str, ...]) -> None:
        """Refuse another number of budgets than one, among `budgets` and `keep_quality`, and what no plan holds.

        Raises:
            RequestError: saying which.
        """
        given = [kind for kind in (*budgets, "keep_quality") if getattr(self, kind) is not None]
        if len(given) != 1:
            found = " and ".join(given) or "none"
            rule = f"budget: exactly one of {', '.join((*budgets, 'keep_quality'))} must be given"
            raise RequestError(f"{rule}, got {found}")
        check_at_least(self, 1, "tries")
        if self.keep_quality is None:
            check_unused(self, f"a budget in {given[0]}", "tries")
        elif not 0.0 < self.keep_quality <= 1.0:
            raise RequestError(f"keep_quality must be a share to keep in (0, 1], got {self.keep_quality:g}")
        if self.plan is not None or self.keep_quality is not None:
            name = "plan" if self.plan is not None else "keep_quality"
            check_plannable(self, name)

    def searched(self) -> NoReturn:
        """Refuse a budget that is not known yet.

        Raises:
            RequestError: always.
        """
        rule = "a budget must be given: keep_quality is searched where held_out rows are given to measure it on"
        raise RequestError(f"{rule}, got keep_quality {self.keep_quality:g}")


def check_plannable(config: Any, by: str) -> None:
    """Refuse what one observation of the model as it stands does not tell.

    Raises:
        RequestError: several steps, or layers that go before the rest is scored.
    """
    if config.steps != 1:
        raise RequestError(f"steps must be 1 with {by}: each observes what the one before left, got {config.steps}")
    if getattr(config, "drop_layers", 0):
        rule = f"drop_layers must be 0 with {by}: what is left is observed when the layers are gone"
        raise RequestError(f"{rule}, got {config.drop_layers}")
