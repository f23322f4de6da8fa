"""`--config FILE`: from any directory, and whatever is in it."""

import os
import runpy
import sys
from pathlib import Path

import pytest
import yaml

from minimind_trl.errors import InputError
from minimind_trl.run import SFTRecipeConfig, parse_arguments
from minimind_trl.run.config_files import found_from
from minimind_trl.run.distill_config import DistillRecipeConfig
from minimind_trl.run.memory_plan import make_plan
from minimind_trl.run.online_configs import GRPORecipeConfig
from tests.conftest import REPOSITORY
from tests.test_yaml_files import BOMBS

CONFIGS = sorted((REPOSITORY / "recipes/configs").glob("*/*.yaml"))


def parsed(config: Path, kind=SFTRecipeConfig, *options: str):
    return parse_arguments(kind, options=["--config", str(config), *options])


@pytest.mark.parametrize("file", CONFIGS, ids=[f"{file.parent.name}/{file.stem}" for file in CONFIGS])
def test_the_shipped_configs_find_their_mixture_from_any_directory(file, tmp_path, monkeypatch):
    values = yaml.safe_load(file.read_text())
    for folder in (tmp_path, file.parent, REPOSITORY):
        monkeypatch.chdir(folder)
        found = found_from(Path(os.path.relpath(file)), values)
        assert Path(found["data_config"]).samefile(REPOSITORY / values["data_config"])
        assert found["output_dir"] == values["output_dir"]
    assert found["data_config"] == values["data_config"]  # from the repository's root as ever


@pytest.fixture
def project(tmp_path, monkeypatch):
    """A folder with a config and what it names, and another one, in which we are."""
    folder, elsewhere = tmp_path / "project", tmp_path / "elsewhere"
    for path in ("data", "runs/sft", "runs/reward", "configs/sft"):
        (folder / path).mkdir(parents=True)
    (folder / "data" / "sft.yaml").touch()
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    return folder


def write(project: Path, **values) -> Path:
    path = project / "configs" / "sft" / "mine.yaml"
    path.write_text(yaml.safe_dump({"data_config": "data/sft.yaml", "from_weight": "runs/sft", **values}))
    return path


def test_what_is_read_is_found_and_what_is_written_stays_here(project):
    args, config, _ = parsed(write(project, output_dir="runs/new", prepared_dir="p", use_prepared=True))
    assert (args.data_config, args.from_weight) == (str(project / "data/sft.yaml"), str(project / "runs/sft"))
    assert (config.output_dir, args.prepared_dir) == ("runs/new", "p")


def test_the_working_directory_comes_first_and_the_command_line_is_taken_as_it_is(project):
    Path("runs/sft").mkdir(parents=True)
    args, *_ = parsed(write(project), SFTRecipeConfig, "--data_config", "data/sft.yaml", "--output_dir", "x")
    assert (args.data_config, args.from_weight) == ("data/sft.yaml", "runs/sft")


def test_teachers_and_reward_models_are_found_and_names_are_left_alone(project):
    specs = ["exact_match", "length:low=5", "runs/reward", "reward_model:runs/reward,low=-1"]
    specs.append("minimind3:reward_model=runs/reward")
    _, config, _ = parsed(write(project, reward_funcs=specs, output_dir="x"), GRPORecipeConfig)
    model = project / "runs/reward"
    assert config.reward_funcs == [
        *specs[:2],
        str(model),
        f"reward_model:{model},low=-1",
        f"minimind3:reward_model={model}",
    ]
    _, config, _ = parsed(write(project, teacher_model_name_or_path="runs/sft", output_dir="x"), DistillRecipeConfig)
    assert config.teacher_model_name_or_path == str(project / "runs/sft")
    assert found_from(project / "x.yaml", {"from_weight": "owner/name", "resume": "auto"}) == {
        "from_weight": "owner/name",
        "resume": "auto",
    }


@pytest.mark.parametrize("name", BOMBS)
def test_an_alias_bomb_ends_at_once(tmp_path, name):
    (tmp_path / "c.yaml").write_text(BOMBS[name])
    with pytest.raises(InputError, match=r"--config .*c.yaml: not valid YAML: its aliases"):
        parsed(tmp_path / "c.yaml")


def test_an_alias_bomb_for_accelerate_ends_at_once(tmp_path):
    (tmp_path / "a.yaml").write_text(BOMBS["merged"])
    with pytest.raises(InputError, match=r"--accelerate_config .*a.yaml: its aliases"):
        make_plan("sft", ["--preset", "nano", "--accelerate_config", str(tmp_path / "a.yaml")])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("- a\n- b\n", "must be a mapping of options"),
        ("", "must be a mapping of options"),
        ("1: a\n", "must be a mapping of options"),
        ("a: [\n", "not valid YAML: while parsing"),
        ("env: [a]\n", "env must be a mapping"),
        (
            "num_processes: 2\n",
            "unknown option --num_processes: it is the launcher's, which gets it from `minimind-trl",
        ),
        ("learning_rat: 1\n", "unknown option --learning_rat; did you mean '--learning_rate'?"),
        ("when: 2024-13-01\n", "not valid YAML: month must be in 1..12"),
    ],
)
def test_what_is_no_config_file_is_refused(tmp_path, content, message):
    (tmp_path / "c.yaml").write_text(content)
    with pytest.raises(InputError) as caught:
        parsed(tmp_path / "c.yaml", SFTRecipeConfig, "--preset", "tiny", "--data_config", "x", "--output_dir", "x")
    assert message in str(caught.value)


def test_folders_devices_and_bytes_are_refused(tmp_path):
    (tmp_path / "latin.yaml").write_bytes(b"preset: caf\xe9")
    for path, message in (
        (tmp_path, "is a folder; give a file"),
        ("/dev/zero", "is a device; give a file"),
        (tmp_path / "latin.yaml", "not valid YAML: 'utf-8' codec can't decode"),
        (tmp_path / "no.yaml", "no such file"),
    ):
        with pytest.raises(InputError) as caught:
            parsed(path)
        assert message in str(caught.value)


def test_a_run_from_elsewhere_without_a_held_out_part(tmp_path, monkeypatch, capsys):
    """Config and mixture in one folder, the run in another; long texts in pieces; no evaluation, and said so."""
    project = tmp_path / "project"
    project.mkdir()
    (project / "rows.jsonl").write_text("".join(f'{{"text": "{n} {"word " * 60}"}}\n' for n in range(8)))
    mixture = {"metadata": {"phase": "pretrain", "max_seq_length": 32}, "validation": "none"}
    mixture["datasets"] = [{"name": "a", "source": "rows.jsonl"}]
    (project / "mixture.yaml").write_text(yaml.safe_dump(mixture))
    options = {"data_config": "mixture.yaml", "preset": "nano", "output_dir": "run", "max_steps": 2, "bf16": False}
    options |= {"save_strategy": "no", "report_to": "none", "per_device_train_batch_size": 2}
    (project / "config.yaml").write_text(yaml.safe_dump(options))
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    recipe = str(REPOSITORY / "recipes" / "pretrain.py")
    monkeypatch.setattr(sys, "argv", [recipe, "--config", str(project / "config.yaml")])
    runpy.run_path(recipe, run_name="__main__")
    out = capsys.readouterr().out
    assert f"evaluation: off, {project / 'mixture.yaml'} holds no rows out (validation: none)" in out
    assert "8 longer than 32 tokens go on in further pieces, nothing is cut" in out
    assert "learning rate: 0.003 (pretrain from scratch" in out
    card = (tmp_path / "elsewhere" / "run" / "README.md").read_text()
    assert "Not measured (the mixture holds no rows out)." in card and "No rows are held out" in card
