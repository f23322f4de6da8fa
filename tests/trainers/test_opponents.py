"""The pool of earlier policies, and who wins."""

import math

import torch

from minimind_trl.trainers.opponents import OpponentPool, wins_over
from tests.trainers.online import bandit_model


def test_a_pool_keeps_the_first_policy_and_the_latest():
    policy = bandit_model()
    first = policy.lm_head.weight.detach().clone()
    pool = OpponentPool(policy, size=3)
    for step in range(1, 5):
        policy.lm_head.weight.data += 1
        pool.add(policy, step)
    assert [step for step, _ in pool.snapshots] == [0, 3, 4]
    torch.testing.assert_close(pool.load_snapshot(1).lm_head.weight.data, first + 3)
    assert torch.equal(pool.load_snapshot(0).lm_head.weight.data, first)


def test_a_pool_of_one_keeps_the_first():
    pool = OpponentPool(bandit_model(), size=1)
    pool.add(bandit_model(seed=1), step=9)
    assert [step for step, _ in pool.snapshots] == [0]


def test_a_win_a_draw_a_loss_and_no_game():
    wins = wins_over(theirs=torch.tensor([0.2, 0.5, 0.9, 0.5]), ours=torch.tensor([0.5, 0.5, 0.5, math.nan]))
    torch.testing.assert_close(wins, torch.tensor([1.0, 0.5, 0.0, math.nan]), equal_nan=True)
