"""`validation: none`: every row is trained on, on purpose, and said so."""

import json

import pytest
import yaml

from minimind_trl.cli import main
from minimind_trl.data import LOCK, DatasetMixer, MixtureError, load_mixture, load_prepared
from tests.data.test_mixer import build, texts


@pytest.mark.parametrize("streaming", [False, True])
def test_every_row_is_trained_on(write, streaming):
    data, mixer = build(write({"a": texts("a", 3)}, validation="none", streaming=streaming))
    assert list(data) == ["train"]
    assert sorted(row["text"] for row in data["train"]) == ["a 0", "a 1", "a 2"]
    assert mixer.lock()["validation"] is None
    if not streaming:
        assert "nothing held out (validation: none)" in mixer.describe() and "`validation: none`" in mixer.markdown()


def test_it_is_prepared_and_read_again(write, tmp_path, capsys):
    path = write({"a": texts("a", 3)}, validation="none")
    for _ in range(2):
        assert main(["data", "build", str(path), "--output_dir", str(tmp_path / "out")]) == 0
        assert capsys.readouterr().out.splitlines()[-1].endswith(f"out: 3 train rows, {LOCK}")
    assert list(load_prepared(tmp_path / "out")) == ["train"]
    assert sorted(file.name for file in (tmp_path / "out").iterdir()) == [LOCK, "pretrain_mixture_train.jsonl"]
    assert json.loads((tmp_path / "out" / LOCK).read_text())["validation"] is None
    with pytest.raises(MixtureError, match="no split 'validation'; there is train"):
        DatasetMixer.from_yaml(path).prepare_dataset(tmp_path / "x", "validation")


def test_a_source_that_holds_rows_out_itself_contradicts_it(write):
    path = write({"a": texts("a", 3), "b": texts("b", 3)}, validation="none")
    mixture = yaml.safe_load(path.read_text())
    mixture["datasets"][0]["data_files"] = {"train": "a.jsonl", "validation": "b.jsonl"}
    mixture["datasets"][1] |= {"source": "some/set", "validation_splits": ["test"]}
    path.write_text(yaml.safe_dump(mixture))
    with pytest.raises(MixtureError) as caught:
        load_mixture(path)
    for field in ("datasets.0.data_files.validation", "datasets.1.validation_splits"):
        assert f"{field}: the mixture says validation: none; leave one of the two out" in str(caught.value)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (None, "validation: give {ratio: 0.05}, or none"),
        (False, "validation: give {ratio: 0.05}, or none"),
        ("off", "validation: give {ratio: 0.05}, or none"),
        ({"ratio": 0}, "a ratio of 0 holds nothing out; if that is meant, set validation: none"),
        ({"ratio": 0.0, "seed": 1}, "a ratio of 0 holds nothing out"),
        ({"ration": 0.1}, "validation.ration: unknown key; did you mean 'ratio'?"),
    ],
)
def test_what_may_be_meant_so_is_asked_for(write, value, message):
    with pytest.raises(MixtureError) as caught:
        load_mixture(write({"a": texts("a", 9)}, validation=value))
    assert message in str(caught.value)


def test_a_split_that_comes_out_empty_says_how_to_go_without(write):
    with pytest.raises(MixtureError, match="add rows, or set validation: none to train without a held-out part"):
        build(write({"a": texts("a", 3)}, validation={"ratio": 0.001}))
