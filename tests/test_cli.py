"""`minimind-trl` itself: how soon it answers, and how it ends."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import minimind_trl
from minimind_trl.cli import main
from minimind_trl.commands.conversion import FORMATS

HELP = """
import contextlib, io, sys
from minimind_trl.cli import main

def help_of(*verb):
    with contextlib.redirect_stdout(io.StringIO()) as printed, contextlib.suppress(SystemExit):
        main([*verb, "--help"])
    return printed.getvalue()

assert "convert" in help_of()
for verb in (
    ["convert"], ["tokenizer"], ["tokenizer", "train"], ["eval"], ["plan"], ["init"], ["demo"], ["chat"],
    ["serve"], ["doctor"], ["push"],
    ["data"], *(["data", action] for action in ("check", "build", "show", "explain", "push")),
):
    assert f"usage: minimind-trl {' '.join(verb)}" in help_of(*verb), verb
print(*sorted({name.partition(".")[0] for name in sys.modules}))
"""


def test_help_imports_nothing_that_takes_seconds():
    child = subprocess.run([sys.executable, "-c", HELP], capture_output=True, text=True, check=True, timeout=60)
    imported = child.stdout.split()
    assert "minimind_trl" in imported
    assert {"torch", "transformers", "datasets", "trl", "accelerate", "peft", "numpy"} & {*imported} == set()


def test_the_help_of_convert_lists_every_format(capsys):
    assert main_exit(["convert", "--help"]) == 0
    assert f"{{{','.join(FORMATS)}}}" in capsys.readouterr().out


def main_exit(arguments: list[str]) -> int:
    try:
        return main(arguments)
    except SystemExit as end:
        return end.code


def test_an_unknown_verb_gets_the_nearest_one(capsys):
    assert main_exit(["evl"]) == 2
    assert capsys.readouterr().err.endswith("error: unknown verb 'evl'; did you mean 'eval'?\n")


def test_the_demo_runs_beside_its_recipes_and_writes_here(monkeypatch, tmp_path, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "used").mkdir()
    (tmp_path / "used/file").touch()
    assert main(["demo", "--output_dir", "used"]) == 2
    assert f"--output_dir {tmp_path / 'used'} is not empty" in capsys.readouterr().err and Path.cwd() == tmp_path
    for words in (["--rl_steps", "few"], ["--rl_steps", "0"], ["--seed", "-1"], ["extra"]):
        assert main_exit(["demo", *words]) == 2


def test_ctrl_c_ends_a_verb_in_one_line(monkeypatch, capsys, tmp_path):
    def interrupted(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr("minimind_trl.commands.conversion.convert", interrupted)
    assert main(["convert", str(tmp_path), str(tmp_path / "new"), "--to", "hf"]) == 130
    assert capsys.readouterr() == ("", "stopped by SIGINT\n")


def test_public_names_are_there_for_users_and_editors():
    assert all(hasattr(minimind_trl, name) for name in minimind_trl.__all__)
    assert {*minimind_trl.__all__} <= {*dir(minimind_trl)} and not hasattr(minimind_trl, "no_such_name")
    [block] = [node for node in ast.parse(Path(minimind_trl.__file__).read_text()).body if isinstance(node, ast.If)]
    assert sorted(alias.name for statement in block.body for alias in statement.names) == minimind_trl.__all__


REGISTERED = """
import minimind_trl, sys
assert "transformers" not in sys.modules
from minimind_trl import InputError
from transformers import AutoConfig
assert AutoConfig.for_model("minimind").model_type == "minimind"
"""


@pytest.mark.slow
def test_the_first_name_that_is_used_registers_the_models():
    subprocess.run([sys.executable, "-c", REGISTERED], capture_output=True, check=True, timeout=120)
