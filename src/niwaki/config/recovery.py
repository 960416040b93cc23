"""How a pruned model may learn from the dense one: options of every method that prunes before it trains."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from niwaki.config.fields import TRAINING, check_above_zero, check_at_least, check_unused, option
from niwaki.config.finetune import FULL_RATE
from niwaki.config.training import Training
from niwaki.errors import check_choice

RECOVER_LOSSES = ("both", "predictions", "hidden-states")


@dataclass(frozen=True, kw_only=True)
class Recovery(Training):
    """Training on unlabelled rows, taught by the dense model."""

    LORA_RATE: ClassVar[float]
    """Peak learning rate of LoRA where none is asked."""

    recover_epochs: int = option(
        0, "Epochs of training on the training data, distilled from the dense model.", TRAINING
    )
    recover_full: bool = option(False, "Train all weights that are left in the blocks in place of LoRA.", TRAINING)
    recover_loss: str = option("both", f"What is learned from the dense model: {', '.join(RECOVER_LOSSES)}.", TRAINING)
    recover_learning_rate: float | None = option(
        None,
        "Peak learning rate of that training; by default 3e-4 for units, 1e-3 under masks, 1e-4 of all weights.",
        TRAINING,
    )

    def check_recovery(self) -> None:
        """Refuse a training that cannot be.

        Raises:
            RequestError: epochs below 0, a rate not above 0, an unknown loss; an option of training without any
                epoch.
        """
        self.check_training()
        check_at_least(self, 0, "recover_epochs")
        check_choice("recover_loss", self.recover_loss, RECOVER_LOSSES)
        if self.recover_learning_rate is not None:
            check_above_zero(self, "recover_learning_rate")
        if not self.recover_epochs:
            check_unused(self, "recover_epochs 0", "recover_full", "recover_loss", "recover_learning_rate")
            self.check_no_training("recover_epochs 0")

    @property
    def recover_rate(self) -> float:
        """The peak learning rate."""
        return self.recover_learning_rate or (FULL_RATE if self.recover_full else self.LORA_RATE)
