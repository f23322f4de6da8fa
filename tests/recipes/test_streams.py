"""Recipes on streaming mixtures: every process its share, and resumed where they stopped."""

import json
from pathlib import Path

import pytest
import yaml

from tests.conftest import REPOSITORY
from tests.recipes.launching import launch, launch_in_turn, weights
from tests.recipes.test_processes import case, losses, same_weights

PHASES = {"pretrain": "pretrain", "sft": "sft", "dpo": "dpo", "grpo": "rlaif", "ppo": "rlaif"}


@pytest.fixture
def streaming(tmp_path):
    """Makes an embedded mixture a streaming one, of its first rows; 40 are fewer than are trained on."""

    def write(recipe: str, rows: int | None) -> Path:
        phase = PHASES[recipe]
        data, folder = REPOSITORY / "data_configs" / "tiny", tmp_path / f"{phase}-{rows}"
        mixture = yaml.safe_load((data / f"{phase}.yaml").read_text())
        [source] = mixture["datasets"]
        folder.mkdir(exist_ok=True)
        for split in ("train", "validation"):
            lines = (data / "data" / f"{phase}_{split}.jsonl").read_text().splitlines(keepends=True)
            (folder / f"{phase}_{split}.jsonl").write_text("".join(lines[:rows]))
        source["source"] = str(folder)
        path = folder / f"{phase}.yaml"
        path.write_text(yaml.safe_dump(mixture | {"streaming": True}))
        return path

    return write


def stream_case(recipe: str, mixture: Path, start: Path, folder: Path, processes: int, **more) -> list[str]:
    more |= {"data_config": mixture, "packing": False} if recipe in ("pretrain", "sft") else {"data_config": mixture}
    return case(recipe, start, folder, processes, **more)


def test_a_run_on_a_stream_resumes_to_the_same_weights(streaming, pretrained, tmp_path):
    """Over several passes of a small stream, of rows and of prompts."""
    cases, recipes = [], ("sft", "grpo")
    for recipe in recipes:
        mixture = streaming(recipe, 6)
        cases += [
            stream_case(recipe, mixture, pretrained, tmp_path / "whole", 1),
            stream_case(
                recipe,
                mixture,
                pretrained,
                tmp_path / "resumed",
                1,
                resume=tmp_path / "whole" / recipe / "checkpoint-2",
            ),
        ]
    launch_in_turn("cpu", cases, tmp_path)
    for recipe in recipes:
        whole, resumed = tmp_path / "whole" / recipe, tmp_path / "resumed" / recipe
        assert json.loads((whole / "checkpoint-4" / "stream-0.json").read_text())["pass"] > 0
        assert weights(whole) == weights(resumed)
        histories = [json.loads((run / "checkpoint-4" / "trainer_state.json").read_text()) for run in (whole, resumed)]
        assert histories[0]["epoch"] == histories[1]["epoch"] == 1.0


@pytest.mark.slow
def test_two_processes_train_on_their_shares_of_a_stream(streaming, pretrained, tmp_path):
    """A small stream gives the steps of one process; of a large one each reads half; both resume."""
    small = {recipe: streaming(recipe, 40) for recipe in ("sft", "dpo", "ppo")}
    large = streaming("pretrain", None)
    alone, whole, resumed = tmp_path / "alone", tmp_path / "whole", tmp_path / "resumed"
    launch_in_turn("cpu", [stream_case(name, small[name], pretrained, alone, 1) for name in ("sft", "dpo")], tmp_path)
    mixtures = small | {"pretrain": large}
    cases = [stream_case(recipe, mixture, pretrained, whole, 2) for recipe, mixture in mixtures.items()]
    cases += [
        stream_case(recipe, mixture, pretrained, resumed, 2, resume=whole / recipe / "checkpoint-2")
        for recipe, mixture in mixtures.items()
    ]
    launch_in_turn("cpu/ddp", cases, tmp_path, processes=2)
    for recipe in ("sft", "dpo"):
        assert losses(whole / recipe) == pytest.approx(losses(alone / recipe), abs=1e-5), recipe
    for recipe in mixtures:
        same_weights(whole / recipe, resumed / recipe)
    lock = json.loads((whole / "pretrain" / "mixture.lock.json").read_text())
    rows = len((large.parent / "pretrain_train.jsonl").read_text().splitlines())
    assert 0.3 * rows < lock["sources"][0]["read_so_far"]["rows read"] < 0.7 * rows


def test_a_stream_of_fewer_prompts_than_a_rollout_answers_is_refused(streaming, pretrained, tmp_path):
    mixture = streaming("grpo", 6)
    result = launch(*stream_case("grpo", mixture, pretrained, tmp_path, 1, per_device_train_batch_size=64))
    assert result.returncode == 2 and "error: the training stream gives not one batch" in result.stderr
    assert not (tmp_path / "grpo" / "model.safetensors").exists()


def test_a_stream_that_holds_no_row_out_is_refused(streaming, pretrained, tmp_path):
    mixture = streaming("pretrain", 40)
    (mixture.parent / "pretrain_validation.jsonl").write_text("")
    result = launch(*stream_case("pretrain", mixture, pretrained, tmp_path, 1))
    assert result.returncode == 2 and "validation split is empty" in result.stderr
