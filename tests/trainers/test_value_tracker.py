"""SPO's trackers against hand-computed values."""

import pytest
import torch

from minimind_trl.trainers.value_tracker import GlobalTracker, PromptTracker, forgetting


def test_half_is_kept_at_the_half_life_within_bounds():
    divergences = torch.tensor([0.0, 0.06, 0.12, 9.0], dtype=torch.float64)
    assert forgetting(divergences, 0.06, 0.0, 1.0).tolist() == pytest.approx([1, 0.5, 0.25, 0], abs=1e-9)
    assert forgetting(divergences, 0.06, 0.875, 0.96).tolist() == [0.96, 0.875, 0.875, 0.875]


def test_a_prompt_s_baseline_is_of_before_the_update():
    tracker = PromptTracker(3, prior=4)
    prompts = torch.tensor([1])
    assert tracker.baselines(prompts).item() == 0.5
    rho = tracker.update(prompts, torch.tensor([1.0]), torch.tensor([0.0]))
    # a = 0.96 * 4 + 1, b = 0.96 * 4
    assert rho.item() == 0.96 and tracker.baselines(prompts).item() == pytest.approx(4.84 / 8.68)
    tracker.update(prompts, torch.tensor([0.25]), torch.tensor([1.0]))
    assert tracker.a[1].item() == pytest.approx(0.875 * 4.84 + 0.25)
    assert tracker.b[1].item() == pytest.approx(0.875 * 3.84 + 0.75)
    assert tracker.baselines(torch.tensor([0, 2])).tolist() == [0.5, 0.5]


def test_answers_before_training_tell_where_a_prompt_stands():
    tracker = PromptTracker(2)
    tracker.initialize(torch.tensor([[1.0, 1.0, 1.0], [0.0, 1.0, 0.0]]))
    assert tracker.a.tolist() == pytest.approx([8 * 3.5 / 4, 8 * 1.5 / 4])
    assert (tracker.a + tracker.b).tolist() == pytest.approx([8, 8])


def test_prompts_that_are_sometimes_right_are_drawn_more_often():
    tracker = PromptTracker(2)
    tracker.a, tracker.b = torch.tensor([4.0, 8.0]).double(), torch.tensor([4.0, 0.0]).double()
    assert tracker.weights(0.05).tolist() == pytest.approx([0.55, 0.05])


def test_without_answers_beforehand_a_prompt_starts_where_the_authors_start_it():
    """verl, recipe/spo: a = b = 1/2, so that a first reward of 1 lifts v to (0.96 / 2 + 1) / (0.96 + 1)."""
    tracker, prompt = PromptTracker(1), torch.tensor([0])
    assert tracker.baselines(prompt).item() == 0.5
    tracker.update(prompt, torch.tensor([1.0]), torch.tensor([0.0]))
    assert tracker.baselines(prompt).item() == pytest.approx(1.48 / 1.96)


def test_the_state_comes_back():
    tracker, other = PromptTracker(2), PromptTracker(2)
    tracker.update(torch.tensor([0]), torch.tensor([1.0]), torch.tensor([0.0]))
    other.load(tracker.state())
    assert other.baselines(torch.arange(2)).tolist() == tracker.baselines(torch.arange(2)).tolist()


def test_the_global_tracker_is_minimind_s():
    """N_init = 2; rho is 0.9 at first, then 2^(-|change of the mean log-probability| / 0.06) within [0.5, 0.96]."""
    tracker = GlobalTracker()
    assert tracker.baseline() == 0.5
    assert tracker.update(0.75, mean_logp=-1.0) == 0.9
    assert tracker.baseline() == pytest.approx((0.9 + 0.75) / 2.8)
    assert tracker.update(0.75, mean_logp=-1.03) == pytest.approx(2**-0.5)
    assert tracker.update(0.75, mean_logp=-1.03) == 0.96
    assert tracker.update(0.75, mean_logp=-3.0) == 0.5
    other = GlobalTracker()
    other.load(tracker.state())
    assert other.update(0.1, -3.0) == tracker.update(0.1, -3.0) and other.baseline() == tracker.baseline()
