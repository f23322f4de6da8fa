"""The configs that come with the package, by their names and from any folder."""

from pathlib import Path

import pytest

from minimind_trl.data import DatasetMixer, load_mixture
from minimind_trl.errors import InputError, MixtureError
from minimind_trl.run import SFTRecipeConfig, parse_arguments
from minimind_trl.run.sharding import read_accelerate_file
from minimind_trl.shipped_files import ACCELERATE_CONFIGS, DATA_CONFIGS, RECIPE_CONFIGS, find_config, shipped_root
from tests.conftest import REPOSITORY


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize(
    "folder", [ACCELERATE_CONFIGS, DATA_CONFIGS, f"{RECIPE_CONFIGS}/sft", f"{RECIPE_CONFIGS}/grpo", RECIPE_CONFIGS]
)
def test_every_shipped_config_has_a_name_and_a_path(folder):
    files = sorted((REPOSITORY / folder).rglob("*.yaml"))
    for file in files:
        name = file.relative_to(REPOSITORY / folder).with_suffix("")
        assert find_config(str(name), folder) == find_config(f"{folder}/{name}.yaml", folder) == str(file)
    assert files


def test_what_is_here_goes_first(tmp_path):
    (tmp_path / "zero2").write_text("mine")
    (tmp_path / "zero3").mkdir()
    assert find_config("zero2", ACCELERATE_CONFIGS) == "zero2"
    assert find_config("zero3", ACCELERATE_CONFIGS) == str(REPOSITORY / "accelerate_configs/zero3.yaml")  # no config
    assert find_config(str(tmp_path / "none.yaml"), ACCELERATE_CONFIGS) == str(tmp_path / "none.yaml")
    for name in ("README.md", "tests", "", "../accelerate_configs/zero2.yaml"):
        assert find_config(name, ACCELERATE_CONFIGS) == name


def test_an_installed_package_holds_them_itself(tmp_path, monkeypatch):
    (tmp_path / "minimind_trl/shipped").mkdir(parents=True)
    monkeypatch.setattr("minimind_trl.shipped_files.__file__", str(tmp_path / "minimind_trl/shipped_files.py"))
    assert shipped_root() == tmp_path / "minimind_trl/shipped"


def test_recipes_mixtures_and_plans_take_names():
    args, *_ = parse_arguments(SFTRecipeConfig, options=["--config", "tiny"], recipe="sft")
    assert Path(args.data_config).samefile(REPOSITORY / "data_configs/tiny/sft.yaml")
    args, *_ = parse_arguments(SFTRecipeConfig, options=["--config=sft/tiny", "--data_config", "sft/code"])
    assert load_mixture(args.data_config).metadata.phase == "sft"
    assert DatasetMixer.from_yaml("tiny/sft").name == "sft_sft"
    assert read_accelerate_file("cpu/zero2", None).zero_stage == 2


def test_a_name_that_is_nearly_right_gets_the_right_one():
    with pytest.raises(InputError, match=r"--config tinny: no such file; did you mean 'tiny'\?"):
        parse_arguments(SFTRecipeConfig, options=["--config", "tinny"], recipe="sft")
    for wrong in ("tiny/stf", "data_configs/tiny/stf.yaml"):
        with pytest.raises(MixtureError, match=r"no such mixture file; did you mean 'tiny/sft'\?"):
            load_mixture(wrong)
    with pytest.raises(InputError, match=r"--accelerate_config zero_2: no such file; did you mean 'zero2'\?"):
        read_accelerate_file("zero_2", None)
