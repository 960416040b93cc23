"""Neural Compressor 2.6, the last release with pruning: SparseGPT in one shot, the same sparsity in every linear.

It hands `layer(...)[0]` on to the next layer. That is the hidden states where a layer gives a tuple, as in Transformers
4; where it gives a tensor, as in encoders of Transformers 5, it is those of the first row, without their batch.
"""

from __future__ import annotations

from collections.abc import Sequence

from neural_compressor.training import WeightPruningConfig, prepare_pruning  # type: ignore[import-not-found]
from torch import Tensor, nn

from niwaki.anatomy import layers_of, linears_of
from niwaki.data import without_labels
from rows import one_by_one


def prune(model: nn.Module, batches: Sequence[dict[str, Tensor]], budget: dict[str, float], seed: int) -> nn.Module:
    """`model`, pruned in place; nothing is drawn.

    Raises:
        RuntimeError: a layer gives a tensor: what would come out was calibrated on nonsense.
    """
    given: list[object] = []
    hook = layers_of(model)[0].register_forward_hook(lambda _module, _args, output: given.append(output))
    model(**without_labels(batches[0]))
    hook.remove()
    if not isinstance(given[0], tuple):
        raise RuntimeError("its SparseGPT needs layers that give a tuple, and those of Transformers 5 give a tensor")
    inside = {id(linear.module) for linear in linears_of(model)}
    names = [name for name, module in model.named_modules() if id(module) in inside]
    config = WeightPruningConfig(
        [{"pruning_type": "sparse_gpt", "op_names": names, "pattern": "1x1"}], target_sparsity=budget["sparsity"]
    )
    prepare_pruning(model, config, dataloader=one_by_one(batches), device="cpu")
    return model
