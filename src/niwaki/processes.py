"""The processes of one run, by Accelerate: what each does of the work over data, and what they know together.

`accelerate launch -m niwaki ...` (or `torchrun`) starts the same command several times. Every process reads the same
model and data and takes every n-th batch of a pass; sums are added over all when the pass ends, and what follows from
them is done alike by each. So all of them hold the same model at any time, and the first one alone speaks and writes.
Alone, a process does all of the work, and nothing here costs anything.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from niwaki.errors import RequestError

T = TypeVar("T")


def meet() -> None:
    """Find the other processes of this run, where a launcher started several."""
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        from accelerate import PartialState  # here: it takes long to import

        PartialState()


def count() -> int:
    """How many there are."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def number() -> int:
    """Which of them this one is, from 0."""
    return dist.get_rank() if count() > 1 else 0


def is_first() -> bool:
    """Whether this is the one that speaks and writes."""
    return int(os.environ.get("RANK", "0")) == 0 if count() == 1 else number() == 0


def share(items: Iterable[T]) -> Iterator[T]:
    """Those of the items that this process works on."""
    return islice(items, number(), None, count())


def check_enough(batches: Sequence[object]) -> None:
    """Refuse data of which a process would have no batch.

    Raises:
        RequestError: saying how many are needed.
    """
    if len(batches) < count():
        rule = f"data must hold at least {count()} batches, one for each process"
        raise RequestError(f"{rule}, got {len(batches)}; lower batch_size")


def add_up(values: Tensor) -> Tensor:
    """The sum over all processes, in double precision on the way."""
    if count() == 1:
        return values
    total = values.to(_device(), torch.double, copy=True).contiguous()
    dist.all_reduce(total)
    return total.to(values)


def from_first(make: Callable[[], Any]) -> Any:
    """What the first process makes, such as a measured time, as JSON has it; the others wait for it."""
    if count() == 1:
        return make()
    said = json.dumps(make()).encode() if is_first() else b""
    size = torch.tensor(len(said), device=_device())
    dist.broadcast(size, 0)
    text = torch.tensor(list(said) or [0] * int(size), dtype=torch.uint8, device=_device())
    dist.broadcast(text, 0)
    return json.loads(bytes(text.tolist()))


def _device() -> torch.device:
    """Where tensors lie that are sent: NCCL takes those of a GPU alone."""
    return torch.device("cuda", torch.cuda.current_device()) if dist.get_backend() == "nccl" else torch.device("cpu")
