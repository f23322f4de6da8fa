"""The doctor of online RL: what it warns of, and what not."""

import math
from types import SimpleNamespace

import pytest
import torch

from minimind_trl.rewards import Reward
from minimind_trl.trainers import RLDoctor
from minimind_trl.trainers.advantages import explained_variance, value_moments
from tests.trainers.online import low_ids, online

FINE = {"loss": 0.0, "reward": 0.5, "reward_std": 0.5, "entropy": 1.0, "completions/mean_length": 9.0}


def warned(logs: list[dict], reward_range=None, earlier: list[dict] | None = None) -> dict[str, str]:
    """The warnings on these logs, after a resume if there are earlier ones."""
    doctor, args = RLDoctor(reward_range), SimpleNamespace(max_completion_length=16)
    history = [FINE | log for log in earlier or []]
    state = SimpleNamespace(global_step=1, is_world_process_zero=True, log_history=history)
    doctor.on_train_begin(args, state, None)
    known = set(doctor.said)
    for log in logs:
        doctor.on_log(args, state, None, logs=FINE | log)
    return {name: sentence for name, sentence in doctor.said.items() if name not in known}


def moments(values: torch.Tensor, returns: torch.Tensor, mask: torch.Tensor) -> dict[str, float]:
    return {name: part.double().sum().item() for name, part in value_moments(values, returns, mask).items()}


def test_explained_variance_by_hand_and_nan_where_there_is_nothing_to_explain():
    torch.manual_seed(0)
    mask, noise = torch.ones(64, 8), 0.01 * torch.randn(64, 8)
    solved = torch.ones(64, 8)
    assert math.isnan(explained_variance(**moments(0.99 + noise, solved, mask)))
    assert math.isnan(explained_variance(**moments(noise, solved * 0, mask)))
    assert math.isnan(explained_variance(**moments(noise * 0, solved * 0, mask * 0))), "every answer is masked"
    returns = torch.randn(64, 8)
    expected = 1 - (returns - noise).var(correction=0) / returns.var(correction=0)
    assert explained_variance(**moments(noise, returns, mask)) == pytest.approx(expected.item(), abs=1e-5)


@pytest.mark.parametrize(
    ("logs", "name"),
    [
        ([{"explained_variance": -0.2}] * 7, "dead critic"),
        ([{"frac_reward_zero_std": 0.9}] * 2, "equal rewards"),
        ([{}] * 3 + [{"entropy": 0.01}] * 2, "entropy collapse"),
        ([{}] * 3 + [{"completions/mean_length": 1.0}] * 2, "length collapse"),
        ([{"completions/clipped_ratio": 0.9}] * 2, "truncation"),
    ],
)
def test_what_is_a_fault_is_none_where_the_reward_is_as_high_as_it_can_be(logs, name):
    assert set(warned(logs, reward_range=(0.0, 1.0))) == {name}
    at_the_top = [log | {"reward": 0.97} for log in logs]
    assert warned(at_the_top, reward_range=(0.0, 1.0)) == {}
    assert set(warned(at_the_top, reward_range=(0.0, 5.0))) == {name}


def test_a_reward_at_the_top_may_still_be_hacked():
    logs = [{"kl_ref": 4.0, "reward": 3.0}] * 2
    assert set(warned(logs, reward_range=(-3.0, 3.0))) == {"KL blow-up"}


@pytest.mark.parametrize("name", ["frac_reward_zero_std", "completions/clipped_ratio", "kl_ref", "explained_variance"])
def test_one_noisy_value_convinces_nobody(name):
    noisy, usual = (-10_302.0, 0.8) if name == "explained_variance" else (9.0, 0.1)
    logs = [{name: usual}] * 7 + [{name: noisy}] + [{name: usual}] * 7
    assert warned(logs) == {}


def test_a_critic_is_not_blamed_where_rewards_hardly_differ_any_more():
    logs = [{"explained_variance": 0.5}] * 4 + [{"explained_variance": -3.0, "reward_std": 0.01}] * 9
    assert warned(logs) == {}
    assert set(warned(logs[:4] + [{"explained_variance": -3.0}] * 9)) == {"dead critic"}


def test_missing_and_non_finite_figures_are_ignored():
    assert warned([{"explained_variance": None, "entropy": float("nan"), "reward_std": float("nan")}] * 9) == {}


def test_after_a_resume_it_knows_what_was_normal_and_what_was_said():
    collapsed = [{"entropy": 0.01}] * 4
    assert warned(collapsed, earlier=[{}] * 5).keys() == {"entropy collapse"}
    assert warned(collapsed) == {}, "without the logs before, this is normal"
    assert warned(collapsed, earlier=[{}] * 5 + collapsed) == {}


def test_a_trainer_gives_its_doctor_the_range_of_the_rewards(tmp_path):
    trainer, doctor, own = online("grpo", tmp_path, reward=Reward(low_ids, "low", -1, 2)), RLDoctor(), RLDoctor((0, 9))
    trainer.add_callback(doctor)
    trainer.add_callback(own)
    assert doctor.reward_range == (-1, 2) and own.reward_range == (0, 9)
