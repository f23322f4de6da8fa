"""PPO: its critic, its minibatches, its figures."""

import math

import pytest
import torch
from torch import nn
from transformers import TrainerCallback

from minimind_trl.errors import InputError
from minimind_trl.models import MiniMindForSequenceClassification, MiniMindForTokenClassification
from minimind_trl.run.online_configs import PPORecipeConfig
from minimind_trl.trainers.advantages import generalized_advantages, whiten
from tests.trainers.online import bandit_model, equal, moved, online, weights


def test_the_critic_is_saved_beside_the_policy_and_loads(tmp_path):
    trainer = online("ppo", tmp_path / "run")
    trainer.train()
    trainer.save_model()
    critic = MiniMindForTokenClassification.from_pretrained(tmp_path / "run" / "critic")
    assert equal(critic.state_dict(), trainer.critic.state_dict())
    model = bandit_model().from_pretrained(tmp_path / "run")
    assert not [name for name in model.state_dict() if "critic" in name]
    policy = {name: tensor for name, tensor in weights(trainer).items() if not name.startswith("critic.")}
    assert equal(model.state_dict(), policy)
    again = online("ppo", tmp_path / "again", model=model, critic_model=str(tmp_path / "run" / "critic"))
    assert equal(again.critic.state_dict(), trainer.critic.state_dict())


def test_the_critic_starts_from_a_reward_model(tmp_path):
    config = bandit_model().config
    config.num_labels = 1
    judge = MiniMindForSequenceClassification(config)
    judge.save_pretrained(tmp_path / "judge")
    critic = online("ppo", tmp_path / "run", critic_model=str(tmp_path / "judge")).critic
    assert equal(critic.model.state_dict(), judge.model.state_dict())
    assert torch.equal(critic.score.weight, judge.score.weight)


def test_a_critic_of_other_tokens_or_without_values_is_refused(tmp_path):
    bandit_model().save_pretrained(tmp_path / "words")
    with pytest.raises(InputError, match="is a MiniMindForCausalLM; give a reward model"):
        online("ppo", tmp_path / "run", critic_model=str(tmp_path / "words"))


def test_the_critic_has_its_own_learning_rate(tmp_path):
    trainer = online("ppo", tmp_path, learning_rate=1e-4, critic_learning_rate=1e-2)
    trainer.create_optimizer()
    critic = {id(parameter) for parameter in trainer.critic.parameters()}
    for group in trainer.optimizer.param_groups:
        for parameter in group["params"]:
            assert group["lr"] == (1e-2 if id(parameter) in critic else 1e-4)
    counted = sum(len(group["params"]) for group in trainer.optimizer.param_groups)
    assert counted == len(list(trainer.model.parameters()))


def test_far_from_its_rollout_the_policy_takes_no_more_steps(tmp_path):
    options = {"num_ppo_epochs": 4, "learning_rate": 3e-2, "max_steps": 4}
    free = online("ppo", tmp_path / "free", **options)
    free.train()
    held = online("ppo", tmp_path / "held", **options, target_kl=1e-4)
    held.train()
    skipped = [log["skipped_steps"] for log in held.state.log_history if "skipped_steps" in log]
    assert skipped[0] == 0 and sum(skipped) >= 2
    shifts = [[log["approx_kl"] for log in t.state.log_history if "approx_kl" in log][-1] for t in (held, free)]
    assert shifts[0] < shifts[1]


def test_a_completion_that_does_not_end_pays(tmp_path):
    trainer = online("ppo", tmp_path, missing_eos_penalty=1.0)
    trainer.model.train()
    rewards = []
    token_rewards = trainer.token_rewards
    trainer.token_rewards = lambda rollout: rewards.append((rollout, token_rewards(rollout))) or rewards[-1][1]
    trainer.prepare_inputs(next(iter(trainer.get_train_dataloader())))
    rollout, given = rewards[0]
    expected = rollout.rewards - (~rollout.ended).float()
    torch.testing.assert_close(given.sum(1), expected)
    last = rollout.mask.sum(1) - 1
    torch.testing.assert_close(given.gather(1, last[:, None])[:, 0], expected)


def test_the_value_loss_does_not_depend_on_the_batches(tmp_path):
    found = []
    for size in (1, 2, 4, 6):
        options = {"kl_coef": 0.1, "whiten_rewards": True, "gamma": 0.9, "per_device_eval_batch_size": size}
        trainer = online("ppo", tmp_path / str(size), **options)
        with torch.no_grad():
            trainer.critic.score.weight.normal_(0, 0.2, generator=torch.Generator().manual_seed(1))
        moved(trainer)
        figures = trainer.evaluate()
        found.append((figures["eval_value_loss"], figures["eval_explained_variance"]))
    for other in found[1:]:
        assert other == pytest.approx(found[0], rel=1e-3)
    # and it is that of rewards that are whitened together
    kept = {}
    trainer.token_rewards = lambda rollout, inner=trainer.token_rewards: kept.setdefault(
        "rewards", (rollout, inner(rollout))
    )[1]
    trainer.evaluate()
    rollout, rewards = kept["rewards"]
    rewards = whiten(rewards, rollout.mask, lambda total: total, shift_mean=False)
    with torch.no_grad():
        values = trainer.rollout_values(rollout.tensors) * rollout.mask
    _, returns = generalized_advantages(rewards, values, rollout.mask, 0.9, 1.0)
    expected = 0.5 * ((values - returns) ** 2).sum() / rollout.mask.sum()
    assert found[-1][0] == pytest.approx(expected.item(), rel=1e-3)


def test_a_kl_to_the_reference_is_logged_if_there_is_one(tmp_path):
    for coefficient in (0.0, 0.1):
        trainer = online("ppo", tmp_path / str(coefficient), kl_coef=coefficient, max_steps=1)
        trainer.train()
        assert any("kl_ref" in log for log in trainer.state.log_history) == bool(coefficient)


def test_each_epoch_of_ppo_draws_its_minibatches_anew(tmp_path):
    trainer = online("ppo", tmp_path, num_ppo_epochs=3, num_mini_batches=2, max_steps=6, per_device_train_batch_size=8)
    seen, inner = [], trainer.prepare_inputs

    def spy(asked):
        inputs = inner(asked)
        seen.append({tuple(ids) for ids in inputs["completion_ids"].tolist()})
        rows = map(tuple, inputs["completion_ids"].tolist())
        kept = dict(zip(rows, inputs["old_values"], strict=True))
        same.update({ids: same.get(ids, values) for ids, values in kept.items()})
        assert all(torch.equal(same[ids], values) for ids, values in kept.items()), "a row keeps its figures"
        return inputs

    same = {}
    trainer.prepare_inputs = spy
    trainer.train()
    epochs = [seen[start : start + 2] for start in (0, 2, 4)]
    assert epochs[0][0] | epochs[0][1] == epochs[1][0] | epochs[1][1] == epochs[2][0] | epochs[2][1]
    assert all(len(first | second) == 16 for first, second in epochs)
    assert len({frozenset(first) for first, _ in epochs}) == 3


@pytest.mark.parametrize("largest", [0.01, 0.0])
def test_actor_and_critic_are_clipped_apart(tmp_path, largest):
    trainer = online("ppo", tmp_path, max_grad_norm=largest, max_steps=1, vf_coef=50.0)
    norms = []

    class Look(TrainerCallback):
        def on_pre_optimizer_step(self, args, state, control, **kwargs):
            for parameters in trainer.trained_parameters().values():
                norms.append(nn.utils.get_total_norm([one.grad for one in parameters if one.grad is not None]).item())

    trainer.add_callback(Look())
    trainer.train()
    [log] = [log for log in trainer.state.log_history if "grad_norm" in log]
    before = [log["actor_grad_norm"], log["critic_grad_norm"]]
    assert before[0] > 0.02 and before[1] > 10 * before[0]
    assert norms == pytest.approx([largest, largest] if largest else before, rel=1e-3)
    assert log["grad_norm"] == pytest.approx(math.hypot(*before), rel=1e-4)


def test_a_critic_learns_ten_times_as_fast_by_default(tmp_path):
    assert online("ppo", tmp_path, critic_learning_rate=1e-5).args.critic_learning_rate == 1e-5
    recipe = PPORecipeConfig(output_dir=str(tmp_path), use_cpu=True, bf16=False)
    assert recipe.critic_learning_rate is None, "the recipe sets its own learning rate later"
    trainer = online("ppo", tmp_path, critic_learning_rate=None, learning_rate=1e-3, max_steps=1)
    trainer.train()
    [log] = [log for log in trainer.state.log_history if "critic_lr" in log]
    assert log["critic_lr"] == pytest.approx(1e-2) and log["actor_lr"] == pytest.approx(1e-3)
