"""What fine-tuning with LoRA can be asked for."""

from __future__ import annotations

from dataclasses import dataclass

from niwaki.config.fields import TRAINING, check_above_zero, check_at_least, check_seed, check_unused, option
from niwaki.config.training import Training
from niwaki.config.types import check_types

LORA_RANK = 16
"""Rank of new LoRA where none is asked."""


RATE, FULL_RATE = 1e-3, 1e-4
"""Peak learning rates of LoRA and of all weights where none is asked."""


@dataclass(frozen=True)
class Finetune(Training):
    """Train the task head and LoRA on all linears of the blocks (an adapter that is there is trained on), or `full`."""

    epochs: int = option(1, "Times that the training data are gone through.", TRAINING)
    full: bool = option(False, "Train all weights in place of LoRA.", TRAINING)
    lora_rank: int = option(LORA_RANK, "Rank of the LoRA factors, whose scale is 2 (lora_alpha = 2 x rank).", TRAINING)
    learning_rate: float | None = option(
        None,
        f"Peak learning rate of AdamW; {RATE:g} by default, {FULL_RATE:g} of all weights.",
        TRAINING,
    )
    seed: int = option(0, "Seed of everything that is drawn.")

    def __post_init__(self) -> None:
        check_types(self)
        self.check_training()
        check_at_least(self, 1, "epochs", "lora_rank")
        if self.learning_rate is not None:
            check_above_zero(self, "learning_rate")
        if self.full:
            check_unused(self, "full", "lora_rank")
        check_seed(self)

    @property
    def rate(self) -> float:
        """The peak learning rate."""
        return self.learning_rate or (FULL_RATE if self.full else RATE)
