"""What is asked of a command beside its stages: the model, the data, where the result goes."""

from __future__ import annotations

from dataclasses import dataclass

from niwaki.config.dynamic import DynamicSparsityTraining
from niwaki.config.engine import ENGINES, WRITTEN_FOR, Rounding, check_engine, check_quantization
from niwaki.config.fields import (
    DATA,
    FIRST,
    MACHINE,
    OUTPUT,
    bytes_of,
    check_at_least,
    check_given_at_least,
    check_seed,
    check_threads,
    check_unused,
    option,
    required,
)
from niwaki.config.finetune import Finetune
from niwaki.config.layer_adaptive import GRANULARITIES, LAYER_SCORES, WEIGHT_SCORES, LayerAdaptive
from niwaki.config.planned import Planned
from niwaki.config.structured import Structured, UnitScores
from niwaki.config.text import place_named
from niwaki.config.types import check_types
from niwaki.config.vocabulary import Vocabulary
from niwaki.errors import RequestError, check_choice

DTYPES = ("float32", "bfloat16", "auto")
TASKS = (
    *("text-classification", "token-classification", "question-answering", "multiple-choice"),
    *("masked", "causal", "embedding"),
)
"""What a model can be asked to be for; rows of the table in `niwaki.anatomy.task`."""
POOLINGS = ("mean", "cls")
"""How a model without a head can make one vector a text: the mean over the real tokens, or the first one."""
DEFAULT_LENGTH = 128
"""Tokens in a row for counts and timing, where no data say another."""

THREADS = "Threads to compute with; by default as many as PyTorch takes."
ACTIVATIONS = "Folder for the hidden states of calibration rows while work goes on; by default beside --out."
TRAIN_SPLIT = "Split of a Hub data set to take as --train-data; train by default."
EVAL_SPLIT = "Split of a Hub data set to take as --eval-data; by default validation, or test where there is none."

Stage = Structured | LayerAdaptive | DynamicSparsityTraining | Vocabulary | Finetune
STAGES: dict[str, type[Stage]] = {
    "structured": Structured,
    "layer-adaptive": LayerAdaptive,
    "dynamic": DynamicSparsityTraining,
    "vocabulary": Vocabulary,
    "finetune": Finetune,
}


@dataclass(frozen=True, kw_only=True)
class Request:
    """What every command that reads a model and data is told."""

    model: str = required(
        "Hub id, Transformers folder, PEFT adapter folder, or a folder that Niwaki wrote.", place=True
    )
    out: str = required("Folder to write.", place=True)
    base_model: str | None = option(
        None, "Base of the adapter, where adapter_config.json does not lead to it.", DATA, place=True
    )
    text_columns: tuple[str, ...] | None = option(
        None, "Text columns of the data, one or two, where they are not recognised.", DATA
    )
    label_column: str | None = option(None, "Label column of the data, where it is not recognised.", DATA)
    label_names: tuple[str, ...] | None = option(
        None, "Names of the model's outputs in their order, as the data write them, where the model holds none.", DATA
    )
    data_config: str | None = option(None, "Configuration of a Hub data set, where it has several.", DATA)
    task: str | None = option(
        None, f"What the model is for, where its checkpoint and the data leave two answers: {', '.join(TASKS)}.", DATA
    )
    pooling: str | None = option(
        None,
        f"How a model without a task head makes one vector a text: {' or '.join(POOLINGS)}. Folders of Sentence "
        "Transformers say it themselves.",
        DATA,
    )
    seed: int = option(0, "Seed of everything that is drawn.")
    device: str = option("cpu", "Where to compute: auto (a GPU where there is one), cpu, cuda, cuda:1, mps.", MACHINE)
    threads: int | None = option(None, THREADS, MACHINE)
    dtype: str = option(
        "float32",
        f"How weights are held and written: {', '.join(DTYPES)} (as the files hold them, but float16 as float32).",
        MACHINE,
    )
    batch_size: int = option(32, "Rows in a batch.", MACHINE)
    max_length: int = option(128, "Tokens of a row that are kept; for a language model its context length.", DATA)
    stride: int | None = option(None, "Tokens from one context to the next; without, contexts do not overlap.", DATA)
    bos: bool = option(False, "Start every context of a language model with the tokenizer's first token (BOS).", DATA)
    overwrite: bool = option(False, "Replace a folder that holds only what Niwaki wrote.", OUTPUT)

    def __post_init__(self) -> None:
        check_types(self)
        check_choice("dtype", self.dtype, DTYPES)
        if self.task is not None:
            check_choice("task", self.task, TASKS)
        if self.pooling is not None:
            check_choice("pooling", self.pooling, POOLINGS)
        check_at_least(self, 1, "batch_size", "max_length")
        check_given_at_least(self, 1, "stride")
        check_threads(self)
        check_seed(self)
        if self.label_names is not None and len(set(self.label_names)) < len(self.label_names):
            raise RequestError(f"label_names must differ from each other, got {' '.join(self.label_names)}")


@dataclass(frozen=True, kw_only=True)
class Demo:
    """The demonstration, which brings its model and data along."""

    out: str = option("niwaki-demo", "Folder to write.", OUTPUT, place=True)
    seed: int = option(0, "Seed of everything that is drawn.")
    threads: int | None = option(None, THREADS, MACHINE)
    overwrite: bool = option(False, "Replace a folder that holds only what Niwaki wrote.", OUTPUT)

    def __post_init__(self) -> None:
        check_types(self)
        check_seed(self)
        check_threads(self)


@dataclass(frozen=True, kw_only=True)
class Measured(Request):
    """What every command that measures quality is told."""

    metric: str | None = option(
        None,
        "The one metric to measure; by default all of the task: accuracy, f1, matthews_correlation; pearson...",
        DATA,
    )
    tasks: str | None = option(
        None,
        "What to ask a language model: .jsonl files of questions, tasks of lm-evaluation-harness; with commas.",
        DATA,
    )
    limit: int | None = option(None, "Rows of a task that are measured; all by default.", DATA)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.tasks is not None and not all(self._tasks):
            raise RequestError(f"tasks must be names and .jsonl files with commas between them, got {self.tasks!r}")
        if len(set(self._tasks)) < len(self._tasks):
            raise RequestError(f"tasks must be asked once each, got {self.tasks!r}")
        check_given_at_least(self, 1, "limit")
        if self.limit is not None and self.tasks is None:
            raise RequestError(f"limit must be asked with tasks, got {self.limit} without")

    @property
    def _tasks(self) -> tuple[str, ...]:
        return tuple(word.strip() for word in self.tasks.split(",")) if self.tasks is not None else ()

    @property
    def task_files(self) -> tuple[str, ...]:
        """The files of questions among the tasks."""
        return tuple(place_named("tasks", task) for task in self._tasks if _is_file(task))

    @property
    def task_names(self) -> tuple[str, ...]:
        """The tasks that lm-evaluation-harness is to know."""
        return tuple(task for task in self._tasks if not _is_file(task))


def _is_file(task: str) -> bool:
    return task.lower().endswith(".jsonl")


@dataclass(frozen=True, kw_only=True)
class Recipe(Measured):
    """One whole run: the model, the data, the stages in order, where the result goes."""

    train_data: str = required("Data to calibrate and train on: a local file or a Hub data set.", place=True)
    eval_data: str = required("Data to evaluate on: a local file or a Hub data set.", place=True)
    train_split: str | None = option(None, TRAIN_SPLIT, DATA)
    eval_split: str | None = option(None, EVAL_SPLIT, DATA)
    stages: tuple[Stage, ...] = required("What is done, in order.")
    calibration_samples: int = option(2048, "Rows of the training data that pruning looks at.", DATA)
    train_samples: int | None = option(None, "Rows of the training data that training uses; all by default.", DATA)
    held_out_samples: int = option(
        4096, "Rows of the training data, a quarter at most, that only --keep-quality is measured on.", DATA
    )
    max_memory: str | None = option(
        None, "Memory that may be used at most, such as 8GiB; refused before any work.", MACHINE
    )
    activations_dir: str | None = option(None, ACTIVATIONS, MACHINE, place=True)
    compact: bool = option(
        False, "Write masked weights as bits and kept values: smaller, and read by Niwaki only.", OUTPUT
    )
    same_data: bool = option(False, "Let a language model be evaluated on the text that it was calibrated on.", DATA)
    keep_adapter: bool = option(False, "Write the adapter beside the base instead of merging it.", OUTPUT)
    resume: bool = option(
        True, "Go on after the stages and steps that a stopped run has done, or begin anew.", OUTPUT, off="restart"
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        check_at_least(self, 1, "calibration_samples", "held_out_samples")
        check_given_at_least(self, 1, "train_samples")
        if not self.keeps_quality:
            check_unused(self, "a budget", "held_out_samples")
        if not self.stages:
            raise RequestError(f"stages must name at least one of {', '.join(STAGES)}, got none")
        if self.compact and self.keep_adapter:
            raise RequestError("compact must not be asked with keep_adapter: an adapter needs a dense base")
        if self.memory_limit is not None and self.device != "cpu":
            raise RequestError(f"max_memory must be asked with device cpu, got {self.device!r}")

    @property
    def keeps_quality(self) -> bool:
        """Whether a stage searches its budget."""
        return any(isinstance(stage, Planned) and stage.keep_quality is not None for stage in self.stages)

    @property
    def plans(self) -> tuple[str, ...]:
        """The folders of plans that the stages carry out."""
        return tuple(stage.plan for stage in self.stages if isinstance(stage, Planned) and stage.plan is not None)

    @property
    def memory_limit(self) -> int | None:
        """`max_memory` in bytes."""
        return None if self.max_memory is None else bytes_of("max_memory", self.max_memory)


@dataclass(frozen=True, kw_only=True)
class Planning(Request):
    """A plan: the model is observed and scored, and nothing is pruned."""

    train_data: str = required("Data to calibrate on: a local file or a Hub data set.", place=True)
    train_split: str | None = option(None, TRAIN_SPLIT, DATA)
    calibration_samples: int = option(2048, "Rows of the training data that are looked at.", DATA)
    activations_dir: str | None = option(None, ACTIVATIONS, MACHINE, place=True)

    def __post_init__(self) -> None:
        super().__post_init__()
        check_at_least(self, 1, "calibration_samples")


@dataclass(frozen=True, kw_only=True)
class Scoring(UnitScores, Request):
    """Importance only."""

    layer_score: str = option("fisher", f"How layers are scored: {', '.join(LAYER_SCORES)}.")
    weight_score: str = option("sparsegpt", f"How weights are scored: {', '.join(WEIGHT_SCORES)}.")
    granularity: str = option("linear", f"What has an importance of its own: {' or '.join(GRANULARITIES)}.")
    train_data: str = required("Data to calibrate on: a local file or a Hub data set.", place=True)
    train_split: str | None = option(None, TRAIN_SPLIT, DATA)
    calibration_samples: int = option(2048, "Rows of the training data that are looked at.", DATA)
    activations_dir: str | None = option(None, ACTIVATIONS, MACHINE, place=True)

    def __post_init__(self) -> None:
        check_types(self)
        UnitScores.__post_init__(self)
        check_choice("layer_score", self.layer_score, LAYER_SCORES)
        check_choice("weight_score", self.weight_score, WEIGHT_SCORES)
        check_choice("granularity", self.granularity, GRANULARITIES)
        Request.__post_init__(self)
        check_at_least(self, 1, "calibration_samples")


@dataclass(frozen=True, kw_only=True)
class Evaluation(Rounding, Measured):
    """Quality, size and measured latency of a model, beside another if one is named."""

    eval_data: str | None = option(
        None, "Data to evaluate on: a local file or a Hub data set; needed without --tasks.", FIRST, place=True
    )
    eval_split: str | None = option(None, EVAL_SPLIT, DATA)
    against: str | None = option(
        None, "The dense model to compare with; timed in turn with the model.", DATA, place=True
    )
    latency_length: int | None = option(
        None,
        f"Tokens in a row for the timing; by default the data's mean, {DEFAULT_LENGTH} without --eval-data.",
        MACHINE,
    )
    engine: str = option("pytorch", f"Where the models run: {', '.join(ENGINES)}.", MACHINE)

    def __post_init__(self) -> None:
        super().__post_init__()
        check_engine(self.engine, self.quantize)
        self.check_rounding()
        if self.engine != "pytorch" and self.tasks is not None:
            raise RequestError(f"tasks must be asked with engine pytorch, got {self.engine!r}")
        if self.eval_data is None and self.tasks is None:
            raise RequestError("eval_data or tasks must be given, got neither")
        if self.eval_data is None and self.metric is not None:
            raise RequestError(f"metric must be asked with eval_data, got {self.metric!r} without")
        check_given_at_least(self, 1, "latency_length")


@dataclass(frozen=True, kw_only=True)
class Export(Rounding, Request):
    """A model for those who do not have Niwaki."""

    to: str = required(f"What to write: {', '.join(WRITTEN_FOR)}.")
    out: str = required("Folder to write; for onnx and gguf also a file that ends in .onnx or .gguf.", place=True)
    dtype: str = option(
        "auto",
        f"How weights are held and written: {', '.join(DTYPES)}; onnx, openvino and gguf say it themselves.",
        MACHINE,
    )
    optimize: bool = option(False, "For onnx: the graph as ONNX Runtime fuses it, for it alone.")
    eval_data: str | None = option(None, "Data that --max-drop is measured on.", place=True)
    eval_split: str | None = option(None, EVAL_SPLIT, DATA)
    max_drop: float | None = option(
        None, "Share of its usual metric that rounding may cost at most; more, and nothing is written."
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        check_quantization(self.to, self.quantize)
        self.check_rounding()
        if self.dtype == "bfloat16" and WRITTEN_FOR[self.to] != "pytorch":
            raise RequestError(
                f"dtype must be float32 or auto for to {self.to}, got 'bfloat16'; --quantize rounds there"
            )
        if self.optimize and self.to != "onnx":
            raise RequestError(f"optimize must be asked with to onnx, got to {self.to}")
        given = self.max_drop is not None
        if given != (self.eval_data is not None) or (given and self.quantize == "none"):
            rule = "max_drop and eval_data must be asked together, and with quantize"
            raise RequestError(f"{rule}, got {self.max_drop}, {self.eval_data!r} and {self.quantize!r}")
