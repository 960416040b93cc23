"""What a stage cannot do with what those before it leave is refused before any is done."""

from __future__ import annotations

import pytest

import niwaki
from niwaki.config import DynamicSparsityTraining, Finetune, LayerAdaptive, Structured
from niwaki.errors import RequestError
from niwaki.run.order import check_order
from tiny import batches, tiny, with_lora

HALF = LayerAdaptive(sparsity=0.5)
TUNED = Finetune(lora_rank=4)
MOVED = DynamicSparsityTraining(sparsity=0.5)
REFUSED = {
    "full after an adapter": (TUNED, Finetune(full=True)),
    "full after moving masks": (MOVED, Finetune(full=True)),
    "another rank": (TUNED, Finetune(lora_rank=8)),
    "another rank under masks": (TUNED, DynamicSparsityTraining(sparsity=0.5, lora_rank=8)),
    "fewer zeros": (HALF, LayerAdaptive(sparsity=0.3)),
    "fewer zeros while training": (HALF, TUNED, DynamicSparsityTraining(sparsity=0.3)),
    "another pattern": (
        LayerAdaptive(sparsity=0.5, pattern="2:4"),
        DynamicSparsityTraining(sparsity=0.5, pattern="4x1"),
    ),
    "a constant schedule": (HALF, DynamicSparsityTraining(sparsity=0.6, schedule="constant")),
    "a start of its own": (HALF, DynamicSparsityTraining(sparsity=0.6, start_sparsity=0.2)),
}


@pytest.mark.parametrize("stages", REFUSED.values(), ids=REFUSED)
def test_what_cannot_be_done_is_refused(stages):
    check_order(tiny(), stages[:-1])
    with pytest.raises(
        RequestError, match=r"full must|lora_rank must|sparsity must|pattern must|schedule must|start_sp"
    ):
        check_order(tiny(), stages)


def test_what_can_be_done_is_not():
    again = Finetune()  # the default rank is that of any adapter
    check_order(tiny(), [TUNED, again, Structured(flops=0.5), HALF, LayerAdaptive(sparsity=0.5), MOVED, again])
    # What a cut leaves of the zeros shows only then.
    check_order(tiny(), [HALF, Structured(flops=0.5), LayerAdaptive(sparsity=0.3)])
    moved = DynamicSparsityTraining(sparsity=0.5, pattern="2:4", schedule="constant", allocation="uniform")
    check_order(tiny(), [LayerAdaptive(sparsity=0.5, pattern="2:4"), moved])


def test_the_model_that_comes_in_counts():
    with pytest.raises(RequestError, match="full must be asked of a model without an adapter"):
        check_order(with_lora(tiny()), [Finetune(full=True)])
    model = tiny()
    niwaki.prune_(model, LayerAdaptive(sparsity=0.5, weight_score="magnitude", repair="none"), batches())
    with pytest.raises(RequestError, match=r"sparsity must be at least the 0\.5 of zeros before it, got 0\.3"):
        check_order(model, [DynamicSparsityTraining(sparsity=0.3)])
    odd = tiny()  # of which a third are not whole weights
    niwaki.prune_(odd, LayerAdaptive(sparsity=1 / 3 + 1e-5, weight_score="magnitude", repair="none"), batches())
    constant = DynamicSparsityTraining(sparsity=1 / 3 + 1e-5, schedule="constant")
    check_order(odd, [LayerAdaptive(sparsity=1 / 3 + 1e-5), constant])
