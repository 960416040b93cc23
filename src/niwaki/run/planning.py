"""A plan on file: the model observed and scored once, for any budget; nothing is pruned."""

from __future__ import annotations

from collections.abc import Sequence

from niwaki.config import LayerAdaptive, Planning, Structured
from niwaki.methods.plan import Plan
from niwaki.methods.prune import plan
from niwaki.run.at_hand import at_hand


def run_planning(
    request: Planning, config: Structured | LayerAdaptive, around: Sequence[float] = (), quiet: bool = False
) -> Plan:
    """Plan `config` for a model as it stands, see `niwaki.plan`, and write the plan into the folder of the request.

    Raises:
        RequestError: the request is wrong. WorkError: a statistic is not finite.
    """
    with at_hand(request, quiet) as here:
        made = plan(here.inputs.model, config, here.batches, around=around, progress=not here.quiet)
        made.write(here.folder)
    return made
