"""The losses of GRPOTrainer, with the advantages of each method."""

import pytest
import torch

from minimind_trl.trainers import PPOConfig, RolloutConfig, SPOConfig
from tests.trainers.online import METHODS, bounded, first_rollout, online


def uneven(trainer) -> None:
    """Answers of 1, 2, 3, ... tokens, so that a mean over tokens is not one over answers."""
    inner = trainer.generate_completions
    trainer.generate_completions = lambda prompt_ids: [
        ids[: 1 + place % len(ids)] for place, ids in enumerate(inner(prompt_ids))
    ]


WEIGHTS = {  # of a token's `advantage * log-probability` in the loss, given the mask
    **dict.fromkeys(("dapo", "bnpo", "cispo", "vespo"), lambda mask: mask / mask.sum()),
    **dict.fromkeys(("grpo", "sapo"), lambda mask: mask / mask.sum(1, keepdim=True) / len(mask)),
    "dr_grpo": lambda mask: mask / len(mask) / 5,
    "luspo": lambda mask: mask / len(mask),
}


@pytest.mark.parametrize("loss_type", list(WEIGHTS))
@pytest.mark.parametrize("method", METHODS)
def test_on_policy_every_loss_has_the_gradient_of_the_policy(tmp_path, method, loss_type):
    """At ratio 1 nothing is clipped, capped or damped."""
    own = {"num_ppo_epochs": 1, "vf_coef": 0.0} if method == "ppo" else {}
    trainer = online(method, tmp_path, reward=bounded(), loss_type=loss_type, max_completion_length=5, **own)
    uneven(trainer)
    _, inputs = first_rollout(trainer)
    mask, advantages = inputs["completion_mask"], inputs["advantages"]
    assert set(mask.sum(1).tolist()) == {1, 2, 3, 4, 5}
    policy = [parameter for name, parameter in trainer.model.named_parameters() if not name.startswith("critic.")]
    logps, _ = trainer.logps_of(trainer.model, inputs)
    weighed = WEIGHTS[loss_type](mask) * (advantages if advantages.dim() == 2 else advantages[:, None])
    expected = torch.autograd.grad(-(weighed * logps).sum(), policy)
    given = torch.autograd.grad(trainer.compute_loss(trainer.model, inputs), policy)
    for one, other in zip(given, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize(("config", "clips"), [(RolloutConfig, None), (SPOConfig, 0.28), (PPOConfig, None)])
def test_cispo_caps_the_ratio_at_5_by_default(tmp_path, config, clips):
    common = {"output_dir": str(tmp_path), "use_cpu": True, "bf16": False}
    assert config(**common).epsilon_high == clips
    assert config(**common, loss_type="cispo").epsilon_high == 5
    assert config(**common, loss_type="cispo", epsilon_high=2.0).epsilon_high == 2
