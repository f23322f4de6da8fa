"""The tree as docs/tree.md and the READMEs describe it: rooms import from below only, and no module imports itself."""

import ast
import re
from collections import Counter
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path

from tests.conftest import REPOSITORY

PACKAGE = REPOSITORY / "minimind_trl"
FILES = sorted(PACKAGE.rglob("*.py"))
TOP = ("__init__", "cli")  # what brings rooms together


def rooms() -> dict[str, int]:
    """Each room, or file of the top folder, with the number of its line in docs/tree.md, counted from the bottom."""
    table = re.findall(r"^\| (`.+?) \|", (REPOSITORY / "docs/tree.md").read_text(encoding="utf-8"), re.MULTILINE)
    return {name: number for number, line in enumerate(table) for name in re.findall(r"`(\w+)(?:/|\.py)`", line)}


def module_of(path: Path) -> str:
    return ".".join(path.relative_to(PACKAGE).with_suffix("").parts).removesuffix(".__init__")


def imported_by(path: Path) -> Iterator[str]:
    """Modules of the package that a file imports at its top, as `data.mixer`; the package's own `__init__` is no such."""
    package = path.relative_to(PACKAGE).parent.parts
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if not isinstance(node, ast.ImportFrom):
            continue
        parts = (node.module or "").split(".") if node.module else []
        if node.level:
            parts = [*package[: len(package) - node.level + 1], *parts]
        elif parts[:1] == ["minimind_trl"]:
            parts = parts[1:]
        else:
            continue
        for name in node.names:
            found = [".".join(part) for part in ([*parts, name.name], parts) if part]
            known = [module for module in found if module in MODULES]
            yield from known[:1]


MODULES = {module_of(path) for path in FILES}


def test_a_room_imports_from_below_only():
    level = rooms()
    assert {module.partition(".")[0] for module in MODULES} == {*level, *TOP}
    upward = [
        f"{module_of(path)} imports {module}"
        for path in FILES
        for module in imported_by(path)
        if module_of(path) not in TOP and level[module.partition(".")[0]] > level[module_of(path).partition(".")[0]]
    ]
    assert not upward


def test_no_import_circle():
    TopologicalSorter({module_of(path): set(imported_by(path)) - {module_of(path)} for path in FILES}).prepare()


def test_file_names_are_unique():
    names = Counter(path.name for path in FILES if path.name != "__init__.py")
    assert [name for name, count in names.items() if count > 1] == []


def test_the_readmes_name_every_room():
    for page in ("README.md", "README.zh-CN.md"):
        tree = (REPOSITORY / page).read_text(encoding="utf-8").partition("\nminimind_trl/\n")[2].partition("```")[0]
        named = set(re.findall(r"^  (\w+)/", tree, re.MULTILINE)) | set(re.findall(r"(?<!\S)(\w+)\.py", tree))
        assert {*rooms(), "cli"} == named
