"""How every stage that trains goes through its steps: arithmetic, gradients, the optimizer, when to end."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

from niwaki.config.fields import TRAINING, check_at_least, check_unused, option
from niwaki.errors import RequestError, check_choice

PRECISIONS = ("no", "bf16", "fp16")
RATE_SCHEDULES = ("linear", "cosine", "constant")


@dataclass(frozen=True, kw_only=True)
class Training:
    """Options of one training; what is trained, for how long and at which rate its stage says."""

    mixed_precision: str = option(
        "no",
        f"Arithmetic of the passes: {', '.join(PRECISIONS)}; what is trained stays in float32. fp16 scales the loss.",
        TRAINING,
    )
    gradient_accumulation: int = option(1, "Batches whose gradients make one step.", TRAINING)
    gradient_checkpointing: bool = option(
        False, "Run each layer again in the backward pass, so that what it computed need not be held.", TRAINING
    )
    max_gradient_norm: float = option(1.0, "Norm that the gradient of a step is clipped to; 0: it is not.", TRAINING)
    weight_decay: float = option(0.01, "Decay of AdamW; what masks hide does not decay.", TRAINING)
    learning_rate_warmup: float = option(
        0.1, "Fraction of the steps in which the learning rate rises from 0 to its peak.", TRAINING
    )
    learning_rate_schedule: str = option(
        "linear", f"How it goes on from there, to 0 or not: {', '.join(RATE_SCHEDULES)}.", TRAINING
    )
    early_stopping: int = option(
        0,
        "End once so many measurements in a row found no lower loss on training rows that are held out, and keep the "
        "best; 0: never.",
        TRAINING,
    )

    def check_training(self) -> None:
        """Refuse what no training can do.

        Raises:
            RequestError: an unknown name, or a number out of range.
        """
        check_choice("mixed_precision", self.mixed_precision, PRECISIONS)
        check_choice("learning_rate_schedule", self.learning_rate_schedule, RATE_SCHEDULES)
        check_at_least(self, 1, "gradient_accumulation")
        check_at_least(self, 0, "max_gradient_norm", "weight_decay", "early_stopping")
        if not 0.0 <= self.learning_rate_warmup < 1.0:
            raise RequestError(f"learning_rate_warmup must be in [0, 1), got {self.learning_rate_warmup:g}")

    def check_no_training(self, by: str) -> None:
        """Refuse any of these options that was given where `by` says that nothing is trained.

        Raises:
            RequestError: naming the first.
        """
        check_unused(self, by, *(field.name for field in dataclasses.fields(Training)))
