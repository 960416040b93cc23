"""Which architectures can be pruned: one declarative row each, and nothing else to write.

A row says where, inside a model, the layers are, and where, inside a layer, attention and FFN live. Paths are
attribute paths. `attention_sum` and `ffn_sum` name the module whose *input* is "residual + output" of that part: the
norm that follows it in post-norm encoders. `head_count` and `all_head_size` are integers kept by attention modules
that go stale. `heads_fixed` rows lose neurons only.
"""

from __future__ import annotations

from dataclasses import dataclass

from transformers import PreTrainedModel

from niwaki.errors import RequestError


@dataclass(frozen=True)
class Family:
    """One row: where attention and FFN live in every layer of these model types."""

    model_types: tuple[str, ...]
    layers: str
    query: str
    key: str
    value: str
    output: str
    attention_sum: str
    up: str
    down: str
    ffn_sum: str
    head_count: str
    all_head_size: str | None = None
    heads_key: str = "num_attention_heads"
    neurons_key: str = "intermediate_size"
    attention_interface: bool = True
    heads_fixed: bool = False

    @property
    def attention(self) -> str:
        """Path of the module that holds the query projection: its attributes go stale when heads leave."""
        return self.query.rpartition(".")[0]


def _bert_like(*model_types: str) -> Family:
    return Family(
        model_types=model_types,
        layers="encoder.layer",
        query="attention.self.query",
        key="attention.self.key",
        value="attention.self.value",
        output="attention.output.dense",
        attention_sum="attention.output.LayerNorm",
        up="intermediate.dense",
        down="output.dense",
        ffn_sum="output.LayerNorm",
        head_count="num_attention_heads",
        all_head_size="all_head_size",
    )


FAMILIES = (
    Family(
        model_types=("distilbert",),
        layers="transformer.layer",
        query="attention.q_lin",
        key="attention.k_lin",
        value="attention.v_lin",
        output="attention.out_lin",
        attention_sum="sa_layer_norm",
        up="ffn.lin1",
        down="ffn.lin2",
        ffn_sum="output_layer_norm",
        head_count="n_heads",
        heads_key="n_heads",
        neurons_key="hidden_dim",
    ),
    _bert_like("bert", "roberta", "xlm-roberta", "camembert", "electra", "ernie", "layoutlm"),
    Family(
        model_types=("mpnet",),
        layers="encoder.layer",
        query="attention.attn.q",
        key="attention.attn.k",
        value="attention.attn.v",
        output="attention.attn.o",
        attention_sum="attention.LayerNorm",
        up="intermediate.dense",
        down="output.dense",
        ffn_sum="output.LayerNorm",
        head_count="num_attention_heads",
        all_head_size="all_head_size",
        attention_interface=False,
        # One table of relative positions, a column a head, is shared by all layers: only neurons can go.
        heads_fixed=True,
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
            return family
    raise RequestError(
        f"model type must be one of {', '.join(supported_model_types())} "
        f"(another needs a row in niwaki/anatomy/families.py), got {model_type!r}"
    )
