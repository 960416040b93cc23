"""What fine-tuning with LoRA can be asked for."""

from __future__ import annotations

from dataclasses import dataclass

from niwaki.config.fields import check_above_zero, check_at_least, check_seed, option

LORA_RANK = 16
"""Rank of new LoRA where none is asked."""


@dataclass(frozen=True)
class Finetune:
    """Train LoRA on all linears of the blocks, and the task head; an adapter that is there already is trained on."""

    epochs: int = option(1, "Times that the training data are gone through.")
    lora_rank: int = option(LORA_RANK, "Rank of the LoRA factors, whose scale is 2 (lora_alpha = 2 x rank).")
    learning_rate: float = option(1e-3, "Peak learning rate (AdamW, a tenth of warm-up, then linear to 0).")
    seed: int = option(0, "Seed of everything that is drawn.")

    def __post_init__(self) -> None:
        check_at_least(self, 1, "epochs", "lora_rank")
        check_above_zero(self, "learning_rate")
        check_seed(self)
