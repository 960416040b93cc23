"""Products of tall matrices with themselves, in pieces that are worth a multiplication."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import torch
from torch import Tensor

STRIP = 384
"""Columns that are multiplied at once: what is the same above and below the diagonal is multiplied once."""
TOGETHER = 1024
"""Rows for which a product is worth its while; a default batch has at most four times as many tokens."""


def gram(x: Tensor) -> Tensor:
    """`x^T x`, `[n, n]` of `[tokens, n]`."""
    n = x.shape[1]
    found = x.new_empty(n, n)
    for start in range(0, n, STRIP):
        strip = x[:, start : start + STRIP].T @ x[:, start:]
        found[start : start + STRIP, start:] = strip
        found[start:, start : start + STRIP] = strip.T
    return found


def rebatch(parts: Iterable[dict[str, Tensor]], together: int = TOGETHER) -> Iterator[dict[str, Tensor]]:
    """The same rows in fewer pieces: dicts of tensors, joined along their first dimension to `together` or more."""
    waiting: list[dict[str, Tensor]] = []
    rows = 0
    for part in parts:
        waiting.append(part)
        rows += len(next(iter(part.values())))
        if rows >= together:
            yield _joined(waiting)
            waiting, rows = [], 0
    if waiting:
        yield _joined(waiting)


def _joined(parts: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    return {key: joined([part[key] for part in parts]) for key in parts[0]}


def joined(parts: list[Tensor]) -> Tensor:
    """The parts joined along their first dimension; one alone is not copied."""
    return parts[0] if len(parts) == 1 else torch.cat(parts)
