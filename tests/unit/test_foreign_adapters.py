"""Adapters that no `PeftModel` holds are refused by every public verb: saved as plain, half of the model would go."""

from __future__ import annotations

import copy

import pytest
import torch
from peft import IA3Config, LoraConfig, get_peft_model, inject_adapter_in_model
from transformers import Trainer, TrainingArguments

import niwaki
from niwaki.anatomy import count, layers_of
from niwaki.errors import RequestError
from niwaki.export import EXPORTS
from tiny import batches, tiny, with_lora

BATCH = batches(count=1)[0]
LORA = LoraConfig(target_modules=["q_lin"], init_lora_weights=False)


def added():
    model = tiny()
    model.add_adapter(LORA)
    return model


def disabled():
    model = added()
    model.disable_adapters()
    return model


def of_another_kind():
    model = tiny()
    model.add_adapter(IA3Config(target_modules=["q_lin"], feedforward_modules=[]))
    return model


def on_pruned():
    model = tiny()
    niwaki.prune_(model, niwaki.LayerAdaptive(sparsity=0.5, weight_score="magnitude", repair="none"), [BATCH])
    model.add_adapter(LORA)
    return model


MODELS = {
    "add_adapter": added,
    "disabled": disabled,
    "IA3": of_another_kind,
    "injected": lambda: inject_adapter_in_model(LORA, tiny()),
    "on a pruned model": on_pruned,
}


def _train(model, out):
    arguments = TrainingArguments(output_dir=str(out), max_steps=1, report_to=[], use_cpu=True, disable_tqdm=True)
    rows = [{key: value[row] for key, value in BATCH.items()} for row in range(4)]
    Trainer(model, arguments, train_dataset=rows, callbacks=[niwaki.DynamicSparsity(sparsity=0.5)]).train()


VERBS = {
    "prune_ structured": lambda model, out: niwaki.prune_(model, niwaki.Structured(flops=0.7), [BATCH]),
    "prune_ layer-adaptive": lambda model, out: niwaki.prune_(model, niwaki.LayerAdaptive(sparsity=0.5), [BATCH]),
    "score": lambda model, out: niwaki.score(model, [BATCH]),
    "finetune": lambda model, out: niwaki.finetune(model, niwaki.Finetune(epochs=1), [BATCH]),
    "DynamicSparsity": _train,
    "save": niwaki.save,
    "merge_": lambda model, out: niwaki.merge_(model),
    "trim_vocabulary_": lambda model, out: niwaki.trim_vocabulary_(model, None, []),
} | {f"export {name}": export for name, export in EXPORTS.items()}


@pytest.mark.parametrize("kind", MODELS)
@pytest.mark.filterwarnings("ignore:.*gradient_checkpointing. is deprecated:FutureWarning")
def test_every_verb_refuses_and_leaves_all_as_it_was(kind, tmp_path):
    model = MODELS[kind]()
    before = copy.deepcopy(model.state_dict())
    for name, verb in VERBS.items():
        out = tmp_path / name / "out"
        with pytest.raises(niwaki.RequestError, match="adapter must be held by a PeftModel"):
            verb(model, out)
        assert not (out / "config.json").exists()
    after = model.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(value, after[name]) for name, value in before.items())


def test_of_copies_that_are_trained_whole_the_one_that_runs_counts():
    options = {"target_modules": ["q_lin"], "r": 2, "task_type": "SEQ_CLS"}
    plain = tiny()
    model = get_peft_model(tiny(), LoraConfig(**options, modules_to_save=["sa_layer_norm"]))
    model.add_adapter("other", LoraConfig(**options, modules_to_save=["sa_layer_norm"]))
    assert count(model, 8) == count(plain, 8)
    result = niwaki.prune_(model, niwaki.Structured(params=0.6, reconstruct="none"), batches())
    left = sum(parameter.numel() for layer in layers_of(niwaki.merge_(model)) for parameter in layer.parameters())
    assert result.achieved == left / sum(value.numel() for layer in layers_of(plain) for value in layer.parameters())
    model = get_peft_model(tiny(), LoraConfig(**options, modules_to_save=["ffn"]))
    model.add_adapter("other", LoraConfig(**options, modules_to_save=["ffn"]))
    with pytest.raises(RequestError, match="modules_to_save must hold none of the blocks' linears where there are sev"):
        niwaki.prune_(model, niwaki.Structured(flops=0.6), batches())


def test_an_adapter_in_a_peft_model_is_not_refused(tmp_path):
    niwaki.save(with_lora(tiny()), tmp_path)
