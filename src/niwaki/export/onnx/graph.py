"""The graph of a model: its inputs and outputs by name, as Optimum calls them, and the call that it is made of."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from transformers import DynamicCache
from transformers.utils.generic import ModelOutput

from niwaki.anatomy import is_language_model, supported_task

Run = Callable[[dict[str, Tensor]], list[Tensor]]
"""What an engine does: inputs by name -> outputs in order."""
Past = list[tuple[Tensor, Tensor]]
"""Keys and values `[batch, heads, length, width]` of each run of a layer; one without heads has a number a token."""


class Graph(nn.Module):
    """The graph of a model that reads a text as a whole: of what it gives, that which its task is about."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        self.outputs: tuple[str, ...] = supported_task(model).outputs
        self._by_token = supported_task(model).labels not in ("row", "choice")

    def example(self, batch: dict[str, Tensor]) -> dict[str, Any]:
        """What the graph is called with to be exported."""
        return batch

    def axes(self, example: dict[str, Any]) -> dict[str, Any]:
        """Names of the dimensions of every input that are free: all."""
        names = ("batch", "sequence") if example["input_ids"].dim() == 2 else ("batch", "choices", "sequence")
        return {name: dict(enumerate(names)) for name in example}

    def input_names(self, example: dict[str, Any]) -> list[str]:
        """Names of the inputs in the order in which the call has them."""
        return list(example)

    def expected(self, batch: dict[str, Tensor]) -> list[Tensor]:
        """What PyTorch gives for a batch, at real tokens where it gives something for each."""
        return self._real(list(self(**batch)), batch)

    def found(self, run: Run, batch: dict[str, Tensor]) -> list[Tensor]:
        """What an engine gives for it."""
        return self._real(run(batch), batch)

    def _real(self, outputs: list[Tensor], batch: dict[str, Tensor]) -> list[Tensor]:
        """Without padding, which may see nothing at all through a window that slides: any number will do there."""
        return [values[batch["attention_mask"].bool()] for values in outputs] if self._by_token else outputs

    def inputs_of(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """All inputs by name; an engine takes those that its graph has."""
        ids = batch["input_ids"]
        return {"attention_mask": torch.ones_like(ids), "token_type_ids": torch.zeros_like(ids), **batch}

    def forward_by(self, run: Run) -> Callable[..., ModelOutput]:
        """A forward pass like that of the model, by an engine."""
        return lambda **batch: ModelOutput(dict(zip(self.outputs, run(self.inputs_of(batch)), strict=True)))

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor, token_type_ids: Tensor | None = None
    ) -> tuple[Tensor, ...]:
        more = {} if token_type_ids is None else {"token_type_ids": token_type_ids}
        found = self.model(input_ids=input_ids, attention_mask=attention_mask, **more)
        return tuple(found[name] for name in self.outputs)


class CachedGraph(nn.Module):
    """The graph of a language model: a text, or the next tokens after keys and values of those before, all at once.

    Past keys and values go in and present ones come out, each run of a layer with the heads that the layer has. At the
    start their length is 0. The mask `[batch, past + sequence]` is over all tokens, `position_ids` over the new ones.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        with torch.no_grad():
            ids = torch.zeros(1, 1, dtype=torch.long)
            cache = DynamicCache()
            model(input_ids=ids, past_key_values=cache, use_cache=True)
        self.empty: Past = [(keys[:, :, :0], values[:, :, :0]) for keys, values in _pairs(cache)]
        self.outputs: tuple[str, ...] = ("logits", *self._named("present"))
        self._positions = "position_ids" in inspect.signature(model.forward).parameters

    def _named(self, what: str) -> list[str]:
        return [f"{what}.{number}.{part}" for number in range(len(self.empty)) for part in ("key", "value")]

    def start(self, rows: int) -> dict[str, Tensor]:
        """Past keys and values before the first token, by the names of the inputs."""
        tensors = [tensor.expand(rows, -1, -1, -1) for pair in self.empty for tensor in pair]
        return dict(zip(self._named("past_key_values"), tensors, strict=True))

    def next_inputs(self, ids: Tensor, mask: Tensor, past: dict[str, Tensor]) -> dict[str, Tensor]:
        """All inputs by name; `mask` is over all tokens, padding on either side."""
        inputs = {"input_ids": ids, "attention_mask": mask}
        if self._positions:
            inputs["position_ids"] = (mask.cumsum(1) - 1).clamp(min=0)[:, -ids.shape[1] :]
        return {**inputs, **past}

    def inputs_of(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """All inputs by name for a text from its start."""
        ids = batch["input_ids"]
        return self.next_inputs(ids, batch.get("attention_mask", torch.ones_like(ids)), self.start(len(ids)))

    def forward_by(self, run: Run) -> Callable[..., ModelOutput]:
        """A forward pass like that of the model; `past_key_values` are the mask so far, and keys and values by name."""

        def forward(
            input_ids: Tensor, attention_mask: Tensor | None = None, past_key_values: Any = None, **unused: Any
        ) -> ModelOutput:
            del unused
            mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask
            past = self.start(len(input_ids))
            if past_key_values is not None:
                before, past = past_key_values
                mask = mask if mask.shape[1] > input_ids.shape[1] else torch.cat([before, mask], 1)
            logits, *present = run(self.next_inputs(input_ids, mask, past))
            return ModelOutput(logits=logits, past_key_values=(mask, dict(zip(past, present, strict=True))))

        return forward

    def example(self, batch: dict[str, Tensor]) -> dict[str, Any]:
        """What the graph is called with to be exported: the last tokens of a batch, after those before them."""
        ids, mask = batch["input_ids"], batch["attention_mask"]
        half = ids.shape[1] // 2
        past = [
            (keys.new_zeros(len(ids), keys.shape[1], half, keys.shape[3]),
             values.new_zeros(len(ids), values.shape[1], half, values.shape[3]))
            for keys, values in self.empty
        ]  # fmt: skip
        return {**self.next_inputs(ids[:, half:], mask, {}), "past_key_values": past}

    def axes(self, example: dict[str, Any]) -> dict[str, Any]:
        """Names of the dimensions of every input that are free."""
        axes: dict[str, Any] = {name: {0: "batch", 1: "sequence"} for name in example}
        axes["attention_mask"] = {0: "batch", 1: "total_sequence"}
        axes["past_key_values"] = [({0: "batch", 2: "past_sequence"},) * 2 for _ in self.empty]
        return axes

    def input_names(self, example: dict[str, Any]) -> list[str]:
        """Names of the inputs in the order in which the call has them."""
        return [*(name for name in example if name != "past_key_values"), *self._named("past_key_values")]

    def expected(self, batch: dict[str, Tensor]) -> list[Tensor]:
        """What PyTorch gives for a batch, at real tokens, which it reads at once."""
        inputs = self.next_inputs(batch["input_ids"], batch["attention_mask"], {})
        return [self.model(**inputs, use_cache=False).logits[batch["attention_mask"].bool()]]

    def found(self, run: Run, batch: dict[str, Tensor]) -> list[Tensor]:
        """What an engine gives for it: half of the tokens, and then the rest after their keys and values."""
        ids, mask, given = batch["input_ids"], batch["attention_mask"], []
        past, half = self.start(len(ids)), ids.shape[1] // 2
        for begin, end in ((0, half), (half, ids.shape[1])):
            logits, *present = run(self.next_inputs(ids[:, begin:end], mask[:, :end], past))
            past = dict(zip(past, present, strict=True))
            given.append(logits)
        return [torch.cat(given, 1)[mask.bool()]]

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor, past_key_values: Past, position_ids: Tensor | None = None
    ) -> tuple[Tensor, ...]:
        more = {} if position_ids is None else {"position_ids": position_ids}
        cache = DynamicCache(ddp_cache_data=past_key_values)
        found = self.model(
            input_ids=input_ids, attention_mask=attention_mask, past_key_values=cache, use_cache=True, **more
        )
        return found.logits, *(tensor for pair in _pairs(cache) for tensor in pair)


def _pairs(cache: DynamicCache) -> Past:
    return [(layer.keys, layer.values) for layer in cache.layers]  # type: ignore[misc]


def graph_of(model: nn.Module) -> Graph | CachedGraph:
    """The graph of a model, in evaluation mode."""
    return (CachedGraph(model) if is_language_model(model) else Graph(model)).eval()
