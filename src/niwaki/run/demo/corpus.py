"""Real text that every Python installation has: which area of the standard library a docstring belongs to.

The sources are parsed, never imported or run. One docstring is one row: its prose (no doctests, no code), at most
`MAX_WORDS` words. A text that stands in several areas has no one label and is left out. Docstrings of one top-level
class or function are never on both sides of the split, and an evaluation row goes if a training row is its near twin:
Jaccard similarity of their sets of words, `|a & b| / |a | b|`, of at least `NEAR` (Broder 1997).
"""

from __future__ import annotations

import ast
import inspect
import random
import sysconfig
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path
from typing import Any

import numpy as np
from sklearn.feature_extraction.text import CountVectorizer

from niwaki.errors import RequestError
from niwaki.run.demo.areas import AREAS

MIN_WORDS, MAX_WORDS = 6, 80
MIN_ROWS = 80
EVAL_SHARE = 0.2
NEAR = 0.6


@dataclass(frozen=True)
class Row:
    """One docstring: its prose on one line, its area, and the top-level definition (`file:name`) that it comes from."""

    text: str
    area: str
    definition: str


def read_rows(library: Path | None = None) -> list[Row]:
    """Every usable docstring of the standard library in `library` (default: that of the running Python), in file order.

    Areas with fewer than `MIN_ROWS` rows on this installation are left out.

    Raises:
        RequestError: the standard library has no sources (it is zipped or was stripped).
    """
    folder = library or Path(sysconfig.get_path("stdlib"))
    kept: dict[str, Row] = {}
    ambiguous: set[str] = set()
    for row in _docstrings(folder):
        key = row.text.lower()
        if kept.setdefault(key, row).area != row.area:
            ambiguous.add(key)
    rows = [row for key, row in kept.items() if key not in ambiguous]
    counts = {area: sum(row.area == area for row in rows) for area in AREAS}
    rows = [row for row in rows if counts[row.area] >= MIN_ROWS]
    if len({row.area for row in rows}) < 2:
        rule = "demo reads docstrings in the sources of Python's standard library"
        raise RequestError(f"{rule}, got none in {str(folder)!r}; use a Python that ships its .py files")
    return rows


def split(rows: list[Row], seed: int) -> tuple[list[Row], list[Row]]:
    """`(train, evaluation)`: whole definitions until each area has `EVAL_SHARE` of its rows in `evaluation`.

    Definitions are drawn in an order that `seed` gives; one that would overfill the evaluation side trains. Both sides
    are shuffled.
    """
    generator = random.Random(seed)
    train: list[Row] = []
    evaluation: list[Row] = []
    for area in AREAS:
        definitions: dict[str, list[Row]] = {}
        for row in rows:
            if row.area == area:
                definitions.setdefault(row.definition, []).append(row)
        room = round(EVAL_SHARE * sum(map(len, definitions.values())))
        for name in generator.sample(sorted(definitions), len(definitions)):
            group = definitions[name]
            if len(group) <= room:
                room -= len(group)
                evaluation.extend(group)
            else:
                train.extend(group)
    twin = similarity([row.text for row in evaluation], [row.text for row in train]) >= NEAR
    evaluation = [row for row, leaks in zip(evaluation, twin, strict=True) if not leaks]
    generator.shuffle(train)
    generator.shuffle(evaluation)
    return train, evaluation


def similarity(texts: list[str], others: list[str]) -> np.ndarray:
    """`[len(texts)]`: the Jaccard similarity of each text to the nearest of `others`, over their sets of words."""
    counter = CountVectorizer(binary=True, token_pattern=r"\w+")
    words: Any = counter.fit_transform([*texts, *others])
    left, right = words[: len(texts)], words[len(texts) :]
    shared = (left @ right.T).toarray()
    union = _count(left)[:, None] + _count(right)[None, :] - shared
    return (shared / np.maximum(union, 1)).max(axis=1)


def _count(words: Any) -> np.ndarray:
    return np.asarray(words.sum(axis=1)).ravel()


def write_tsv(rows: list[Row], path: Path) -> None:
    """A header and one line a row, `sentence<TAB>label`, nothing quoted."""
    lines = ["sentence\tlabel", *(f"{row.text}\t{row.area}" for row in rows)]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8", newline="\n")


def _docstrings(folder: Path) -> Iterator[Row]:
    for area, modules in AREAS.items():
        for path in sorted(path for name in modules for path in _sources(folder, name)):
            tree = _parse(path)
            where = path.relative_to(folder).as_posix()
            for top in [] if tree is None else [tree, *tree.body]:
                name = getattr(top, "name", "")
                for node in [top] if isinstance(top, ast.Module) else ast.walk(top):
                    if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
                        text = prose(ast.get_docstring(node, clean=False) or "")
                        if len(text.split()) >= MIN_WORDS:
                            yield Row(text, area, f"{where}:{name}")


def _sources(folder: Path, name: str) -> list[Path]:
    package = folder / name
    inside = [path for path in package.rglob("*.py") if not {"test", "tests"} & set(path.relative_to(package).parts)]
    module = folder / f"{name}.py"
    return [*inside, module] if module.is_file() else inside


def _parse(path: Path) -> ast.Module | None:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return ast.parse(path.read_bytes())
    except (SyntaxError, ValueError, OSError):
        return None


def prose(docstring: str) -> str:
    """The first `MAX_WORDS` words of a docstring on one line: without doctests, control characters and code."""
    paragraphs = inspect.cleandoc(docstring).split("\n\n")
    lines = (takewhile(lambda line: not line.lstrip().startswith(">>>"), text.splitlines()) for text in paragraphs)
    text = " ".join(line for paragraph in lines for line in paragraph)
    printable = "".join(character if character.isprintable() else " " for character in text)
    return " ".join(printable.split()[:MAX_WORDS])
