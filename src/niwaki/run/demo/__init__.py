"""What `niwaki demo` works on, with no network: a real encoder, real text, and settings that suit 2 cores."""

from __future__ import annotations

from pathlib import Path

from niwaki.run.demo.corpus import read_rows, split, write_tsv
from niwaki.run.demo.encoder import write_encoder

# Chosen to take about 4 minutes on 2 cores. The first sentence of a docstring says what it is about: 32 tokens hold
# it, and cost two thirds of 64.
MAX_LENGTH = 32
BATCH_SIZE = 32
TRAIN_SAMPLES = 4000
EPOCHS = 2
LEARNING_RATE = 1e-3
LORA_RANK = 16
CALIBRATION_SAMPLES = 1024


def prepare(folder: Path, seed: int = 0) -> tuple[Path, Path, Path]:
    """Write the encoder, the training and the evaluation data under `folder` and return the three paths.

    Raises:
        RequestError: the package with the encoder is not installed, or the standard library has no sources.
    """
    encoder, train, evaluation = folder / "encoder", folder / "train.tsv", folder / "eval.tsv"
    folder.mkdir(parents=True, exist_ok=True)
    training, held_out = split(read_rows(), seed)
    write_tsv(training, train)
    write_tsv(held_out, evaluation)
    write_encoder(encoder)
    return encoder, train, evaluation
