"""The tree in docs/tree.md and in the READMEs names every room of the package, in the order of tests/test_layers.py."""

import re

from tests.conftest import REPOSITORY
from tests.test_layers import ROOMS, files


def documented() -> list[str]:
    """The rooms, and the files beside them, in the order of the table in docs/tree.md."""
    table = re.findall(r"^\| (`.+?) \|", (REPOSITORY / "docs/tree.md").read_text(encoding="utf-8"), re.MULTILINE)
    return [name for line in table for name in re.findall(r"`(\w+)(?:/|\.py)`", line)]


def test_the_table_lists_every_room_from_the_ground_up():
    assert [name for name in documented() if name in ROOMS] == [room for room in ROOMS if room not in ("", "cli")]
    assert {*documented(), "cli"} == {module.split(".")[1] for module in files() if "." in module}


def test_the_readmes_name_every_room():
    for page in ("README.md", "README.zh-CN.md"):
        tree = (REPOSITORY / page).read_text(encoding="utf-8").partition("\nminimind_trl/\n")[2].partition("```")[0]
        named = set(re.findall(r"^  (\w+)/", tree, re.MULTILINE)) | set(re.findall(r"(?<!\S)(\w+)\.py", tree))
        assert {*documented(), "cli"} == named
