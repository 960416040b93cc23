"""Which batches this process works on, of several.

Products of inputs are made in single precision over pieces of so many tokens (`multiplied_together`) and then added in
double precision. So a process gets the batches of whole pieces: all products are those that one process alone would
make, and their sums hardly depend on how many there are. Pieces go to whoever has the fewest tokens by then, the
largest first. Where there are fewer pieces than processes, batches are shared one by one.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from niwaki.data import token_mask
from niwaki.numerics import gram
from niwaki.observe.statistics import Batch
from niwaki.processes import count, number

PIECES = 8
"""Of all data at least, where there are as many batches: a process has one of them, or more."""


def shared(data: Iterable[Batch]) -> Iterator[tuple[int, Batch]]:
    """The batches of this process, each with its number among all, in order."""
    if count() == 1:
        yield from enumerate(data)
        return
    batches = list(data)
    holders = holders_of(batches, count())
    yield from ((place, batch) for place, batch in enumerate(batches) if holders[place] == number())


def holders_of(batches: Sequence[Batch], processes: int) -> list[int]:
    """Which of so many processes has each batch."""
    tokens = _tokens(batches)
    pieces = _pieces(tokens, _together(tokens))
    if len(pieces) < processes:
        pieces = [[place] for place in range(len(batches))]
    inside = [sum(tokens[place] for place in piece) for piece in pieces]
    loads, found = [0] * processes, [0] * len(batches)
    for piece in sorted(range(len(pieces)), key=lambda piece: -inside[piece]):
        least = loads.index(min(loads))
        loads[least] += inside[piece]
        for place in pieces[piece]:
            found[place] = least
    return found


def multiplied_together(batches: Sequence[Batch]) -> int:
    """Tokens of a piece at least: `niwaki.numerics.gram.TOGETHER`, or of few data so few that there are pieces enough.

    It does not depend on the number of processes.
    """
    return _together(_tokens(batches))


def _together(tokens: list[int]) -> int:
    return min(gram.TOGETHER, max(1, sum(tokens) // PIECES))


def _tokens(batches: Sequence[Batch]) -> list[int]:
    return [int(token_mask(batch).sum()) for batch in batches]


def _pieces(tokens: list[int], together: int) -> list[list[int]]:
    """Places of the batches, with so many tokens each, that are multiplied together."""
    pieces: list[list[int]] = [[]]
    inside = 0
    for place, found in enumerate(tokens):
        if inside >= together:
            pieces.append([])
            inside = 0
        pieces[-1].append(place)
        inside += found
    return pieces
