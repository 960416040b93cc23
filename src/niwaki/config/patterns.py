"""The kinds of pattern that zeros can form, as types.

Weights are `[out, in]`. `NByM(2, 4)`, written `2:4`, keeps 2 of every 4 neighbours along `in` (Mishra et al., 2021);
`Block(4, 1)`, written `4x1`, keeps or zeroes blocks of 4 outputs by 1 input as a whole.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from niwaki.errors import RequestError


@dataclass(frozen=True)
class Unstructured:
    """Every weight for itself."""

    def __str__(self) -> str:
        return "unstructured"


@dataclass(frozen=True)
class NByM:
    """`n` of every `m` neighbours along the input dimension are kept."""

    n: int
    m: int

    def __post_init__(self) -> None:
        if not 1 <= self.n < self.m:
            raise RequestError(f"pattern n:m must keep 1 to m - 1 of m weights, got {self.n}:{self.m}")

    @property
    def sparsity(self) -> float:
        """The only sparsity that the pattern has."""
        return 1 - self.n / self.m

    def __str__(self) -> str:
        return f"{self.n}:{self.m}"


@dataclass(frozen=True)
class Block:
    """Blocks of `rows` outputs by `columns` inputs are kept or zeroed as a whole."""

    rows: int
    columns: int

    def __post_init__(self) -> None:
        if self.rows < 1 or self.columns < 1:
            raise RequestError(f"pattern rxc must have sides of at least 1, got {self.rows}x{self.columns}")

    @property
    def size(self) -> int:
        """Weights of a block."""
        return self.rows * self.columns

    def __str__(self) -> str:
        return f"{self.rows}x{self.columns}"


Pattern = Unstructured | NByM | Block


def parse_pattern(text: str) -> Pattern:
    """`unstructured`, `2:4` or `4x1` as a type.

    Raises:
        RequestError: none of these.
    """
    if text == "unstructured":
        return Unstructured()
    found = re.fullmatch(r"(\d{1,6})([:x])(\d{1,6})", text)
    if found is None:
        raise RequestError(f"pattern must be unstructured, n:m (like 2:4) or rxc (like 4x1), got {text!r}")
    first, second = int(found[1]), int(found[3])
    return NByM(first, second) if found[2] == ":" else Block(first, second)
