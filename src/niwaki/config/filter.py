"""What of a model may be cut: everything, unless layers, parts or single sites are spared."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Protocol

from niwaki.config.fields import option
from niwaki.errors import RequestError, check_choice

PARTS = ("attention", "ffn")


class Place(Protocol):
    """A site, as far as a filter looks at it."""

    @property
    def name(self) -> str: ...

    @property
    def kind(self) -> str: ...

    @property
    def layer(self) -> int: ...


@dataclass(frozen=True, kw_only=True)
class Filter:
    """Which sites are spared. A budget is always that of all blocks: what may be cut gives all of it."""

    keep_layers: tuple[int, ...] | None = option(None, "Layers of which nothing is cut, counted from 0.")
    only: str | None = option(None, f"The one part that is cut: {' or '.join(PARTS)}.")
    spared: tuple[str, ...] | None = option(None, "Sites of which nothing is cut, by name, such as layer.0.attention.")

    def check_filter(self) -> None:
        """Bring what the command and recipes give into its form.

        Raises:
            RequestError: a layer that is no whole number from 0, an unknown part.
        """
        if self.only is not None:
            check_choice("only", self.only, PARTS)
        if self.keep_layers is None:
            return
        wrong = [layer for layer in self.keep_layers if not re.fullmatch(r"\d{1,9}", str(layer))]
        if wrong:
            raise RequestError(f"keep_layers must be whole numbers from 0, got {wrong[0]!r}")
        object.__setattr__(self, "keep_layers", tuple(int(layer) for layer in self.keep_layers))

    @property
    def told(self) -> str:
        """What is spared, in words that follow a rule; nothing where nothing is."""
        given = {"keep_layers": self.keep_layers, "only": self.only and (self.only,), "spared": self.spared}
        said = [f"{name} is {' '.join(map(str, values))}" for name, values in given.items() if values]
        return f" where {' and '.join(said)}" if said else ""

    def may_cut(self, site: Place) -> bool:
        """Whether units or weights of a site may go."""
        if site.layer in (self.keep_layers or ()) or site.name in (self.spared or ()):
            return False
        return self.only in (None, site.kind)
