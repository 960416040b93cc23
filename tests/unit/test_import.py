"""Importing Niwaki changes nothing for models that are not its own."""

from __future__ import annotations

import json
import subprocess
import sys

SCRIPT = """
import importlib, json, sys, warnings, logging
import accelerate, peft, peft.tuners.lora, torch, transformers, huggingface_hub, safetensors.torch
import transformers.models.auto.modeling_auto, transformers.models.llama.modeling_llama
import transformers.models.distilbert.modeling_distilbert, transformers.masking_utils, transformers.integrations
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AttentionInterface
from transformers import AttentionMaskInterface
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.quantizers import auto
from transformers.utils import logging as transformers_logging

ROOTS = {"torch", "peft", "transformers", "accelerate", "huggingface_hub", "safetensors"}
LAZY = {"__doc__", "__annotations__", "__slotnames__", "__abstractmethods__", "_abc_impl", "__signature__"}


def own():
    return {n: m for n, m in sys.modules.items() if n.split(".")[0] in ROOTS and type(m).__name__ == "module"}


def contents():
    found = {}
    for name, module in own().items():
        for key, value in vars(module).items():
            if isinstance(value, type) and value.__module__ == name:
                found |= {f"{name}.{key}.{k}": v for k, v in vars(value).items() if k not in LAZY}
            elif callable(value) and getattr(value, "__module__", None) == name:
                found[f"{name}.{key}"] = value
    return found


def registries():
    return {
        "attention": sorted(AttentionInterface._global_mapping),
        "masks": sorted(AttentionMaskInterface._global_mapping),
        "quantizers": sorted(auto.AUTO_QUANTIZER_MAPPING), "tables": sorted(auto.AUTO_QUANTIZATION_CONFIG_MAPPING),
        "configs": sorted(CONFIG_MAPPING.keys()), "language models": sorted(
            c.__name__ for c in AutoModelForCausalLM._model_mapping._extra_content
        ),
        "classifiers": sorted(c.__name__ for c in AutoModelForSequenceClassification._model_mapping._extra_content),
        "adapters": sorted(map(str, peft.PEFT_TYPE_TO_TUNER_MAPPING)),
    }


def settings():
    return {
        "dtype": str(torch.get_default_dtype()), "threads": torch.get_num_threads(), "warnings": len(warnings.filters),
        "verbosity": transformers_logging.get_verbosity(), "random": torch.initial_seed(),
        "deterministic": torch.are_deterministic_algorithms_enabled(), "level": logging.getLogger().level,
    }


before, names, set_before = contents(), registries(), settings()
import niwaki, niwaki.cli, niwaki.run
after = contents()
changed = [key for key, value in before.items() if key not in after or after[key] is not value]
new = {key: sorted(set(value) - set(names[key])) for key, value in registries().items()}
gone = {key: sorted(set(value) - set(registries()[key])) for key, value in names.items()}
print(json.dumps({
    "changed": changed, "new": {k: v for k, v in new.items() if v}, "gone": {k: v for k, v in gone.items() if v},
    "settings": [set_before, settings()],
}))
"""


def test_importing_niwaki_changes_nothing_but_adds_its_own_names() -> None:
    run = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, check=True)
    found = json.loads(run.stdout.splitlines()[-1])
    assert found["changed"] == []
    assert found["gone"] == {}
    assert found["settings"][0] == found["settings"][1]
    # What `from_pretrained` needs: the table of shapes, and MobileLLM, which Transformers does not know.
    assert found["new"] == {
        "quantizers": ["niwaki"],
        "tables": ["niwaki"],
        "configs": ["mobilellm"],
        "language models": ["MobileLLMConfig"],
    }
