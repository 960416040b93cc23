"""The processes of one run, by Accelerate: what each does of the work over data, and what they know together.

`accelerate launch -m niwaki ...` (or `torchrun`) starts the same command several times. Every process reads the same
model and data and takes every n-th batch of a pass, every n-th linear of a fit, or every n-th piece of the rows of one;
sums are added over all when the pass ends, and what follows from them is done alike by each. So all of them hold the
same model at any time, and the first one alone speaks and writes. Alone, a process does all of the work, and nothing
here costs anything.

Where one fails the others do, too: whoever waits for it is told that it is gone, and all end with the words of the one
that failed first (`last_words`).
"""

from __future__ import annotations

import datetime
import json
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import islice
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from safetensors.torch import load, save
from torch import Tensor

from niwaki.errors import RequestError, WorkError

T = TypeVar("T")
Parts = dict[str, Any]
"""What one process makes for all: tensors and what JSON holds, by name."""

_PATIENCE = datetime.timedelta(days=1)
"""How long one waits for another, which may be timing a model; one that is gone is not waited for."""
ROWS = 96
"""Of a matrix that is worked on by rows: each process has some pieces of so many. Products of fewer are slower. Which
piece a row is in does not depend on the number of processes, so that no bit of it does."""
TOGETHER = 2**22
"""Numbers that are sent at once, 32 MiB in double precision."""
_FAILED, _SAID = "niwaki/failed", "niwaki/said"
_working_apart = False


def meet() -> None:
    """Find the other processes of this run, where a launcher started several."""
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        from accelerate import PartialState  # here: it takes long to import

        PartialState(timeout=_PATIENCE)


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
    """The sum over all processes, rounded once: in double precision on the way where that makes a difference.

    Raises:
        WorkError: another process ended.
    """
    if count() == 1:
        return values
    return _added_(values.to(_device(), _on_the_way(values.dtype), copy=True).contiguous()).to(values)


def add_up_each(values: Sequence[Tensor]) -> list[Tensor]:
    """`add_up` of each, many small ones together: every call waits for the others.

    Raises:
        WorkError: another process ended.
    """
    if count() == 1:
        return list(values)
    found: list[Tensor] = []
    together: list[Tensor] = []
    for place, value in enumerate(values):
        together.append(value)
        if place + 1 == len(values) or sum(map(Tensor.numel, together)) >= TOGETHER:
            precision = _on_the_way(*{value.dtype for value in together})
            total = _added_(torch.cat([value.detach().to(_device(), precision).flatten() for value in together]))
            parts = total.split([value.numel() for value in together])
            found += [part.view_as(value).to(value) for part, value in zip(parts, together, strict=True)]
            together = []
    return found


def _on_the_way(*given: torch.dtype) -> torch.dtype:
    """The precision in which numbers of these types are sent to be added.

    Of two numbers in single precision, the sum in double precision rounded to single is their sum in single precision
    (Figueroa, "When is double rounding innocuous?", SIGNUM 1995), so two processes send half of the bytes.
    """
    return torch.float32 if count() == 2 and set(given) == {torch.float32} else torch.double


def _added_(total: Tensor) -> Tensor:
    """The sum over all processes, in place."""
    with _waiting():
        dist.all_reduce(total)
    return total


def for_all(own: bool) -> bool:
    """Whether it is so for every process, which all of them come to know.

    Raises:
        WorkError: another process ended.
    """
    return int(add_up(torch.tensor(int(own)))) == count()


def from_first(make: Callable[[], Any]) -> Any:
    """What the first process makes, such as a measured time, as JSON has it; the others wait for it.

    Raises:
        WorkError: another process ended.
    """
    return parts_from_first(lambda: {"made": make()})["made"]


def parts_from_first(make: Callable[[], Parts]) -> Parts:
    """The same of parts, tensors among them.

    Raises:
        WorkError: another process ended.
    """
    if count() == 1:
        return make()
    said = packed(make()) if is_first() else torch.empty(0, dtype=torch.uint8)
    size = torch.tensor(len(said), device=_device())
    with _waiting():
        dist.broadcast(size, 0)
        text = said.to(_device()) if is_first() else torch.empty(int(size), dtype=torch.uint8, device=_device())
        dist.broadcast(text, 0)
    return unpacked(text)


def shared_out(items: Iterable[T], work: Callable[[T], Parts]) -> list[Parts]:
    """What `work` makes of each item, in order: each process does its share of the items, and knows all that is made.

    Raises:
        WorkError: another process ended.
    """
    with _apart():
        own = [work(item) for item in share(items)]
    if count() == 1:
        return own
    parts = packed({f"{place}/{name}": value for place, made in enumerate(own) for name, value in made.items()})
    sizes = [torch.zeros(2, dtype=torch.long, device=_device()) for _ in range(count())]
    with _waiting():
        dist.all_gather(sizes, torch.tensor([len(own), len(parts)], device=_device()))
        longest = max(int(size[1]) for size in sizes)
        texts = [torch.empty(longest, dtype=torch.uint8, device=_device()) for _ in range(count())]
        dist.all_gather(texts, torch.nn.functional.pad(parts, (0, longest - len(parts))).to(_device()))
    found: list[Parts] = [{} for _ in range(sum(int(size[0]) for size in sizes))]
    for process, (text, size) in enumerate(zip(texts, sizes, strict=True)):
        for key, value in unpacked(text[: int(size[1])]).items():
            place, _, name = key.partition("/")
            found[process + int(place) * count()][name] = value
    return found


def by_rows(like: Tensor, work: Callable[[slice], Tensor]) -> Tensor:
    """What `work` makes of each piece of the rows, together as `like` `[rows, ...]` is in shape and type.

    Each process does its share of the pieces, and knows the whole; one that works apart does all of them.

    Raises:
        WorkError: another process ended.
    """
    shared = 1 if _working_apart else count()
    pieces = [slice(start, start + ROWS) for start in range(0, len(like), ROWS)]
    most = -(-len(pieces) // shared)  # of one process, which lie side by side
    place = like.device if shared == 1 else _device()
    found = torch.empty(shared * most * ROWS, *like.shape[1:], dtype=like.dtype, device=place)
    for piece in pieces if shared == 1 else pieces[number() * most :][:most]:
        made = work(piece)
        found[piece.start : piece.start + len(made)] = made
    if shared > 1:
        own = found[number() * most * ROWS :][: most * ROWS].clone()
        with _waiting():
            dist.all_gather(list(found.chunk(shared)), own)
    return found[: len(like)].to(like.device)


def known_to_all(own: Parts) -> Parts:
    """What each process made of other things than the others did, by name, together.

    Raises:
        WorkError: another process ended.
    """
    return {name: value for parts in shared_out(range(count()), lambda _: own) for name, value in parts.items()}


def packed(parts: Parts) -> Tensor:
    """The bytes of parts: safetensors, with what is no tensor as JSON among them, and which were on an accelerator."""
    tensors = {name: value.detach() for name, value in parts.items() if isinstance(value, Tensor)}
    there = [name for name, value in tensors.items() if value.device.type != "cpu"]
    others = {name: value for name, value in parts.items() if name not in tensors}
    told = _bytes(json.dumps([there, others]).encode())
    # Cloned: views of one tensor cannot be written.
    return _bytes(save({"": told, **{name: value.cpu().clone().contiguous() for name, value in tensors.items()}}))


def unpacked(text: Tensor) -> Parts:
    """`packed` undone."""
    tensors = load(text.cpu().numpy().tobytes())
    there, others = json.loads(tensors.pop("").numpy().tobytes())
    return tensors | {name: tensors[name].to(_device()) for name in there} | others


def _bytes(text: bytes) -> Tensor:
    return torch.frombuffer(bytearray(text), dtype=torch.uint8)


def last_words(message: str, status: int) -> tuple[str, int, bool]:
    """What the command ends with, of several processes the same for all, and whether it is this one that says it.

    `message` and exit `status` are those of this process: they hold where no other failed before it.
    """
    if count() == 1:
        return message, status, is_first()
    own = json.dumps([message, status])
    try:
        store = dist.distributed_c10d._get_default_store()  # where they met; PyTorch has no public name for it
        message, status = json.loads(store.compare_set(_FAILED, "", own))
        return message, status, store.add(_SAID, 1) == 1
    except (RuntimeError, ValueError):  # the process that kept it is gone
        return message, status, True


@contextmanager
def _apart() -> Iterator[None]:
    """While each process works on items of its own, none waits for another."""
    global _working_apart
    before, _working_apart = _working_apart, True
    try:
        yield
    finally:
        _working_apart = before


@contextmanager
def _waiting() -> Iterator[None]:
    """While others are waited for, one that is gone is a failure of this process, too."""
    try:
        yield
    except RuntimeError as error:
        what = " ".join(str(error).split())[:200]
        raise WorkError(f"another process of this run ended (out of memory? killed?): {what}") from error


def _device() -> torch.device:
    """Where tensors lie that are sent: NCCL takes those of a GPU alone."""
    return torch.device("cuda", torch.cuda.current_device()) if dist.get_backend() == "nccl" else torch.device("cpu")
