"""What `make demo` leaves, and what is learned from it. In a file of its own, because it takes minutes by itself."""

import json

import pytest
import yaml

from minimind_trl.evaluation import exact_match_by_skill
from minimind_trl.models import load_model
from minimind_trl.tokenization import tiny_tokenizer
from tests.conftest import REPOSITORY
from tests.recipes.launching import as_options, launch, run


@pytest.mark.slow
@pytest.mark.timeout(2400)
def test_the_demo_learns_its_skills(demo):
    """From near 0 to at least 60% exact match on held-out prompts; preferences are told apart."""
    report = json.loads((demo / "report.json").read_text())
    exact = {stage: figures["all"]["exact_match"] for stage, figures in report["exact_match"].items()}
    assert exact["untrained"] < 0.05 and exact["pretrain"] < 0.1 and exact["sft"] >= 0.6 and exact["dpo"] >= 0.6
    after = {stage["stage"]: stage["after"] for stage in report["stages"]}
    assert after["dpo"]["eval_rewards/accuracies"] > 0.8 and after["reward"]["eval_accuracy"] > 0.8
    before = {stage["stage"]: stage["before"] for stage in report["stages"]}
    for stage in ("grpo", "ppo", "spo"):  # from a checkpoint that is mostly right
        assert after[stage]["eval_reward"] > before[stage]["eval_reward"] - 0.03 and exact[stage] >= 0.6
    assert (demo / "report.png").stat().st_size > 0
    assert "exact match" in (demo / "report.md").read_text()
    # the checkpoint gives the same answers when asked again
    sft = load_model(demo / "sft")
    rows = [
        json.loads(line)
        for line in (REPOSITORY / "data_configs/tiny/data/sft_validation.jsonl").read_text().splitlines()
    ]
    assert exact_match_by_skill(sft, tiny_tokenizer(), rows)["all"]["exact_match"] == exact["sft"]


@pytest.mark.slow
def test_a_student_learns_more_from_a_teacher_than_from_the_rows_alone(demo, tmp_path):
    """The same student, rows, steps and seed; seeds differ by 0.01."""
    student = {"data_config": "data_configs/tiny/distill.yaml", "preset": "nano"}
    taught = run("distill", "tiny", output_dir=tmp_path / "taught", teacher_model_name_or_path=demo / "sft", **student)
    alone = yaml.safe_load((REPOSITORY / "recipes/configs/distill/tiny.yaml").read_text())
    alone = alone | student | {"packing": False, "output_dir": tmp_path / "alone"}
    del alone["teacher_model_name_or_path"]
    result = launch("sft", *as_options(**alone))
    assert result.returncode == 0, result.stderr
    alone = json.loads((tmp_path / "alone" / "metrics.json").read_text())
    assert taught["after"]["eval_loss"] < alone["after"]["eval_loss"] - 0.03
