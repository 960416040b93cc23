"""Pages of docs/ that list what is in the code, or in the committed results, list it as it is."""

from __future__ import annotations

import ast
import importlib.util
import re
from pathlib import Path
from typing import Any

import niwaki
from niwaki.anatomy import supported_model_types
from niwaki.config import STAGES

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "src" / "niwaki"
CITED = re.compile(
    r"\b[A-Z]\w+(?:,? et al\.,?| & [A-Z]\w+,?| and [A-Z]\w+,?)(?:\s[\w ]+?)? (?:19|20)\d\d\b|\b[A-Z]\w+ (?:19|20)\d\d\)"
)
"""A paper in a docstring: authors and a year."""


def page(name: str) -> str:
    return (ROOT / "docs" / f"{name}.md").read_text("utf-8")


def rows(text: str) -> list[list[str]]:
    """The cells of all rows of all tables, but their headings."""
    lines = [line for line in text.splitlines() if line.startswith("|") and not line.startswith("| ---")]
    return [[cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in lines]


def docstring(path: Path) -> str:
    """What a file says of itself, of its functions and its classes, as one line."""
    tree = ast.parse(path.read_text("utf-8"))
    holders = (ast.Module, ast.ClassDef, ast.FunctionDef)
    return " ".join(" ".join((ast.get_docstring(x) or "").split()) for x in ast.walk(tree) if isinstance(x, holders))


def script(path: str) -> Any:
    """A script that makes a page, as a module."""
    spec = importlib.util.spec_from_file_location("script", ROOT / path)
    assert spec is not None
    assert spec.loader is not None
    found = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(found)
    return found


def test_benchmarks_are_the_committed_results() -> None:
    tables, again = script("benchmarks/tables.py"), "python benchmarks/tables.py --write"
    assert page("benchmarks") == tables.page(), again
    readme = (ROOT / "README.md").read_text("utf-8")
    assert readme == tables.with_results(readme), again


def test_options_are_those_of_the_config() -> None:
    assert page("options") == script("docs/options.py").page(), "python docs/options.py --write"


def test_every_model_type_and_every_public_name_is_on_its_page() -> None:
    assert [name for name in supported_model_types() if f"`{name}`" not in page("models")] == []
    named = set(re.findall(r"^::: niwaki\.(\w+)$", page("api"), re.MULTILINE))
    assert named == set(niwaki.__all__) - {"__version__"}


def test_papers_stand_where_the_index_says() -> None:
    index = [row for row in rows(page("papers")) if row[2].startswith("`")]
    for _, papers, file in index:
        said = docstring(PACKAGE / file.strip("`"))
        authors = re.findall(r"([A-Z][a-z]+)(?=,? (?:et al|&|and |\d{4}|[A-Z]{3}))", papers)
        assert authors, papers
        assert [author for author in authors if author not in said] == [], file


def test_every_file_that_cites_a_paper_is_in_the_index() -> None:
    cites = [path for path in sorted(PACKAGE.rglob("*.py")) if CITED.search(docstring(path))]
    assert len(cites) > 20
    names = [path.relative_to(PACKAGE).as_posix() for path in cites]
    assert [name for name in names if f"`{name}`" not in page("papers")] == []


def test_errors_are_as_the_code_words_them() -> None:
    joined = "\n".join(path.read_text("utf-8") for path in sorted(PACKAGE.rglob("*.py")))
    source = re.sub(r'"\s*\n\s*f?"', "", joined)  # a message on several lines is one
    said = [row[0].strip("`") for row in rows(page("troubleshooting")) if row[0].startswith("`")]
    assert len(said) > 20
    assert [message for message in said if message not in source] == []


def test_the_guide_of_every_technique_has_how_it_works_a_picture_and_its_limits():
    for name in STAGES:
        if name == "finetune":
            continue
        text = (ROOT / "docs" / f"{name.replace('-', '_')}.md").read_text("utf-8")
        assert {"## How it works", "## Limits"} <= set(text.splitlines()), name
        shown = re.findall(r"^!\[.{20,}\]\((pictures/[\w.]+)\)$", text, re.MULTILINE)
        assert shown, name
        assert all((ROOT / "docs" / picture).is_file() for picture in shown), name
