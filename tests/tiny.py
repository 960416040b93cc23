"""Tiny random models of every family, adapters on them, and batches with padding: no network, no files."""

from __future__ import annotations

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import (
    AutoModelForSequenceClassification,
    BertConfig,
    CamembertConfig,
    DistilBertConfig,
    ElectraConfig,
    ErnieConfig,
    LayoutLMConfig,
    MPNetConfig,
    PreTrainedConfig,
    PreTrainedModel,
    RobertaConfig,
    XLMRobertaConfig,
)

from niwaki.anatomy import sites_of

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


def configs() -> dict[str, PreTrainedConfig]:
    distilbert = DistilBertConfig(
        vocab_size=VOCABULARY, dim=32, n_layers=3, n_heads=4, hidden_dim=48, max_position_embeddings=40
    )
    return {
        "distilbert": distilbert,
        "bert": BertConfig(**_BERT),
        "roberta": RobertaConfig(**_BERT),
        "xlm-roberta": XLMRobertaConfig(**_BERT),
        "camembert": CamembertConfig(**_BERT),
        "electra": ElectraConfig(**_BERT, embedding_size=32),
        "ernie": ErnieConfig(**_BERT),
        "layoutlm": LayoutLMConfig(**_BERT),
        "mpnet": MPNetConfig(**_BERT),
    }


def tiny(family: str = "distilbert", labels: int = 3, seed: int = 0) -> PreTrainedModel:
    """A random model whose weights (biases too) are large enough that every unit matters."""
    torch.manual_seed(seed)
    config = configs()[family]
    config.num_labels = labels
    model = AutoModelForSequenceClassification.from_config(config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" not in name.lower():
                parameter.normal_(0, 0.15)
    return model.eval()


def with_lora(model: PreTrainedModel, **options: object) -> PeftModel:
    """LoRA with trained-looking (non-zero) factors on all linears of all sites."""
    wanted = {id(linear) for site in sites_of(model) for linear in (*site.inputs, site.output)}
    targets = [name for name, module in model.named_modules() if id(module) in wanted]
    config = LoraConfig(task_type="SEQ_CLS", r=4, lora_alpha=8, target_modules=targets, **options)  # type: ignore
    peft = get_peft_model(model, config)
    with torch.no_grad():
        for name, parameter in peft.named_parameters():
            if "lora_B" in name:
                parameter.normal_(0, 0.1)
    return peft.eval()


def batches(count: int = 4, rows: int = 6, length: int = 12, labels: int = 3, seed: int = 1) -> list[dict]:
    """Batches with real padding on the right, and labels."""
    generator = torch.Generator().manual_seed(seed)
    made = []
    for _ in range(count):
        ids = torch.randint(5, VOCABULARY, (rows, length), generator=generator)
        lengths = torch.randint(4, length + 1, (rows, 1), generator=generator)
        mask = (torch.arange(length)[None] < lengths).long()
        target = torch.randint(0, labels, (rows,), generator=generator)
        made.append({"input_ids": ids * mask, "attention_mask": mask, "labels": target})
    return made


@torch.no_grad()
def logits(model: torch.nn.Module, batch: dict) -> torch.Tensor:
    return model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
