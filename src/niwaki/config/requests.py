"""What is asked of a command beside its stages: the model, the data, where the result goes."""

from __future__ import annotations

from dataclasses import dataclass

from niwaki.config.dynamic import DynamicTraining
from niwaki.config.fields import check_at_least, check_seed, option, required
from niwaki.config.finetune import Finetune
from niwaki.config.layer_adaptive import LayerAdaptive, LinearScores
from niwaki.config.structured import Structured, UnitScores
from niwaki.config.vocabulary import Vocabulary
from niwaki.errors import RequestError

Stage = Structured | LayerAdaptive | DynamicTraining | Vocabulary | Finetune
STAGES: dict[str, type[Stage]] = {
    "structured": Structured,
    "layer-adaptive": LayerAdaptive,
    "dynamic": DynamicTraining,
    "vocabulary": Vocabulary,
    "finetune": Finetune,
}


@dataclass(frozen=True, kw_only=True)
class Request:
    """What every command that reads a model and data is told."""

    model: str = required("Hub id, Transformers folder, PEFT adapter folder, or a folder that Niwaki wrote.")
    out: str = required("Folder to write.")
    base_model: str | None = option(None, "Base of the adapter, where adapter_config.json does not lead to it.")
    text_columns: tuple[str, ...] | None = option(
        None, "Text columns of the data, one or two, where they are not recognised."
    )
    label_column: str | None = option(None, "Label column of the data, where it is not recognised.")
    seed: int = option(0, "Seed of everything that is drawn.")
    device: str = option("cpu", "PyTorch device to work on.")
    batch_size: int = option(32, "Rows in a batch.")
    max_length: int = option(128, "Tokens of a row that are kept; for a language model its context length.")
    stride: int | None = option(None, "Tokens from one context to the next; without, contexts do not overlap.")
    bos: bool = option(False, "Start every context of a language model with the tokenizer's first token (BOS).")
    overwrite: bool = option(False, "Replace a folder that is there.")

    def __post_init__(self) -> None:
        check_at_least(self, 1, "batch_size", "max_length")
        if self.stride is not None:
            check_at_least(self, 1, "stride")
        check_seed(self)


@dataclass(frozen=True, kw_only=True)
class Demo:
    """The demonstration, which brings its model and data along."""

    out: str = option("niwaki-demo", "Folder to write.")
    seed: int = option(0, "Seed of everything that is drawn.")
    overwrite: bool = option(False, "Replace a folder that is there.")

    def __post_init__(self) -> None:
        check_seed(self)


@dataclass(frozen=True, kw_only=True)
class Recipe(Request):
    """One whole run: the model, the data, the stages in order, where the result goes."""

    train_data: str = required("Data to calibrate and train on: a local file or a Hub data set.")
    eval_data: str = required("Data to evaluate on: a local file or a Hub data set.")
    stages: tuple[Stage, ...] = required("What is done, in order.")
    metric: str | None = option(None, "accuracy, f1, matthews_correlation, pearson, spearman; perplexity and its kin.")
    calibration_samples: int = option(2048, "Rows of the training data that pruning looks at.")
    train_samples: int | None = option(None, "Rows of the training data that training uses; all by default.")
    compact: bool = option(False, "Write masked weights as bits and kept values: smaller, and read by Niwaki only.")
    same_data: bool = option(False, "Let a language model be evaluated on the text that it was calibrated on.")
    keep_adapter: bool = option(False, "Write the adapter beside the base instead of merging it.")

    def __post_init__(self) -> None:
        super().__post_init__()
        check_at_least(self, 1, "calibration_samples")
        if self.train_samples is not None:
            check_at_least(self, 1, "train_samples")
        if not self.stages:
            raise RequestError(f"stages must name at least one of {', '.join(STAGES)}, got none")


@dataclass(frozen=True, kw_only=True)
class Scoring(UnitScores, LinearScores, Request):
    """Importance only."""

    train_data: str = required("Data to calibrate on: a local file or a Hub data set.")
    calibration_samples: int = option(2048, "Rows of the training data that are looked at.")

    def __post_init__(self) -> None:
        UnitScores.__post_init__(self)
        LinearScores.__post_init__(self)
        Request.__post_init__(self)
        check_at_least(self, 1, "calibration_samples")


@dataclass(frozen=True, kw_only=True)
class Evaluation(Request):
    """Quality, size and measured latency of a model, beside another if one is named."""

    eval_data: str = required("Data to evaluate on: a local file or a Hub data set.")
    against: str | None = option(None, "The dense model to compare with; timed in turn with the model.")
    metric: str | None = option(None, "accuracy, f1, matthews_correlation, pearson, spearman; perplexity and its kin.")
    latency_length: int | None = option(None, "Tokens in a row for the timing; by default the data's mean.")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.latency_length is not None:
            check_at_least(self, 1, "latency_length")
