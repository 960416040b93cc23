"""A model as it stands and the rows to observe it on, for a request that observes and changes nothing."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from niwaki.config import Planning, Scoring
from niwaki.data import Table, sample
from niwaki.observe import Batch
from niwaki.processes import is_first, meet
from niwaki.run.folder import workplace
from niwaki.run.inputs import Inputs, check_out, read_data, read_inputs


@dataclass(frozen=True, eq=False)
class AtHand:
    """What was read: the model, the data and the calibration batches; `folder` is what the request writes."""

    folder: Path
    inputs: Inputs
    train: Table
    batches: list[Batch]
    quiet: bool
    """Whether nothing is said: so it was asked, or another process speaks."""


@contextmanager
def at_hand(request: Planning | Scoring, quiet: bool) -> Iterator[AtHand]:
    """Read what a request is about, in its `workplace`.

    Raises:
        RequestError: the request is wrong.
    """
    meet()
    check_out(request.out, request.model, request.base_model, request.train_data)
    quiet = quiet or not is_first()
    with workplace(request, quiet) as folder:
        train = read_data(request, request.train_data, "train", quiet)
        inputs = read_inputs(request, quiet=quiet)
        rows = sample(inputs.rows(train, "train"), request.calibration_samples, request.seed)
        yield AtHand(folder, inputs, train, list(inputs.batches(rows)), quiet)
