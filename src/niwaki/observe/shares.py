"""Which batches this process works on, of several.

Products of inputs are made in single precision over pieces of `niwaki.numerics.gram.TOGETHER` tokens and then added in
double precision. So a process gets the batches of whole pieces: all products are those that one process alone would
make, and their sums do not depend on how many there are. Where there are fewer pieces than processes, batches are
shared one by one.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from niwaki.data import token_mask
from niwaki.numerics import gram
from niwaki.observe.statistics import Batch
from niwaki.processes import count, share


def shared(data: Iterable[Batch]) -> Iterator[tuple[int, Batch]]:
    """The batches of this process, each with its number among all, in order."""
    if count() == 1:
        yield from enumerate(data)
        return
    batches = list(data)
    pieces = _pieces(batches)
    if len(pieces) < count():
        pieces = [[number] for number in range(len(batches))]
    for piece in share(pieces):
        for number in piece:
            yield number, batches[number]


def _pieces(batches: list[Batch]) -> list[list[int]]:
    """Numbers of the batches whose tokens are multiplied together."""
    pieces: list[list[int]] = [[]]
    tokens = 0
    for number, batch in enumerate(batches):
        if tokens >= gram.TOGETHER:
            pieces.append([])
            tokens = 0
        pieces[-1].append(number)
        tokens += int(token_mask(batch).sum())
    return pieces
