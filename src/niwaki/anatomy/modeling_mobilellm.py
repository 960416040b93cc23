"""MobileLLM (Liu et al., ICML 2024) as its checkpoints are, without the code that comes with them.

It is Llama, its embeddings shared with the output layer (`share_embedding`). In the LS variant (`layer_sharing`) each
block runs twice in a row. Transformers sizes caches by `num_hidden_layers`, so that counts runs here, `repeats` of each
block; a published config, which counts blocks, is understood. What repeats no block is loaded by Niwaki as plain Llama.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, cast

from huggingface_hub.dataclasses import strict
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM, LlamaModel

MODEL_TYPE = "mobilellm"


@strict
class MobileLLMConfig(LlamaConfig):
    """A Llama config whose `num_hidden_layers` runs are of `num_hidden_layers / repeats` blocks."""

    model_type = MODEL_TYPE
    repeats: int = 1

    def __post_init__(self, **kwargs: Any) -> None:
        if kwargs.pop("layer_sharing", False):
            self.repeats, self.num_hidden_layers = 2, 2 * self.num_hidden_layers
        self.tie_word_embeddings = bool(kwargs.pop("share_embedding", self.tie_word_embeddings))
        super().__post_init__(**kwargs)

    def validate_architecture(self) -> None:
        """Called by Transformers on every config that is made or read."""
        super().validate_architecture()
        if self.repeats < 1 or self.num_hidden_layers % self.repeats:
            raise ValueError(f"repeats must divide the {self.num_hidden_layers} num_hidden_layers, got {self.repeats}")

    def to_llama(self) -> LlamaConfig:
        """The same model as a plain Llama, which it is where no block is repeated."""
        values = self.to_dict()
        for key in ("model_type", "architectures", "auto_map", "repeats"):
            values.pop(key, None)
        return LlamaConfig(**values, architectures=["LlamaForCausalLM"])


class RepeatedBlocks(nn.ModuleList):
    """Blocks, of which a slice (that is how a Llama takes its layers) has each as often as it runs."""

    def __init__(self, blocks: nn.ModuleList, repeats: int) -> None:
        super().__init__(blocks)
        self.repeats = repeats

    def __getitem__(self, index: Any) -> Any:
        return self._runs() if isinstance(index, slice) else super().__getitem__(index)

    def _runs(self) -> Iterator[Any]:
        for number, block in enumerate(cast("Iterator[Any]", iter(self))):
            for run in range(self.repeats):
                block.self_attn.layer_idx = number * self.repeats + run  # every run has keys and values of its own
                yield block


class MobileLLMModel(LlamaModel):
    """The decoder without its output layer."""

    config_class = MobileLLMConfig  # type: ignore[assignment]

    def __init__(self, config: MobileLLMConfig) -> None:
        super().__init__(config)
        self.layers = RepeatedBlocks(nn.ModuleList(list(self.layers)[:: config.repeats]), config.repeats)


class MobileLLMForCausalLM(LlamaForCausalLM):
    """The decoder with its output layer."""

    config_class = MobileLLMConfig  # type: ignore[assignment]

    def __init__(self, config: MobileLLMConfig) -> None:
        super().__init__(config)
        self.model = MobileLLMModel(config)
        self.post_init()


AutoConfig.register(MODEL_TYPE, MobileLLMConfig)
AutoModelForCausalLM.register(MobileLLMConfig, MobileLLMForCausalLM)
