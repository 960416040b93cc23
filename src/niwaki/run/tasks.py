"""What a language model is asked beside its text: questions of a file, tasks of lm-evaluation-harness."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import nn

from niwaki.anatomy import is_language_model, unwrap
from niwaki.config import Measured
from niwaki.data.questions import Question, read_questions
from niwaki.errors import RequestError
from niwaki.evaluate import Mean, encode_questions, find_tasks, harness_scores, multiple_choice
from niwaki.processes import from_first
from niwaki.progress import say
from niwaki.run.inputs import Inputs
from niwaki.run.rows import check_ids


@dataclass(frozen=True)
class Tasks:
    """The tasks of a request: questions by the name of their file, names that the harness knows."""

    questions: dict[str, list[Question]]
    names: tuple[str, ...]
    manager: Any
    limit: int | None
    described: dict[str, dict[str, Any]] = field(default_factory=dict)
    """What was measured, as it stands in `result.json`."""

    def to_dict(self) -> dict[str, Any]:
        """What is added to the `data` of `result.json`."""
        return {"tasks": self.described} if self.described else {}

    def measure(self, model: nn.Module, inputs: Inputs) -> dict[str, Mean]:
        """`task/metric` -> its mean, for a plain model; `inputs` gives its tokenizer and the batch size.

        Raises:
            RequestError: a question that does not fit the model. WorkError: the harness failed; logits not finite.
        """
        found: dict[str, Mean] = {}
        for name, questions in self.questions.items():
            pairs = encode_questions(inputs.tokenizer, questions)
            check_ids([{"input_ids": [*before, *after]} for before, after in pairs], model, inputs.tokenizer)
            scores = multiple_choice(model, questions, pairs, inputs.batch_size, not inputs.quiet)
            found |= {f"{name}/{metric}": mean for metric, mean in scores.items()}
        for name in self.names:
            say(f"tasks: {name}", inputs.quiet)
            means, described = from_first(lambda name=name: self._asked_by_harness(name, model, inputs))
            found |= {metric: Mean(*mean) for metric, mean in means.items()}
            self.described.update(described)
        return found

    def _asked_by_harness(self, name: str, model: nn.Module, inputs: Inputs) -> Any:
        """The harness shares nothing among processes."""
        scores, described = harness_scores(
            model, inputs.tokenizer, self.manager, name, inputs.batch_size, self.limit, not inputs.quiet
        )
        return {metric: (mean.value, mean.stderr) for metric, mean in scores.items()}, described


def read_tasks(request: Measured, quiet: bool) -> Tasks:
    """The tasks of a request, files read and names known; says how many questions a file has.

    Raises:
        RequestError: a file that is none, a name that the harness does not know, two tasks of one name.
    """
    questions: dict[str, list[Question]] = {}
    described: dict[str, dict[str, Any]] = {}
    for source in request.task_files:
        name = Path(source).stem
        if name in questions or name in request.task_names:
            raise RequestError(f"tasks must have a name each (a file's is {name!r}), got {request.tasks!r}")
        questions[name], digest = read_questions(source, request.limit)
        described[name] = {"path": source, "sha256": digest, "rows": len(questions[name])}
        say(f"tasks: {source}: {len(questions[name])} questions", quiet)
    manager = find_tasks(request.task_names) if request.task_names else None
    return Tasks(questions, request.task_names, manager, request.limit, described)


def check_asked(request: Measured, model: nn.Module) -> None:
    """Refuse tasks for a model that does not predict a next token.

    Raises:
        RequestError: naming its kind.
    """
    if request.tasks and not is_language_model(model):
        raise RequestError(f"tasks need a language model, got {type(unwrap(model)).__name__}")


def note_means(record: dict[str, Any], means: dict[str, Mean]) -> None:
    """Write means into the record of a model: among its `quality`, their standard errors into `stderr`."""
    record["quality"] |= {name: mean.value for name, mean in means.items()}
    if means:
        record["stderr"] = {name: mean.stderr for name, mean in means.items() if mean.stderr is not None}
