"""The console sessions of docs/after-training.md, run as they stand there."""

import ast
import io
import re
import shlex
import sys

import pytest

from minimind_trl.cli import main
from tests.conftest import REPOSITORY
from tests.forking import run as run_forked
from tests.recipes.launching import environment_of

PAGE = (REPOSITORY / "docs/after-training.md").read_text(encoding="utf-8")
SESSIONS = re.findall(r"^```console\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)


def steps() -> list[tuple[str, list[str]]]:
    """Every command of the page, with the lines that it prints; `...` stands for any."""
    text = "".join(SESSIONS)
    return [
        (command, printed.splitlines())
        for command, printed in re.findall(r"^\$ (.*)\n((?:(?!\$ ).*\n)*)", text, re.MULTILINE)
    ]


def lines_piped(command: str) -> str:
    """What `printf '...'` before a pipe prints; empty without one."""
    left = command.rpartition(" | ")[0]
    return ast.literal_eval(left.removeprefix("printf ")) if left else ""


@pytest.mark.slow
def test_the_page_shows_what_happens(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)

    def become(program, command, environment):
        done = run_forked(command[1], command[2:], environment=environment_of("cpu"), folder=tmp_path)
        print(done.stdout, end="")
        raise SystemExit(done.returncode)

    monkeypatch.setattr("os.execvpe", become)
    found = steps()
    assert len(found) == PAGE.count("\n$ ") > 10
    for command, expected in found:
        program, *words = shlex.split(command.rpartition(" | ")[2])
        monkeypatch.setattr(sys, "stdin", io.StringIO(lines_piped(command)))
        try:
            code = main(words)
        except SystemExit as end:
            code = end.code
        printed = capsys.readouterr()
        refused = any("error: " in line for line in expected)
        assert program == "minimind-trl" and code == (2 if refused else 0), command + printed.err
        shown = [line for line in (printed.out + printed.err).splitlines() if line.strip()]
        assert [line for line in expected if line != "..." and line not in shown] == [], command
        assert "..." in expected or len([line for line in shown if line in expected]) >= len(expected)
