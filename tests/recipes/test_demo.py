"""What `make demo` leaves, and what is learned from it. In a file of its own, because it takes minutes by itself."""

import json

import pytest

from minimind_trl.evaluation import exact_match_by_skill
from minimind_trl.models import load_model
from minimind_trl.tokenization import tiny_tokenizer
from tests.conftest import REPOSITORY

RL = {"grpo": (0.06, 0.02), "ppo": (0.1, 0.05), "spo": (0.1, 0.05)}  # least gain of the reward, and of exact match


@pytest.mark.slow
@pytest.mark.timeout(2400)
def test_every_stage_improves_what_it_is_for(demo):
    """The bounds leave room below the figures in benchmarks/README.md, for other seeds and machines."""
    report = json.loads((demo / "report.json").read_text())
    exact = {name: figures["all"]["exact_match"] for name, figures in report["exact_match"].items()}
    before = {stage["stage"]: stage["before"] for stage in report["stages"]}
    after = {stage["stage"]: stage["after"] for stage in report["stages"]}

    assert before["pretrain"]["eval_loss"] - after["pretrain"]["eval_loss"] > 5
    assert before["midtrain"]["eval_loss"] - after["midtrain"]["eval_loss"] > 0.7
    assert exact["untrained"] == 0 and exact["midtrain"] < 0.02
    assert exact["sft"] > 0.25
    assert min(exact["sft"], exact["sft from pretrain"]) - exact["sft from scratch"] > 0.12
    assert after["reward"]["eval_accuracy"] > 0.6 and after["dpo"]["eval_rewards/accuracies"] > 0.7
    assert exact["dpo"] - exact["sft"] > 0.03
    for stage, (reward, right) in RL.items():
        assert after[stage]["eval_reward"] - before[stage]["eval_reward"] > reward, stage
        assert exact[stage] - exact["dpo"] > right, stage
    assert exact["distill"] - exact["student alone"] > 0.08


@pytest.mark.slow
@pytest.mark.timeout(2400)
def test_the_report_can_be_read_and_measured_again(demo):
    report = json.loads((demo / "report.json").read_text())
    assert (demo / "report.png").stat().st_size > 0
    assert "exact match" in (demo / "report.md").read_text()
    rows = (REPOSITORY / "data_configs/tiny/data/sft_validation.jsonl").read_text().splitlines()
    answers = exact_match_by_skill(load_model(demo / "sft"), tiny_tokenizer(), map(json.loads, rows))
    kept = report["exact_match"]["sft"]
    assert {skill: answers[skill]["exact_match"] for skill in kept} == {
        skill: figures["exact_match"] for skill, figures in kept.items()
    }
