"""The doctor's rules: what they find, and what they leave alone."""

from pathlib import Path

import pytest

from minimind_trl.reports import RunFolder, examine

FINE = {"loss": 0.0, "reward": 0.5, "reward_std": 0.5, "entropy": 1.0, "completions/mean_length": 9.0}
TRAINERS = {"grpo": "MiniMindGRPOTrainer", "ppo": "PPOTrainer", "spo": "SPOTrainer", "sft": "MiniMindSFTTrainer"}


def found(logs: list[dict], method: str = "grpo", **record) -> list[str]:
    """The names of the findings, most important first."""
    record = {"trainer": TRAINERS[method], "options": {"max_completion_length": 16}} | record
    return [finding.name for finding in examine(RunFolder(Path(), record, [FINE | log for log in logs]))]


@pytest.mark.parametrize(
    ("logs", "name"),
    [
        ([{"explained_variance": -0.2}] * 7, "dead critic"),
        ([{"frac_reward_zero_std": 0.9}] * 2, "reward without spread"),
        ([{}] * 3 + [{"entropy": 0.01}] * 2, "entropy collapse"),
        ([{}] * 3 + [{"completions/mean_length": 1.0}] * 2, "length collapse"),
        ([{"completions/clipped_ratio": 0.9}] * 2, "truncation"),
    ],
)
def test_what_is_a_fault_is_none_where_the_reward_is_as_high_as_it_can_be(logs, name):
    assert found(logs, reward_range=[0.0, 1.0]) == [name]
    at_the_top = [log | {"reward": 0.97} for log in logs]
    assert found(at_the_top, reward_range=[0.0, 1.0]) == []
    assert found(at_the_top, reward_range=[0.0, 5.0]) == found(at_the_top, reward_range=[None, None]) == [name]


def test_a_reward_at_the_top_may_still_be_hacked():
    assert found([{"kl": 4.0, "reward": 3.0}] * 2, reward_range=[-3.0, 3.0]) == ["KL blow-up"]


@pytest.mark.parametrize("name", ["frac_reward_zero_std", "completions/clipped_ratio", "kl", "explained_variance"])
def test_one_noisy_value_convinces_nobody(name):
    noisy, usual = (-10_302.0, 0.8) if name == "explained_variance" else (9.0, 0.1)
    assert found([{name: usual}] * 7 + [{name: noisy}]) == []


def test_a_critic_is_not_blamed_where_rewards_hardly_differ_any_more():
    logs = [{"explained_variance": 0.5}] * 4 + [{"explained_variance": -3.0, "reward_std": 0.01}] * 9
    assert found(logs) == []
    assert found(logs[:4] + [{"explained_variance": -3.0}] * 9) == ["dead critic"]


def test_missing_and_non_finite_figures_are_ignored():
    assert found([{"explained_variance": None, "entropy": float("nan"), "reward_std": float("nan")}] * 9) == []


def test_the_kl_of_ppo_is_that_to_its_reference():
    assert found([{"kl": 3.0}] * 3, method="ppo") == []
    assert found([{"kl_ref": 3.0}] * 3, method="ppo") == ["KL blow-up"]
