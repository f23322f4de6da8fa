"""GRPO, PPO and SPO, run as a user runs them."""

import math

import pytest

from tests.recipes.launching import QUICK, TRAINING_FIGURES, offline_wandb, run, wandb_history

# of the online recipes: small rollouts, one answer to a held-out prompt, a reward that such a start gets now and then
ONLINE = {
    recipe: {
        "reward_funcs": "tests.recipes.own_rewards:vowels",
        "per_device_train_batch_size": 16,
        "max_completion_length": 8,
        "num_generations_eval": 1,
    }
    for recipe in ("grpo", "ppo", "spo")
}


@pytest.mark.parametrize(
    ("recipe", "training"),
    [
        ("grpo", ["policy_loss", "frac_reward_zero_std"]),
        ("ppo", ["actor_loss", "critic_loss", "kl_ref", "approx_kl", "actor_lr", "critic_lr", "critic_grad_norm"]),
        ("spo", ["policy_loss", "rho", "baseline", "baseline_brier", "effective_prompts"]),
    ],
)
def test_every_online_recipe_trains_measures_and_reports(pretrained, tmp_path, recipe, training):
    """The reward is seen before, during and after; the folder has all it should; WandB got every figure."""
    options = QUICK | ONLINE[recipe] | {"max_steps": 6, "eval_interval": 3, "from_weight": pretrained}
    options |= {"output_dir": tmp_path / recipe, "logging_steps": 2, "use_wandb": True}
    metrics = run(recipe, "tiny", environment=offline_wandb(tmp_path), **options)
    held_out = ["reward", "rewards/vowels", "policy_loss", "entropy", "eos_rate", "completion_length"]
    held_out += ["kl", "value_loss", "explained_variance"] if recipe == "ppo" else []
    for name in held_out:
        assert all(math.isfinite(metrics[when][f"eval_{name}"]) for when in ("before", "after")), name
    files = ["model.safetensors", "mixture.lock.json", "recipe.json", "curves.png", "README.md", "tokenizer.json"]
    for file in files + (["critic/model.safetensors"] if recipe == "ppo" else []):
        assert (tmp_path / recipe / file).stat().st_size > 0
    card = (tmp_path / recipe / "README.md").read_text()
    assert f"# Model Card for {recipe}" in card and "[None]" not in card and f"trained with {recipe.upper()}" in card
    seen = wandb_history(tmp_path)
    wanted = ["reward", "num_tokens_generated", *training]
    for name in (*TRAINING_FIGURES, *(f"train/{name}" for name in wanted), *(f"eval/{name}" for name in held_out)):
        assert len(seen.get(name, [])) >= 2, (name, sorted(seen))
        assert all(math.isfinite(value) for value in seen[name]), name
