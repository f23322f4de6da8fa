"""`minimind-trl RECIPE`: which words go where, and what is started."""

import dataclasses

import pytest
import yaml
from accelerate.commands.launch import launch_command_parser

from minimind_trl.cli import main
from minimind_trl.commands.launch import RECIPES, SHARED, options_in_file, split_options
from minimind_trl.run import memory_plan
from minimind_trl.run.arguments import LoraArguments, RecipeArguments
from minimind_trl.run.config_files import read_config_file
from tests.conftest import REPOSITORY


@pytest.fixture
def started(monkeypatch, tmp_path):
    """What a verb becomes: the command and its environment."""
    seen = []
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("os.execvpe", lambda program, command, environment: seen.append((command, environment)))
    return seen


def test_every_recipe_is_a_verb():
    assert [*RECIPES] == [*memory_plan.RECIPES]
    assert {*RECIPES} == {path.stem for path in (REPOSITORY / "recipes").glob("*.py")}


def test_launcher_and_recipes_share_no_other_options():
    launcher = {name for action in launch_command_parser()._actions for name in action.option_strings}
    launcher = {name.lstrip("-").replace("-", "_") for name in launcher}
    for config, _ in (found or memory_plan._distillation() for found in memory_plan.RECIPES.values()):
        fields = {field.name for kind in (config, RecipeArguments, LoraArguments) for field in dataclasses.fields(kind)}
        assert (fields | {"config", "help"}) & launcher == {*SHARED}


@pytest.mark.parametrize(
    ("words", "launcher", "recipe"),
    [
        ("--config tiny --max_steps=3", "", "--config tiny --max_steps=3"),
        ("--num_processes 4 --max_steps 3 --multi_gpu --bf16", "--num_processes 4 --multi_gpu", "--max_steps 3 --bf16"),
        ("--main-process-port=0 --reward_funcs a b", "--main-process-port 0", "--reward_funcs a b"),
        (
            "--gradient_accumulation_steps 2 --lr -1",
            "",
            "--gradient_accumulation_steps 2 --lr -1",
        ),
        ("-h", "", "-h"),
    ],
)
def test_each_option_goes_where_it_belongs(words, launcher, recipe):
    assert split_options(words.split(), launch_command_parser()) == (launcher.split(), recipe.split())


def test_one_process_becomes_the_recipe(started):
    assert main(["sft", "--accelerate_config", "cpu", "--config", "tiny", "--max_steps", "3"]) == 0
    [(command, environment)] = started
    assert command[1:] == [str(REPOSITORY / "recipes/sft.py"), "--config", "tiny", "--max_steps", "3"]
    assert environment["ACCELERATE_USE_CPU"] == "True"


def test_the_config_file_may_hold_options_of_the_launcher(started, tmp_path, monkeypatch):
    """As for `trl sft --config`; the command line wins, and the recipe is told which ones it must leave alone."""
    (tmp_path / "my").mkdir()
    (tmp_path / "my" / "acc.yaml").write_text((REPOSITORY / "accelerate_configs/cpu.yaml").read_text())
    values = {"accelerate_config": "acc.yaml", "num_processes": 3, "multi_gpu": False, "max_steps": 3}
    (tmp_path / "my" / "sft.yaml").write_text(yaml.safe_dump(values))
    words = ["--config=my/sft.yaml", "--num_processes", "1"]
    assert options_in_file("sft", words, launch_command_parser()) == {
        "num_processes": ["--num_processes", "3"],
        "multi_gpu": [],
        "accelerate_config": ["--accelerate_config", str(tmp_path / "my" / "acc.yaml")],
    }
    assert main(["sft", *words]) == 0
    [(command, environment)] = started
    assert command[1:] == [str(REPOSITORY / "recipes/sft.py"), "--config=my/sft.yaml"]
    assert environment["ACCELERATE_USE_CPU"] == "True"
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert read_config_file(command[2:], "sft") == ({"max_steps": 3}, [])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("multi_gpu: two", "multi_gpu: 'two' in the file of --config: must be true or false"),
        ("num_processes: four", "argument --num_processes/--num-processes: invalid int value: 'four'"),
        ("accelerate_config: zero9", "--accelerate_config zero9: no such file; did you mean 'zero3'?"),
        ("num_processes: [", "not valid YAML"),
    ],
)
def test_wrong_options_of_the_launcher_in_the_file_are_told_in_one_line(started, capsys, tmp_path, content, message):
    (tmp_path / "my.yaml").write_text(content)
    assert main(["dpo", "--config", "my.yaml"]) == 2
    printed = capsys.readouterr().err
    assert message in printed and printed.count("\n") == 1 and started == []


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--accelerate_config", "zero9"], "--accelerate_config zero9: no such file; did you mean 'zero3'?"),
        (["--accelerate_config"], "--accelerate_config needs a value"),
        (["--num_processes", "four"], "argument --num_processes/--num-processes: invalid int value: 'four'"),
        (["--num_processes"], "--num_processes needs a value"),
        (["--num_processes", "0"], "--num_processes 0: must be at least 1"),
        (["--config_file", "none.yaml"], "none.yaml"),
    ],
)
def test_wrong_options_of_the_launcher_are_told_in_one_line(started, capsys, words, message):
    assert main(["dpo", *words]) == 2
    printed = capsys.readouterr().err
    assert message in printed and printed.count("\n") == 1 and started == []
