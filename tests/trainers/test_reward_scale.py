"""Weighted sums of rewards on a scale from 0 to 1."""

import math

import pytest
import torch

from minimind_trl.errors import InputError
from minimind_trl.rewards import Reward
from minimind_trl.trainers.reward_scale import RewardScale


def scale(*ranges: tuple[float, float], weights: list[float] | None = None, given: list[float] | None = None):
    functions = [Reward(print, f"r{n}", low, high) for n, (low, high) in enumerate(ranges)]
    names = [function.__name__ for function in functions]
    return RewardScale(functions, names, torch.tensor(weights or [1.0] * len(ranges)), given)


@pytest.mark.parametrize(("low", "high"), [(-3.0, 4.5), (-4.75, 4.75)])  # MiniMind's own mixes
def test_rewards_have_the_range_that_they_declare(low, high):
    assert scale((low, high)).range == (low, high)
    normalized = scale((low, high)).normalize(torch.tensor([[low], [high], [(low + high) / 2]]))
    assert normalized.tolist() == pytest.approx([0, 1, 0.5])


def test_a_given_range_must_hold_all_that_is_declared():
    message = r"--reward_range -3 3: the rewards may be as low as -4.75 and as high as 4.75"
    with pytest.raises(InputError, match=message):
        scale((-4.75, 4.75), given=[-3.0, 3.0])
    assert scale((-1.0, 1.0), given=[-3.0, 3.0]).range == (-3.0, 3.0)


def test_a_range_that_is_not_declared_is_asked_for():
    with pytest.raises(InputError, match="the range of reward r1 is not known: give --reward_range"):
        scale((0, 1), (-math.inf, math.inf))
    with pytest.raises(InputError, match="all rewards are 2: nothing to learn from"):
        scale((2, 2))


def test_a_reward_outside_of_a_given_range_is_an_error():
    undeclared = scale((-math.inf, math.inf), given=[0.0, 0.1])
    with pytest.raises(InputError, match=r"the reward 0.5 \(r0 0.5\) is outside --reward_range 0 0.1: widen it"):
        undeclared.normalize(torch.tensor([[0.05], [0.5]]))


def test_the_range_of_a_sum_is_that_of_the_functions_that_gave_a_reward():
    """From -3 to -1 and from 0 to 2: without the first, a half is half of the best and not out of range."""
    both = scale((-3, -1), (0, 1), weights=[1.0, 2.0])
    assert both.range == (-3, 1)
    rewards = torch.tensor([[-1.0, 1.0], [-3.0, 0.0], [math.nan, 0.5], [-2.0, math.nan], [math.nan, math.nan]])
    torch.testing.assert_close(both.normalize(rewards), torch.tensor([1, 0, 0.5, 0.5, math.nan]), equal_nan=True)
