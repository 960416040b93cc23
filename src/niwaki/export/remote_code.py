"""A checkpoint that brings its own modelling code: it loads where Niwaki is not installed."""

from __future__ import annotations

import json
from importlib import resources
from pathlib import Path
from typing import Any, cast

from torch import nn
from transformers import PreTrainedModel

from niwaki.anatomy import Site, body_of, check_task, family_of, linear_paths, sites_of, supported_task, weight_of
from niwaki.anatomy.modeling_mobilellm import MODEL_TYPE
from niwaki.checkpoint import METHOD, merged, shapes_of, write_model
from niwaki.errors import RequestError
from niwaki.export.destination import place_of
from niwaki.surgery import output_inside, stale_numbers

_NO_CODE = {
    "gpt_neox": "whose weights have other names in files",
    MODEL_TYPE: "for which Transformers has no class",
}


_CODE = "modeling_niwaki"


_CLASS = "PrunedForSequenceClassification"


_WRITTEN_FOR = "DistilBertForSequenceClassification"


def export_remote_code(model: nn.Module, path: str | Path, tokenizer: Any = None, overwrite: bool = False) -> None:
    """Write a folder that loads where Niwaki is not installed, by the short `modeling_niwaki.py` that lies in it.

    `AutoModelForSequenceClassification.from_pretrained(path, trust_remote_code=True)` (`AutoModelForCausalLM` for a
    language model) runs that file; `niwaki.load` reads the same folder and runs none of it. Transformers has no other
    hook for the table in its config, so `from_pretrained(path)` without `trust_remote_code` refuses uneven weights
    (size mismatch), with Niwaki or without.

    Raises:
        RequestError: `path` is not empty, and with `overwrite` holds what Niwaki did not write; a type of model whose
            weights Transformers renames in files, which it does for its own code alone, or which it does not know.
    """
    with place_of(path, overwrite) as folder:
        fill_remote_code(model, folder, tokenizer)


def fill_remote_code(model: nn.Module, folder: Path, tokenizer: Any = None) -> None:
    """Write what `export_remote_code` does into a folder that is there."""
    check_task(model)
    plain = merged(model)
    if plain.config.model_type in _NO_CODE:
        why = _NO_CODE[plain.config.model_type]
        raise RequestError(f"to must be merged for a {plain.config.model_type} model, {why}, got 'remote-code'")
    table = _table(plain)
    auto = cast(Any, supported_task(plain).auto)
    dense = auto._model_mapping[type(plain.config)].__name__
    code = resources.files("niwaki.surgery").joinpath(f"{_CODE}.py").read_text(encoding="utf-8")
    code = code.replace(_WRITTEN_FOR, dense).replace(_CLASS, dense)
    write_model(plain, folder, tokenizer)
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    config.pop("quantization_config", None)
    config |= {
        METHOD: table,
        "architectures": [dense],
        "auto_map": {auto.__name__: f"{_CODE}.{dense}"},
    }
    text = json.dumps(config, indent=2, sort_keys=True)
    (folder / "config.json").write_text(f"{text}\n", encoding="utf-8")
    (folder / f"{_CODE}.py").write_text(code, encoding="utf-8")


def _table(model: PreTrainedModel) -> dict[str, Any]:
    """What `modeling_niwaki.py` must know: the shape of every linear, by its path in the layer; numbers that follow."""
    family, body = family_of(model), body_of(model)
    sites: dict[int, list[Site]] = {}
    for site in sites_of(model):
        sites.setdefault(site.layer, []).append(site)
    shapes = []
    for attention, ffn in sites.values():
        linears = {}
        for site in (attention, ffn):
            paths = linear_paths(family, site.kind)
            for path, linear in zip(paths, (*site.inputs, site.output), strict=True):
                linears[path] = list(weight_of(linear).shape)
        numbers = stale_numbers(attention, family, attention.units, attention.units)
        shapes.append({"linears": linears, "numbers": numbers, "empty_attention": not attention.units})
    return {
        "layers": shapes_of(model),
        "shapes": shapes,
        "body": next(name for name, module in model.named_modules() if module is body),
        "layers_path": family.layers,
        "attention": family.attention,
        "output_inside": output_inside(family),
    }
