"""A plan on file: the model observed and scored once, for any budget; nothing is pruned."""

from __future__ import annotations

from collections.abc import Sequence

from niwaki.config import LayerAdaptive, Planning, Structured
from niwaki.data import sample
from niwaki.methods.plan import Plan
from niwaki.methods.prune import plan
from niwaki.numerics.threads import threads
from niwaki.processes import is_first, meet
from niwaki.progress import library_manners
from niwaki.run.folder import output_folder
from niwaki.run.inputs import check_out, read_data, read_inputs


def run_planning(
    request: Planning, config: Structured | LayerAdaptive, around: Sequence[float] = (), quiet: bool = False
) -> Plan:
    """Plan `config` for a model as it stands, see `niwaki.plan`, and write the plan into the folder of the request.

    Raises:
        RequestError: the request is wrong. WorkError: a statistic is not finite.
    """
    meet()
    check_out(request.out, request.model, request.base_model, request.train_data)
    quiet = quiet or not is_first()
    with (
        library_manners(quiet),
        threads(request.threads),
        output_folder(request.out, request.overwrite, request.activations_dir) as folder,
    ):
        train = read_data(request, request.train_data, "train", quiet)
        inputs = read_inputs(request, quiet=quiet)
        rows = sample(inputs.rows(train, "train"), request.calibration_samples, request.seed)
        made = plan(inputs.model, config, list(inputs.batches(rows)), around=around, progress=not quiet)
        made.write(folder)
    return made
