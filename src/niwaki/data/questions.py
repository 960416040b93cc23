"""Multiple-choice files -> questions: a prompt, the ways to go on, which of them is right.

Each row of a `.jsonl` file has one of four shapes, told by its keys:

    query, question or context    choices: [...]                          gold, answer or label
    question                      choices: {text: [...], label: [...]}    answerKey                (ARC)
    goal                          sol1, sol2                              label                    (PIQA)
    ctx, or ctx_a and ctx_b       endings: [...]                          label, activity_label    (HellaSwag)

A prompt of the first shape is given as it stands; those of the others are made as lm-evaluation-harness makes those of
arc_easy, piqa and hellaswag, so that rows taken from there score the same here.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from niwaki.config.text import place_named, unwritable
from niwaki.data.objects import read_objects
from niwaki.data.text_files import text_in
from niwaki.errors import RequestError

PROMPTS = ("query", "question", "context")
ANSWERS = ("gold", "answer", "label")


@dataclass(frozen=True)
class Question:
    """A prompt, the `choices` that may follow it, and the index of the right one (None where that is not said)."""

    prompt: str
    choices: tuple[str, ...]
    gold: int | None


def read_questions(source: str, limit: int | None = None) -> tuple[list[Question], str]:
    """The questions of a `.jsonl` file, the first `limit` where one is given, and the SHA-256 of what was read.

    Raises:
        RequestError: no such file, one that does not read, no row, a row of another shape; the row is named.
    """
    path = Path(place_named("tasks", source))
    if not path.is_file():
        raise RequestError(f"tasks must name existing .jsonl files, got {source!r}")
    try:
        raw = path.read_bytes()
        rows: list[Any] = read_objects(text_in(raw), by_line=True)[:limit]
    except (ValueError, OSError, RecursionError) as error:
        raise RequestError(f"tasks must name .jsonl files that can be read, got {source!r}: {error}") from error
    if not rows:
        raise RequestError(f"tasks must name files with at least one row, got {source!r} with none")
    questions = []
    for number, row in enumerate(rows, 1):
        try:
            question = question_of(row)
            if odd := next(filter(None, map(unwritable, (question.prompt, *question.choices))), None):
                raise WrongRowError(f"must hold text in UTF-8, got {odd!r}")
            questions.append(question)
        except WrongRowError as error:
            raise RequestError(f"tasks: row {number} of {source!r} {error}") from error
    return questions, hashlib.sha256(raw).hexdigest()


class WrongRowError(Exception):
    """What a row must be, and what it is: the end of a line that names the row."""


def answer_key(row: Mapping[str, Any]) -> str | None:
    """The key of a row that says which choice is right, by its shape; None where it has none."""
    if "question" in row and isinstance(row.get("choices"), dict):
        keys: tuple[str, ...] = ("answerKey",)
    else:
        keys = ("label",) if _is_piqa(row) or _is_hellaswag(row) else ANSWERS
    return next((key for key in keys if key in row), None)


def _is_piqa(row: Mapping[str, Any]) -> bool:
    return {"goal", "sol1", "sol2"} <= set(row)


def _is_hellaswag(row: Mapping[str, Any]) -> bool:
    return "endings" in row and ("ctx" in row or {"ctx_a", "ctx_b"} <= set(row))


def question_of(row: Any, *, unanswered: bool = False) -> Question:
    """The question of a row, which may be `unanswered`.

    Raises:
        WrongRowError: a row of another shape.
    """
    if not isinstance(row, dict):
        raise WrongRowError(f"must be an object, got {type(row).__name__}")
    labels: list[Any] = []
    choices, answer = row.get("choices"), row.get(answer_key(row))
    if "question" in row and isinstance(choices, dict):
        prompt = f"Question: {row['question']}\nAnswer:"
        choices, labels = choices.get("text"), list(choices.get("label") or [])
    elif _is_piqa(row):
        prompt, choices = f"Question: {row['goal']}\nAnswer:", [row["sol1"], row["sol2"]]
    elif _is_hellaswag(row):
        prompt, choices = _hellaswag_prompt(row), row["endings"]
        if isinstance(choices, list):
            choices = [_without_marks(str(ending)) for ending in choices]
    else:
        prompt = next((row[key] for key in PROMPTS if key in row), None)
    if not isinstance(prompt, str):
        names = f"must have one of {', '.join(PROMPTS)} with choices, goal with sol1 and sol2, or ctx with endings"
        raise WrongRowError(f"{names}, got {', '.join(map(str, row)) or 'nothing'}")
    if not isinstance(choices, list) or len(choices) < 2 or not all(isinstance(c, str) and c for c in choices):
        raise WrongRowError(f"must have two choices or more, texts that are not empty, got {choices!r}")
    known = answer is not None or not unanswered
    return Question(prompt, tuple(choices), _index(answer, choices, labels) if known else None)


def _index(answer: Any, choices: list[str], labels: list[Any]) -> int:
    """The index of the right choice: named by its label, a number from 0, a letter from A, or its text."""
    if answer in labels:
        return labels.index(answer)
    found, count = answer, len(choices)
    if isinstance(answer, str):
        text = answer.strip()
        found = int(text) if text.isdecimal() else ord(text.upper()) - ord("A") if len(text) == 1 else None
    last = chr(ord("A") + count - 1)
    named = choices.index(answer) if choices.count(answer) == 1 else None
    if isinstance(found, int) and not isinstance(found, bool) and 0 <= found < count:
        if named not in (None, found):
            rule = f"must have an answer that is one of the choices, or else 0 to {count - 1} or A to {last}"
            raise WrongRowError(f"{rule}, got {answer!r}, which is both to different ends (write a number as such)")
        return found
    if named is not None:
        return named
    raise WrongRowError(f"must have an answer, 0 to {count - 1}, A to {last} or one of the choices, got {answer!r}")


def _hellaswag_prompt(row: dict[str, Any]) -> str:
    text = f"{row['ctx_a']} {str(row['ctx_b']).capitalize()}" if {"ctx_a", "ctx_b"} <= set(row) else row["ctx"]
    return _without_marks(f"{row['activity_label']}: {text}" if "activity_label" in row else str(text))


def _without_marks(text: str) -> str:
    """Without the marks that WikiHow left in HellaSwag, as the harness takes them out."""
    text = re.sub(r"\[.*?\]", "", text.strip().replace(" [title]", ". "))
    return text.replace("  ", " ")
