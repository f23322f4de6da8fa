"""README.md, its Chinese twin and the other pages: in step, and every file, command and option they name exists."""

import ast
import importlib
import re
import runpy
import shlex
import sys
from contextlib import redirect_stdout
from functools import cache
from io import StringIO
from itertools import product
from types import SimpleNamespace
from unittest.mock import patch

import pytest
from accelerate.commands.launch import launch_command_parser

from minimind_trl.cli import main as cli
from tests.conftest import REPOSITORY

PAGES = [
    *("README.md", "README.zh-CN.md", *sorted(f"docs/{path.name}" for path in (REPOSITORY / "docs").glob("*.md"))),
    *("accelerate_configs/README.md", "data_configs/README.md", "tests/README.md"),
    *("benchmarks/README.md", "benchmarks/gpu.md"),
]
FOLDERS = "recipes|data_configs|accelerate_configs|benchmarks|tests|minimind_trl|docs"
RECIPES = ("pretrain", "midtrain", "sft", "distill", "dpo", "reward", "grpo", "ppo", "spo")
_FENCE = re.compile(r"^ *```(\w*)\n(.*?)^ *```$", re.MULTILINE | re.DOTALL)
_OPTION = re.compile(r"(?<![\w-])--([a-z]\w*)")


def text_of(page: str) -> str:
    return (REPOSITORY / page).read_text(encoding="utf-8")


def blocks(page: str) -> list[str]:
    """The fenced blocks, without comments and the white space before them."""
    return [without_comments(block) for _, block in _FENCE.findall(text_of(page))]


def without_comments(code: str) -> str:
    return re.sub(r"[ \t]*(?<!\S)# .*$", "", code, flags=re.MULTILINE)


def commands(page: str) -> list[list[str]]:
    """The lines of the fenced blocks that start a recipe, a script or a verb, as words."""
    lines = "\n".join(blocks(page)).replace("\\\n", " ").splitlines()
    starts = re.compile(r"(?:[A-Z_]+=\S+ +)*(?:python|accelerate|minimind-trl|make|pip|\.venv/bin/python) ")
    return [shlex.split(line) for line in lines if starts.match(line.strip())]


def code(page: str) -> str:
    """All fenced blocks and code spans."""
    return "\n".join([*blocks(page), *re.findall(r"`([^`\n]+)`", _FENCE.sub("", text_of(page)))])


def headings(page: str) -> list[tuple[int, str]]:
    found = re.findall(r"^(#+) (.+)$", _FENCE.sub("", text_of(page)), re.MULTILINE)
    return [(len(marks), title) for marks, title in found]


def printed_help(run) -> str:
    with redirect_stdout(StringIO()) as output, pytest.raises(SystemExit) as end:
        run()
    assert not end.value.code
    return output.getvalue()


@cache
def options_of(what: str) -> frozenset[str]:
    """Option names in the help of a recipe (`recipes/sft.py`) or verb (`data check`), or in a script's parser."""
    if what in RECIPES:  # as a verb it also takes the launcher's
        return options_of(f"recipes/{what}.py") | options_of("accelerate") | {"accelerate_config", "config"}
    if what in {f"recipes/{name}.py" for name in RECIPES}:
        with patch.object(sys, "argv", [what, "--help"]):
            text = printed_help(lambda: runpy.run_path(str(REPOSITORY / what), run_name="__main__"))
    elif what == "accelerate":
        text = " ".join(launch_command_parser()._option_string_actions)  # its help shows some of them only
    elif what.endswith(".py"):
        text = (REPOSITORY / what).read_text(encoding="utf-8")
        text = "\n".join(re.findall(r'add_argument\(\s*"(--\w+)"', text))
    else:
        text = printed_help(lambda: cli([*what.split(), "--help"]))
    found = frozenset(_OPTION.findall(text))
    if what == "plan":  # takes those of every recipe
        found |= frozenset().union(*(options_of(f"recipes/{name}.py") for name in RECIPES))
    return found


def parts_of(command: list[str]) -> SimpleNamespace:
    """What a command runs (for `options_of`), and the options of launcher and program."""
    words = [word for word in command if not re.match(r"[A-Z_]+=", word)]
    program, *rest = words
    if program == "minimind-trl":
        count = 2 if rest[0] in ("data", "tokenizer") else 1
        return SimpleNamespace(program=" ".join(rest[:count]), launcher=[], own=rest[count:])
    at = next((number for number, word in enumerate(rest) if word.endswith(".py")), None)
    if at is None or "pytest" in rest:
        return SimpleNamespace(program=None, launcher=[], own=[])
    return SimpleNamespace(program=rest[at], launcher=rest[:at], own=rest[at + 1 :])


# --- the two READMEs --------------------------------------------------------------------------------------------------


def test_a_newcomer_can_read_it_in_one_sitting():
    assert len(text_of("README.md").splitlines()) <= 200 and len(text_of("README.zh-CN.md").splitlines()) <= 200


def test_the_chinese_readme_has_the_same_headings_and_commands():
    assert [level for level, _ in headings("README.md")] == [level for level, _ in headings("README.zh-CN.md")]
    assert [trimmed(block) for block in blocks("README.md")] == [trimmed(block) for block in blocks("README.zh-CN.md")]
    rows = [len(re.findall(r"^\|", text_of(page), re.MULTILINE)) for page in ("README.md", "README.zh-CN.md")]
    assert rows[0] == rows[1]
    links = [re.findall(r"\]\(([^)]+)\)", text_of(page)) for page in ("README.md", "README.zh-CN.md")]
    assert {*links[0]} - {"README.zh-CN.md"} == {*links[1]} - {"README.md"}


def trimmed(block: str) -> list[str]:
    """The lines of a block; of a tree the names alone, whose descriptions are in the page's language."""
    lines = [line.rstrip() for line in block.splitlines()]
    is_tree = lines[0] == "minimind_trl/"
    return [re.split(r" {4,}(?=\S)|(?<=\S) {2,}", line.strip())[0] for line in lines] if is_tree else lines


# --- what the pages name ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page):
    for target in re.findall(r"\]\((?!https?:)([^)]+)\)", _FENCE.sub("", text_of(page))):
        name, _, anchor = target.partition("#")
        path = ((REPOSITORY / page).parent / name if name else REPOSITORY / page).resolve()
        assert path.exists(), f"{page}: {target}"
        assert path.suffix != ".md" or str(path.relative_to(REPOSITORY)) in PAGES, f"{page}: {target} is not tested"
        if anchor:
            titles = [title for _, title in headings(str(path.relative_to(REPOSITORY)))]
            assert anchor in {re.sub(r"[^\w -]", "", title).lower().replace(" ", "-") for title in titles}, target


@pytest.mark.parametrize("page", PAGES)
def test_files_are_there(page):
    for name in re.findall(rf"(?<![\w./-])(?:{FOLDERS})/[\w./{{}},*-]*[\w}}*]", code(page)):
        for path in spelt_out(name):
            assert any(REPOSITORY.glob(path)), f"{page}: {name}"


def spelt_out(name: str) -> list[str]:
    """`a/{b,c}.py` as `a/b.py` and `a/c.py`."""
    parts = re.split(r"\{([^}]*)\}", name)
    choices = [part.split(",") if number % 2 else [part] for number, part in enumerate(parts)]
    return ["".join(chosen) for chosen in product(*choices)]


@pytest.mark.parametrize("page", PAGES)
def test_modules_and_names_can_be_imported(page):
    for module in re.findall(r"python -m (minimind_trl[\w.]*)", code(page)):
        assert importlib.util.find_spec(module), module
    for statement in re.findall(r"^from minimind_trl\S* import .+$", "\n".join(blocks(page)), re.MULTILINE):
        exec(statement, {})
    for module, _, name in (found.rpartition(".") for found in re.findall(r"^::: (\S+)$", text_of(page), re.MULTILINE)):
        assert hasattr(importlib.import_module(module), name), f"{page}: {module}.{name}"
    for file, name in re.findall(r"^<!-- options (\S+) (\w+) -->$", text_of(page), re.MULTILINE):
        tree = ast.parse((REPOSITORY / file).read_text(encoding="utf-8"))
        assert name in {node.name for node in tree.body if isinstance(node, ast.ClassDef)}, f"{page}: {file} {name}"


@pytest.mark.parametrize("page", PAGES)
def test_a_recipe_is_shown_as_it_is(page):
    shown = [block for block in blocks(page) if block.startswith("def main")]
    assert all(block in without_comments(text_of("recipes/sft.py")) for block in shown)
    assert shown or page not in ("README.md", "README.zh-CN.md", "docs/training.md")


@pytest.mark.parametrize("page", PAGES)
def test_commands_exist_and_take_their_options(page):
    for command in commands(page):
        parts = parts_of(command)
        if parts.program is None:
            continue
        known = {*options_of(parts.program), *(["config"] if parts.program.startswith("recipes/") else [])}
        assert not {*_OPTION.findall(" ".join(parts.own))} - known, f"{page}: {shlex.join(command)}"
        assert not {*_OPTION.findall(" ".join(parts.launcher))} - options_of("accelerate"), f"{page}: {command}"
    for verb in re.findall(r"minimind-trl ((?:data|tokenizer) [a-z]+|[a-z]+)", code(page)):
        options_of(verb)
    targets = re.findall(r"^([\w-]+):", text_of("Makefile"), re.MULTILINE)
    assert {*re.findall(r"(?:^|`)make ([a-z-]+)", code(page), re.MULTILINE)} <= {*targets}


@pytest.mark.parametrize("page", PAGES)
def test_options_exist(page):
    scripts = [str(path.relative_to(REPOSITORY)) for path in REPOSITORY.glob("benchmarks/*.py")]
    verbs = [
        "chat",
        "serve",
        "init",
        "demo",
        "sft",
        "convert",
        "eval",
        "plan",
        "push",
        "report",
        "doctor",
        "tokenizer train",
    ]
    verbs += [f"data {action}" for action in ("check", "build", "show", "explain", "push")]
    known = frozenset({"config", "recipe"}).union(*(options_of(what) for what in ("accelerate", *scripts, *verbs)))
    assert not {*_OPTION.findall(code(page))} - known
