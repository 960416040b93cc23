"""A verb does the same where its caller has turned gradients off: what needs them turns them on."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import niwaki
from niwaki.errors import RequestError
from tiny import batches, tiny, with_lora

CONFIGS: dict[str, Any] = {
    "structured": niwaki.Structured(flops=0.5),
    "structured that learns": niwaki.Structured(flops=0.5, recover_epochs=1, reconstruct="norms"),
    "layer-adaptive": niwaki.LayerAdaptive(0.5, layer_score="output-gradient", allocation="inverse-importance"),
    "dynamic": niwaki.DynamicSparsityTraining(sparsity=0.5, epochs=2, interval=1),
    "fine-tuning": niwaki.Finetune(epochs=1),
}


def worked_on(model: torch.nn.Module, config: Any, data: list[dict[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
    """The tensors of `model` after the verb of `config`."""
    verb = niwaki.finetune if isinstance(config, niwaki.Finetune) else niwaki.prune_
    verb(model, config, data)
    return model.state_dict()


@pytest.mark.parametrize("without", [torch.no_grad, torch.inference_mode])
@pytest.mark.parametrize("config", CONFIGS)
def test_a_verb_does_what_it_does_with_gradients(config, without):
    data, model = batches(4), with_lora(tiny())
    wanted = worked_on(with_lora(tiny()), CONFIGS[config], data)
    with without():
        made_here = [{key: value.clone() for key, value in batch.items()} for batch in data]
        found = worked_on(model, CONFIGS[config], made_here)
        assert not torch.is_grad_enabled()
    torch.testing.assert_close(found, wanted, atol=0, rtol=0)


def test_scores_and_plans_are_those_with_gradients():
    data, model = batches(4), tiny()
    config = niwaki.Structured(flops=0.5, head_score="taylor", neuron_score="fisher")
    wanted = niwaki.score(model, data, config), niwaki.plan(model, config, data).scores
    with torch.inference_mode():
        found = niwaki.score(model, data, config), niwaki.plan(model, config, data).scores
    assert found[0] == wanted[0]
    torch.testing.assert_close(found[1], wanted[1], atol=0, rtol=0)


def test_a_model_that_was_made_under_inference_mode_is_refused():
    with torch.inference_mode():
        model = tiny()
        model.load_state_dict({name: value.clone() for name, value in model.state_dict().items()}, assign=True)
    with pytest.raises(RequestError, match="outside torch"):
        niwaki.prune_(model, niwaki.Structured(flops=0.5), batches(2))
