"""The import graph of the package, read from its sources: the layers of docs/tree.md, and nothing in a circle."""

import ast
import re
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

from tests.conftest import REPOSITORY

PACKAGE = "minimind_trl"


@dataclass(frozen=True)
class Import:
    """One import statement's target, a module of the package."""

    target: str
    inner: bool
    """Within a function, so that it runs later than the module's own imports, if ever."""
    only_for_types: bool
    """Within `if TYPE_CHECKING`, so that it never runs."""


@cache
def files() -> dict[str, Path]:
    """Every module of the package by its dotted name; packages by their own."""
    found = {}
    for path in sorted((REPOSITORY / PACKAGE).rglob("*.py")):
        parts = path.relative_to(REPOSITORY).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


@cache
def tree_of(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


@cache
def lazy_homes(package: str) -> dict[str, str]:
    """Where a package that uses `lazy_names` has its names from; {} for the others."""
    for node in tree_of(files()[package]).body:
        if isinstance(node, ast.Assign) and getattr(node.targets[0], "id", "") == "_HOMES":
            homes = eval(compile(ast.Expression(node.value), package, "eval"), {})
            return {name: f"{package}.{module}" for module, names in homes.items() for name in names}
    return {}


def imports_of(path: Path, package: str = "") -> list[Import]:
    """What a file imports of the package.

    Args:
        package: that relative imports count from.
    """
    nodes = list(ast.walk(tree_of(path)))
    functions = [node for node in nodes if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)]
    inner = {part for function in functions for part in ast.walk(function)}
    for_types = {part for node in nodes if is_type_checking(node) for body in node.body for part in ast.walk(body)}
    found = []
    for node in nodes:
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else from_import(node, package)
        found += [Import(name, node in inner, node in for_types) for name in names if name in files()]
    return found


def is_type_checking(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING"


def from_import(node: ast.AST, package: str) -> Iterator[str]:
    """The modules that `from ... import ...` runs, each name of a lazy package by the module that defines it."""
    if not isinstance(node, ast.ImportFrom):
        return
    base = package.rsplit(".", node.level - 1)[0] if node.level else ""
    base = ".".join(part for part in (base, node.module) if part)
    if base not in files():
        return
    for alias in node.names:
        submodule = f"{base}.{alias.name}"
        yield submodule if submodule in files() else lazy_homes(base).get(alias.name, base)


def package_of(module: str) -> str:
    return module if files()[module].name == "__init__.py" else module.rpartition(".")[0]


@cache
def graph() -> dict[str, list[Import]]:
    return {module: imports_of(path, package_of(module)) for module, path in files().items()}


@cache
def layers() -> dict[str, int]:
    """The layer of each room, or file outside the rooms: its line in docs/tree.md, from the bottom; `cli.py` on top."""
    lines = re.findall(r"^\| (`.+?) \|", (REPOSITORY / "docs/tree.md").read_text(encoding="utf-8"), re.MULTILINE)
    listed = {name: number for number, line in enumerate(lines) for name in re.findall(r"`(\w+)(?:/|\.py)`", line)}
    return {**listed, "cli": len(lines), PACKAGE: len(lines)}


def room_of(module: str) -> str:
    return module.split(".")[min(1, module.count("."))]


def at_once(module: str) -> set[str]:
    """What importing a module imports directly, without the packages around it."""
    return {one.target for one in graph()[module] if not one.inner and not one.only_for_types} - {module}


def reached(start: set[str]) -> set[str]:
    """All modules that are imported with these, the `__init__` of every package on the way included."""
    seen, todo = set(), set(start)
    while todo:
        module = todo.pop()
        seen.add(module)
        packages = {module.rsplit(".", depth)[0] for depth in range(1, module.count(".") + 1)}
        todo |= (at_once(module) | packages) - seen
    return seen


def test_no_file_is_in_a_circle_of_imports():
    try:
        TopologicalSorter({module: at_once(module) for module in files()}).prepare()
    except CycleError as error:
        pytest.fail(f"imported in a circle: {' <- '.join(error.args[1])}")


def test_no_import_runs_up():
    """Imports within functions and for types count too: whoever reads a room need not know one above it."""
    up = {
        f"{module}: {one.target}"
        for module, found in graph().items()
        for one in found
        if one.target != PACKAGE and layers()[room_of(one.target)] > layers()[room_of(module)]
    }
    assert up == set()


def test_docs_and_readmes_name_every_room():
    assert {room_of(module) for module in files()} == {*layers()}
    for page in ("README.md", "README.zh-CN.md"):
        tree = (REPOSITORY / page).read_text(encoding="utf-8").partition("\nminimind_trl/\n")[2].partition("```")[0]
        named = set(re.findall(r"^  (\w+)/", tree, re.MULTILINE)) | set(re.findall(r"(?<!\S)(\w+)\.py", tree))
        assert {*layers()} - {PACKAGE} == named


def test_file_names_are_unique():
    places = defaultdict(list)
    for module, path in files().items():
        if path.name != "__init__.py":
            places[path.name].append(module)
    assert {name: where for name, where in places.items() if len(where) > 1} == {}


@pytest.mark.parametrize("room", ["data", "evaluation"])
def test_data_and_measuring_know_no_trainer(room):
    """Not even TRL's; that they import none of ours is a matter of layers."""
    texts = {module: path.read_text(encoding="utf-8") for module, path in files().items() if room_of(module) == room}
    assert [module for module, text in texts.items() if re.search(r"^\s*(from|import) trl\b", text, re.MULTILINE)] == []


def recipe(name: str) -> set[str]:
    """What a recipe imports, and what is imported with it; also where `main` imports it."""
    return reached({one.target for one in imports_of(REPOSITORY / "recipes" / f"{name}.py")})


def test_fine_tuning_needs_no_part_of_rl():
    online = {f"{PACKAGE}.trainers.{name}" for name in ("critic", "ppo_trainer", "spo_trainer", "rollout_trainer")}
    assert f"{PACKAGE}.trainers.sft_trainer" in recipe("sft") and online & recipe("ppo")  # lazy names are seen through
    assert online & recipe("sft") == set()
