"""The shapes of a model's layers: read off it, and written into its config, so that every way of saving is whole.

Layers that are all alike are said by plain values of the config where it has a key for each. Others take a table under
`quantization_config` with the method name `niwaki`: there Transformers lets a model be changed before its weights load
(see `niwaki.checkpoint.hook`).
"""

from __future__ import annotations

from typing import Any, cast

from huggingface_hub.errors import StrictDataclassError
from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.utils.quantization_config import QuantizationConfigMixin

from niwaki.anatomy import family_of, head_width, heads_of_unit, own_config_, sites_of, unwrap

METHOD = "niwaki"
"""Name of the quantizer hook, and key of the table in the config of a remote-code export."""
OWN_KEYS = ("quantization_config", METHOD, "auto_map")


class ShapesConfig(QuantizationConfigMixin):
    """The table of shapes in a config, where the quantizer hook of Transformers finds it.

    `layers` is the table, see `shapes_of`. `packed` has the number of kept weights of every linear that is stored as
    bits and values. `masks` says that a file of masks lies beside the weights.
    """

    def __init__(
        self,
        layers: list[dict[str, int]] | None = None,
        packed: dict[str, int] | None = None,
        masks: bool = False,
        **_: Any,
    ) -> None:
        self.quant_method = METHOD  # type: ignore[assignment]
        self.layers = layers
        self.packed = packed or {}
        self.masks = masks

    def get(self, key: str, default: Any = None) -> Any:
        """As of a dict: Transformers reads the table so where a config in use is given to `from_pretrained`."""
        return getattr(self, key, default)


def shapes_of(model: nn.Module) -> list[dict[str, int]]:
    """Heads (under grouped queries: groups of them) and neurons of every layer, as the model stands.

    Where a group has fewer query heads than the config says, also `query_heads`, those of a group.
    """
    layers: dict[int, dict[str, int]] = {}
    of_group = heads_of_unit(unwrap(model))
    for site in sites_of(model):
        layer = layers.setdefault(site.layer, {})
        layer["heads" if site.kind == "attention" else "neurons"] = site.units
        if site.kind == "attention" and site.heads != of_group:
            layer["query_heads"] = site.heads
    return [layers[index] for index in sorted(layers)]


def write_shapes_(config: Any, model: PreTrainedModel) -> None:
    """Write into `config` the shapes of the layers of `model` as they stand; what Niwaki wrote before goes."""
    shapes = shapes_of(model)
    forget_(config)
    plain = _plain_values(model, shapes)
    if plain is None:
        config.quantization_config = ShapesConfig(shapes)
    for key, value in (plain or {}).items():
        setattr(config, key, value)


def loads_plainly(model: nn.Module) -> bool:
    """Whether a plain config says the shapes of the layers, so that Transformers loads them without Niwaki."""
    inner = unwrap(model)
    return _plain_values(inner, shapes_of(inner)) is not None


def record_shapes_(model: nn.Module) -> None:
    """Write the shapes of the layers into the model's config, which becomes its own where other models share it."""
    write_shapes_(own_config_(model), unwrap(model))


def forget_(config: Any) -> None:
    """Take all that Niwaki writes out of a config."""
    for key in OWN_KEYS:
        if hasattr(config, key):
            delattr(config, key)


def _plain_values(model: PreTrainedModel, shapes: list[dict[str, int]]) -> dict[str, int] | None:
    """What a plain config has to say of layers that are all alike; None where that would not be enough."""
    family, config, first = family_of(model), cast(Any, model.config), shapes[0]
    if any(layer != first for layer in shapes) or not all(first.values()):
        return None
    values = {family.neurons_key: first["neurons"]}
    heads = first["heads"] * first.get("query_heads", heads_of_unit(model))
    if heads != getattr(config, family.heads_key):
        if family.width_key is None or family.groups_key is None:
            return None
        values |= {family.heads_key: heads, family.groups_key: first["heads"], family.width_key: head_width(model)}
    try:  # some want the model's width to be a multiple of the number of heads
        type(cast(PreTrainedConfig, config)).from_dict({**config.to_dict(), **values})
    except (ValueError, TypeError, StrictDataclassError):
        return None
    return values
