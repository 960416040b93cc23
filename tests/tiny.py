"""Tiny random models of every family, adapters on them, and batches with padding: no network, no files."""

from __future__ import annotations

import copy
import functools
from collections.abc import Iterator, Mapping

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    BertConfig,
    CamembertConfig,
    DistilBertConfig,
    ElectraConfig,
    ErnieConfig,
    Gemma2Config,
    Gemma3TextConfig,
    GPT2Config,
    GPTNeoXConfig,
    LayoutLMConfig,
    Llama4TextConfig,
    LlamaConfig,
    MistralConfig,
    ModernBertConfig,
    MPNetConfig,
    OPTConfig,
    Phi3Config,
    PreTrainedConfig,
    PreTrainedModel,
    Qwen2Config,
    Qwen3Config,
    RobertaConfig,
    SmolLM3Config,
    XLMRobertaConfig,
)
from transformers.pytorch_utils import Conv1D

from niwaki.anatomy import is_language_model, sites_of
from niwaki.anatomy.modeling_mobilellm import MobileLLMConfig

VOCABULARY = 60
_BERT = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "max_position_embeddings": 40,
    "pad_token_id": 0,
}
_LLAMA = {**_BERT, "num_attention_heads": 8, "num_key_value_heads": 4, "bos_token_id": 1, "eos_token_id": 2}
_WIDE = {**_LLAMA, "head_dim": 8}
_KINDS = ["sliding_attention", "full_attention", "sliding_attention"]


class Configs(Mapping[str, PreTrainedConfig]):
    """The configuration of each model type, a copy to whoever asks for one: making them takes longer than a test."""

    def __init__(self, made: dict[str, PreTrainedConfig]) -> None:
        self._made = made

    def __getitem__(self, family: str) -> PreTrainedConfig:
        return copy.deepcopy(self._made[family])

    def __contains__(self, family: object) -> bool:
        return family in self._made

    def __iter__(self) -> Iterator[str]:
        return iter(self._made)

    def __len__(self) -> int:
        return len(self._made)


@functools.cache
def configs() -> Configs:
    """Of every model type; all have layers that differ in kind where the type knows several."""
    return Configs({**encoders(), **decoders()})


@functools.cache
def encoders() -> Configs:
    distilbert = DistilBertConfig(
        vocab_size=VOCABULARY, dim=32, n_layers=3, n_heads=4, hidden_dim=48, max_position_embeddings=40
    )
    made = {
        "distilbert": distilbert,
        "bert": BertConfig(**_BERT),
        "roberta": RobertaConfig(**_BERT),
        "xlm-roberta": XLMRobertaConfig(**_BERT),
        "camembert": CamembertConfig(**_BERT),
        "electra": ElectraConfig(**_BERT, embedding_size=32),
        "ernie": ErnieConfig(**_BERT),
        "layoutlm": LayoutLMConfig(**_BERT),
        "mpnet": MPNetConfig(**_BERT),
        "modernbert": ModernBertConfig(
            **_BERT, cls_token_id=1, sep_token_id=2, bos_token_id=1, eos_token_id=2, local_attention=8,
            layer_types=["full_attention", "sliding_attention", "sliding_attention"],
        ),
    }  # fmt: skip
    return Configs(made)


@functools.cache
def decoders() -> Configs:
    made = {
        "llama": LlamaConfig(**_LLAMA),
        "mobilellm": MobileLLMConfig(**_LLAMA, layer_sharing=True, share_embedding=True),
        "mistral": MistralConfig(**_LLAMA, sliding_window=6),
        "qwen2": Qwen2Config(**_LLAMA, use_sliding_window=True, sliding_window=6, layer_types=_KINDS),
        "qwen3": Qwen3Config(**_WIDE),
        "smollm3": SmolLM3Config(**_LLAMA, no_rope_layers=[1, 0, 1]),
        "phi3": Phi3Config(**_LLAMA),
        "gemma2": Gemma2Config(**_WIDE, query_pre_attn_scalar=8, sliding_window=6, layer_types=_KINDS),
        "gemma3_text": Gemma3TextConfig(**_WIDE, query_pre_attn_scalar=8, sliding_window=6, layer_types=_KINDS),
        "llama4_text": Llama4TextConfig(
            **_WIDE, intermediate_size_mlp=48, moe_layers=[], attention_chunk_size=8, no_rope_layers=[1, 0, 1]
        ),
        "opt": OPTConfig(
            vocab_size=VOCABULARY, hidden_size=32, num_hidden_layers=3, num_attention_heads=4, ffn_dim=48,
            max_position_embeddings=40, pad_token_id=0, bos_token_id=1, eos_token_id=2, word_embed_proj_dim=32,
        ),
        "gpt_neox": GPTNeoXConfig(**_BERT, bos_token_id=1, eos_token_id=2),
        "gpt2": GPT2Config(
            vocab_size=VOCABULARY, n_embd=32, n_layer=3, n_head=4, n_inner=48, n_positions=40, pad_token_id=0,
            bos_token_id=1, eos_token_id=2,
        ),
    }  # fmt: skip
    return Configs(made)


ROWS = (
    "distilbert", "bert", "mpnet", "modernbert", "llama", "mobilellm", "phi3", "gemma2", "llama4_text", "opt",
    "gpt_neox", "gpt2",
)  # fmt: skip
"""One model type of every row of the table of families (and MobileLLM, whose layers run twice): for what takes long.

Types of one row are cut in the same way; that each of them is, the contract of masked and sliced says for all."""


CUT = {"head_score": "random", "neuron_score": "random", "repair": "none"}
"""Options of a structured pruning that looks at no statistics: for tests of what comes after it."""


def auto_class(family: str) -> type:
    """What loads a model of this type: a language model where it can be one, a classifier where not."""
    return AutoModelForCausalLM if family in decoders() else AutoModelForSequenceClassification


def tiny(family: str = "distilbert", labels: int = 3, seed: int = 0, layers: int | None = None) -> PreTrainedModel:
    """A random model whose weights (biases too) are large enough that every unit matters; later draws go on from it."""
    model, state = _drawn(family, labels, seed, layers)
    torch.set_rng_state(state)
    return copy.deepcopy(model)


@functools.cache
def _drawn(family: str, labels: int, seed: int, layers: int | None) -> tuple[PreTrainedModel, torch.Tensor]:
    """The model of `tiny`, to be copied (drawing one takes much longer), and the global random state after it."""
    torch.manual_seed(seed)
    config = configs()[family]
    if layers:
        shorten_(config, layers)
    if family not in decoders():
        config.num_labels = labels
    model = auto_class(family).from_config(config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" not in name.lower() and "ln_" not in name:
                parameter.normal_(0, 0.15)
    return model.eval(), torch.get_rng_state()


def shorten_(config: PreTrainedConfig, layers: int) -> None:
    """Let a model of this configuration have its first `layers` layers alone."""
    config.num_hidden_layers = layers
    for name in ("layer_types", "no_rope_layers"):
        if getattr(config, name, None):
            setattr(config, name, getattr(config, name)[:layers])


def with_lora(model: PreTrainedModel, **options: object) -> PeftModel:
    """LoRA with trained-looking (non-zero) factors on all linears of all sites."""
    wanted = {id(linear) for site in sites_of(model) for linear in (*site.inputs, site.output)}
    targets = [name for name, module in model.named_modules() if id(module) in wanted]
    task = "CAUSAL_LM" if is_language_model(model) else "SEQ_CLS"
    options |= {"fan_in_fan_out": transposed(model)}
    config = LoraConfig(task_type=task, r=4, lora_alpha=8, target_modules=targets, **options)  # type: ignore
    peft = get_peft_model(model, config)
    with torch.no_grad():
        for name, parameter in peft.named_parameters():
            if "lora_B" in name:
                parameter.normal_(0, 0.1)
    return peft.eval()


def transposed(model: torch.nn.Module) -> bool:
    return any(isinstance(module, Conv1D) for module in model.modules())


def batches(
    count: int = 1, rows: int = 12, length: int = 12, labels: int = 3, seed: int = 1, family: str = "distilbert"
) -> list[dict]:
    """Batches with real padding on the right, and labels; those of a language model are its next tokens."""
    generator = torch.Generator().manual_seed(seed)
    made = []
    for _ in range(count):
        ids = torch.randint(5, VOCABULARY, (rows, length), generator=generator)
        lengths = torch.randint(4, length + 1, (rows, 1), generator=generator)
        mask = (torch.arange(length)[None] < lengths).long()
        target = torch.randint(0, labels, (rows,), generator=generator)
        if family in decoders():
            target = ids.masked_fill(mask == 0, -100)
        made.append({"input_ids": ids * mask, "attention_mask": mask, "labels": target})
    return made


@torch.no_grad()
def logits(model: torch.nn.Module, batch: dict) -> torch.Tensor:
    """`[rows, classes]`, or `[real tokens, vocabulary]`."""
    found = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
    return found[batch["attention_mask"].bool()] if found.dim() == 3 else found
