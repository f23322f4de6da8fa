"""`minimind-trl init DIR`: what it writes can be used as it is."""

import json

import pytest

from minimind_trl.cli import main
from minimind_trl.data import DatasetMixer
from minimind_trl.run import SFTRecipeConfig, parse_arguments
from minimind_trl.tokenization import tiny_tokenizer


@pytest.fixture
def folder(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["init", "mine"]) == 0
    assert capsys.readouterr().out.endswith("next: minimind-trl sft --config mine/sft.yaml\n")
    return tmp_path / "mine"


def test_the_config_names_the_mixture_and_the_mixture_the_rows(folder):
    args, config, _ = parse_arguments(SFTRecipeConfig, options=["--config", "mine/sft.yaml"])
    assert args.data_config == str(folder / "mixture.yaml") and config.output_dir == "runs/first"
    data = DatasetMixer.from_yaml(args.data_config).build(tiny_tokenizer())
    rows = (folder / "chats.jsonl").read_text().splitlines()
    assert len(data["train"]) + len(data["validation"]) == len(rows) and len(data["validation"]) > 3
    assert all(json.loads(row)["messages"][1]["role"] == "assistant" for row in rows)


def test_the_readme_names_every_file(folder):
    text = (folder / "README.md").read_text()
    names = {path.name for path in folder.iterdir()} - {"README.md"}
    assert names == {"chats.jsonl", "mixture.yaml", "sft.yaml"} and all(f"`{name}`" in text for name in names)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["mine"], "mine is not empty; give a new folder"),
        (["mine/sft.yaml"], "mine/sft.yaml is a file; give a new folder"),
        (["mine/sft.yaml/new"], "mine/sft.yaml/new: cannot be written: File exists"),
    ],
)
def test_a_folder_that_cannot_be_made_is_refused(folder, capsys, words, message):
    assert main(["init", *words]) == 2
    assert capsys.readouterr().err == f"error: {message}\n"
