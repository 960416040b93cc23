"""The map is true: each room of docs/architecture.md exists, each that exists is listed, and no import goes up."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "src" / "niwaki"
FILES = sorted(PACKAGE.rglob("*.py"))


def rooms() -> list[str]:
    """Entries of the package, top to bottom, as the map lists them."""
    text = (ROOT / "docs" / "architecture.md").read_text("utf-8")
    listing = text.split("## Rooms")[1].split("```")[1]
    return re.findall(r"^    (\w+(?:/|\.py))", listing, re.MULTILINE)


def room_of(module: str) -> str | None:
    """The entry that a dotted module is in; None for the package itself."""
    parts = module.split(".")
    if len(parts) < 2:
        return None
    return f"{parts[1]}/" if (PACKAGE / parts[1]).is_dir() else f"{parts[1]}.py"


def imported(path: Path) -> list[str]:
    """Modules of the package that a file imports, wherever in it."""
    found = []
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            found += [name.name for name in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module == "niwaki":
            found += [f"niwaki.{name.name}" for name in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.append(node.module)
    return [module for module in found if module.split(".")[0] == "niwaki"]


def test_every_room_is_on_the_map_and_every_room_of_the_map_is_there() -> None:
    entries = {f"{p.name}/" if p.is_dir() else p.name for p in PACKAGE.iterdir() if p.name != "__pycache__"}
    assert sorted(rooms()) == sorted(entries - {"py.typed"})


def test_no_import_goes_up() -> None:
    order = {room: place for place, room in enumerate(rooms())}
    for path in FILES:
        inside = path.relative_to(PACKAGE)
        own = f"{inside.parts[0]}/" if len(inside.parts) > 1 else inside.parts[0]
        for module in imported(path):
            other = room_of(module)
            assert other is None or order[other] >= order[own], f"{inside} is below {other} and imports {module}"


def imports_within(room: Path) -> dict[str, set[str]]:
    """File -> files of the same room that it imports."""
    graph = {}
    prefix = f"niwaki.{room.name}."
    for path in room.rglob("*.py"):
        names = {m.removeprefix(prefix).replace(".", "/") for m in imported(path) if m.startswith(prefix)}
        graph[str(path.relative_to(room).with_suffix(""))] = names
    return graph


@pytest.mark.parametrize("room", [room for room in rooms() if room.endswith("/")])
def test_no_circle_within_a_room(room: str) -> None:
    graph = imports_within(PACKAGE / room)
    while graph:
        free = [name for name, others in graph.items() if not others & graph.keys() - {name}]
        assert free, f"files of {room} import each other in a circle: {', '.join(sorted(graph))}"
        for name in free:
            del graph[name]


def test_every_file_says_its_idea_and_no_function_is_too_long() -> None:
    for path in FILES:
        tree = ast.parse(path.read_text("utf-8"))
        assert ast.get_docstring(tree), path
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef):
                assert node.end_lineno is not None
                length = node.end_lineno - node.lineno + 1
                assert length <= 60, f"{node.name} of {path} has {length} lines"
