"""A plan on file: the model observed and scored once, for any budget; nothing is pruned."""

from __future__ import annotations

from niwaki.config import LayerAdaptive, Planning, Structured
from niwaki.methods.plan import Plan
from niwaki.methods.prune import AROUND, for_any_budget, plan
from niwaki.run.at_hand import at_hand


def run_planning(
    request: Planning, config: Structured | LayerAdaptive, *, any_budget: bool = False, quiet: bool = False
) -> Plan:
    """Plan `config` for a model as it stands, see `niwaki.plan`, and write the plan into the folder of the request.

    With `any_budget` it is for none above others, and that of `config` does not count.

    Raises:
        RequestError: the request is wrong. WorkError: a statistic is not finite.
    """
    with at_hand(request, quiet) as here:
        model = here.inputs.model
        if any_budget:
            config = for_any_budget(model, config)
        made = plan(model, config, here.batches, around=AROUND if any_budget else (), progress=not here.quiet)
        made.write(here.folder)
    return made
