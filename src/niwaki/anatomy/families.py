"""Which architectures can be pruned: one declarative row each, and nothing else to write.

A row says where, inside a model, the layers are, and where, inside a layer, attention and FFN live. Paths are
attribute paths. `attention_in` and `ffn_in` name the projections into the units (see `Reads`), `attention_out` and
`ffn_out` those out of them. `attention_sum` and `ffn_sum` name the module whose *input* is "residual + output" of that
part: the norm that follows. `LAYER` stands for the layer, whose own *output* is that sum in pre-norm models; None for a
part whose output is normed before it is added, or is added together with another's.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from transformers import PreTrainedModel

from niwaki.errors import RequestError

LAYER = ""


@dataclass(frozen=True)
class Reads:
    """A projection into the units of a site, and how its rows belong to them.

    `order` has one letter for each run of rows: `q` (the query heads of a unit), `k` and `v` (its key and value head),
    `n` (a neuron). A run holds the rows of all units; runs follow one another. With `by_unit` all runs of a unit do.
    `part` is the projection's name.
    """

    part: str
    path: str
    order: str
    by_unit: bool = False


@dataclass(frozen=True)
class Family:
    """One row: where attention and FFN live in every layer of these model types.

    `stale` are numbers kept by the attention module that change when units go: the attribute (`config.` before it where
    it is one of the config that all layers share) -> `units`, `heads`, `columns` or `heads_of_unit`. `heads_key`,
    `groups_key`, `width_key` and `neurons_key` are keys of the config: query heads, key/value heads, the width of a
    head, neurons.
    Where `width_key` is given the number of heads does not follow from the model's width, so a plain config can say
    that there are fewer. `heads_fixed` rows lose neurons only. `only` are config keys with the one value that the row
    is right for, and why.
    """

    model_types: tuple[str, ...]
    layers: str
    attention_in: tuple[Reads, ...]
    attention_out: str
    attention_sum: str | None
    ffn_in: tuple[Reads, ...]
    ffn_out: str
    ffn_sum: str | None
    stale: dict[str, str] = field(default_factory=dict)
    heads_key: str = "num_attention_heads"
    groups_key: str | None = None
    width_key: str | None = None
    neurons_key: str = "intermediate_size"
    causal: bool = False
    attention_interface: bool = True
    heads_fixed: bool = False
    only: tuple[tuple[str, Any, str], ...] = ()

    @property
    def attention(self) -> str:
        """Path of the module that holds the query projection: its attributes go stale when heads leave."""
        return self.attention_in[0].path.rpartition(".")[0]


_ALONE = ("add_cross_attention", False, "attention to an encoder is not in the row")


def _apart(query: str, key: str, value: str) -> tuple[Reads, ...]:
    """Three projections, one each for queries, keys and values."""
    return Reads("query", query, "q"), Reads("key", key, "k"), Reads("value", value, "v")


def _bert_like(*model_types: str) -> Family:
    inner = "attention.self"
    return Family(
        model_types=model_types,
        layers="encoder.layer",
        attention_in=_apart(f"{inner}.query", f"{inner}.key", f"{inner}.value"),
        attention_out="attention.output.dense",
        attention_sum="attention.output.LayerNorm",
        ffn_in=(Reads("up", "intermediate.dense", "n"),),
        ffn_out="output.dense",
        ffn_sum="output.LayerNorm",
        stale={"num_attention_heads": "heads", "all_head_size": "columns"},
        only=(_ALONE,),
    )


def _llama_like(*model_types: str, **options: Any) -> Family:
    """Pre-norm; groups of query heads share a key and a value head; gate, up and down are cut together."""
    ffn = options.pop("ffn", "mlp")
    row: dict[str, Any] = {
        "layers": "layers",
        "attention_in": _apart("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
        "attention_out": "self_attn.o_proj",
        "attention_sum": "post_attention_layernorm",
        "ffn_in": (Reads("gate", f"{ffn}.gate_proj", "n"), Reads("up", f"{ffn}.up_proj", "n")),
        "ffn_out": f"{ffn}.down_proj",
        "ffn_sum": LAYER,
        "stale": {"num_key_value_groups": "heads_of_unit"} | options.pop("stale", {}),
        "groups_key": "num_key_value_heads",
        "width_key": "head_dim",
        "causal": True,
    }
    return Family(model_types=model_types, **{**row, **options})


FAMILIES = (
    Family(
        model_types=("distilbert",),
        layers="transformer.layer",
        attention_in=_apart("attention.q_lin", "attention.k_lin", "attention.v_lin"),
        attention_out="attention.out_lin",
        attention_sum="sa_layer_norm",
        ffn_in=(Reads("up", "ffn.lin1", "n"),),
        ffn_out="ffn.lin2",
        ffn_sum="output_layer_norm",
        stale={"n_heads": "heads"},
        heads_key="n_heads",
        neurons_key="hidden_dim",
    ),
    _bert_like("bert", "roberta", "xlm-roberta", "camembert", "electra", "ernie", "layoutlm"),
    Family(
        model_types=("mpnet",),
        layers="encoder.layer",
        attention_in=_apart("attention.attn.q", "attention.attn.k", "attention.attn.v"),
        attention_out="attention.attn.o",
        attention_sum="attention.LayerNorm",
        ffn_in=(Reads("up", "intermediate.dense", "n"),),
        ffn_out="output.dense",
        ffn_sum="output.LayerNorm",
        stale={"num_attention_heads": "heads", "all_head_size": "columns"},
        attention_interface=False,
        # One table of relative positions, a column a head, is shared by all layers: only neurons can go.
        heads_fixed=True,
    ),
    Family(
        model_types=("modernbert",),
        layers="layers",
        attention_in=(Reads("qkv", "attn.Wqkv", "qkv"),),
        attention_out="attn.Wo",
        attention_sum="mlp_norm",
        ffn_in=(Reads("gate_up", "mlp.Wi", "nn"),),
        ffn_out="mlp.Wo",
        ffn_sum=LAYER,
    ),
    _llama_like("llama", "mobilellm", "mistral", "qwen2", "qwen3", "smollm3"),
    _llama_like(
        "phi3",
        attention_in=(Reads("qkv", "self_attn.qkv_proj", "qkv"),),
        ffn_in=(Reads("gate_up", "mlp.gate_up_proj", "nn"),),
        stale={"num_key_value_heads": "units", "config.num_attention_heads": "heads"},
    ),
    # Here the outputs of both parts are normed before they are added.
    _llama_like("gemma2", "gemma3_text", attention_sum=None, ffn_sum=None),
    _llama_like(
        "llama4_text",
        ffn="feed_forward",
        neurons_key="intermediate_size_mlp",
        stale={"num_attention_heads": "heads", "num_key_value_heads": "units"},
        only=(("moe_layers", [], "experts cannot be cut"),),
    ),
    Family(
        model_types=("opt",),
        layers="decoder.layers",
        attention_in=_apart("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
        attention_out="self_attn.out_proj",
        attention_sum="final_layer_norm",
        ffn_in=(Reads("up", "fc1", "n"),),
        ffn_out="fc2",
        ffn_sum=LAYER,
        stale={"num_heads": "heads", "embed_dim": "columns"},
        neurons_key="ffn_dim",
        causal=True,
        only=(("do_layer_norm_before", True, "the norms of opt-350m stand elsewhere"),),
    ),
    Family(
        model_types=("gpt_neox",),
        layers="layers",
        attention_in=(Reads("qkv", "attention.query_key_value", "qkv", by_unit=True),),
        attention_out="attention.dense",
        # Attention and FFN are added at once where `use_parallel_residual`.
        attention_sum=None,
        ffn_in=(Reads("up", "mlp.dense_h_to_4h", "n"),),
        ffn_out="mlp.dense_4h_to_h",
        ffn_sum=LAYER,
        causal=True,
    ),
    Family(
        model_types=("gpt2",),
        layers="h",
        attention_in=(Reads("qkv", "attn.c_attn", "qkv"),),
        attention_out="attn.c_proj",
        attention_sum="ln_2",
        ffn_in=(Reads("up", "mlp.c_fc", "n"),),
        ffn_out="mlp.c_proj",
        ffn_sum=LAYER,
        stale={"num_heads": "heads", "split_size": "columns"},
        neurons_key="n_inner",
        causal=True,
        only=(_ALONE,),
    ),
)

REFUSED = {
    "albert": "all its layers share one set of weights, so a cut fitted to one layer would be made in every layer",
}


def supported_model_types() -> list[str]:
    """Names of all model types that have a row."""
    return sorted(name for family in FAMILIES for name in family.model_types)


def family_of(model: PreTrainedModel) -> Family:
    """The row of a model.

    Raises:
        RequestError: no row, or a type that is refused; the message lists the supported types.
    """
    model_type = model.config.model_type
    if model_type in REFUSED:
        raise RequestError(f"model type {model_type!r} cannot be pruned: {REFUSED[model_type]}")
    for family in FAMILIES:
        if model_type in family.model_types:
            for key, value, why in family.only:
                found = getattr(model.config, key, value)
                if found != value:
                    raise RequestError(f"{key} of a {model_type} model must be {value!r} ({why}), got {found!r}")
            return family
    raise RequestError(
        f"model type must be one of {', '.join(supported_model_types())} "
        f"(another needs a row in niwaki/anatomy/families.py), got {model_type!r}"
    )
