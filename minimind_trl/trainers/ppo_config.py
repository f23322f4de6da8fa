"""Options of PPOTrainer, with the names of TRL's last PPOConfig."""

from collections.abc import Iterator
from dataclasses import dataclass, field

from .rollout_config import CLIPPED, UngroupedConfig, given_problems

_REFUSED = {
    "num_iterations": "is set by --num_ppo_epochs",
    "steps_per_generation": "is set by --num_mini_batches",
    "generation_batch_size": "is set by --num_mini_batches",
    "epsilon": "is set by --cliprange",
    "beta": "is set by --kl_coef",
    "sync_ref_model": "is not for this method: the reference stays where the policy started",
    "use_bias_correction_kl": "is not for this method: the KL is in the reward, not in the loss",
}


@dataclass
class PPOConfig(UngroupedConfig):
    """Proximal policy optimization (Schulman et al., arXiv 1707.06347) for language models (arXiv 1909.08593).

    A rollout has `per_device_train_batch_size * gradient_accumulation_steps * num_mini_batches` completions in each
    process. Every minibatch is one optimizer step; each of the `num_ppo_epochs` epochs draws the minibatches anew.
    `num_generations` answers to each prompt make a rollout of fewer prompts. `max_grad_norm` applies to the gradients
    of actor and critic each.

    Raises:
        InputError: values out of range, GRPO's names for PPO's options, or `load_best_model_at_end`.
    """

    num_ppo_epochs: int = field(default=4, metadata={"help": "Epochs over each rollout."})
    num_mini_batches: int = field(default=1, metadata={"help": "Optimizer steps of an epoch over a rollout."})
    kl_coef: float = field(default=0.05, metadata={"help": "Weight of the KL to the reference in the rewards."})
    kl_estimator: str = field(
        default="k1", metadata={"help": "k1: log(p/ref), unbiased; k3: ref/p - 1 - log(ref/p), never negative."}
    )
    cliprange: float = field(default=0.2, metadata={"help": "Clip range of the probability ratio."})
    cliprange_value: float = field(default=0.2, metadata={"help": "Clip range of a value around the rollout's."})
    vf_coef: float = field(default=0.1, metadata={"help": "Weight of the value loss."})
    gamma: float = field(default=1.0, metadata={"help": "Discount per token."})
    lam: float = field(default=0.95, metadata={"help": "Lambda of generalized advantage estimation."})
    whiten_rewards: bool = field(default=False, metadata={"help": "Scale token rewards to variance 1."})
    whiten_advantages: bool = field(default=True, metadata={"help": "Scale advantages to mean 0 and variance 1."})
    missing_eos_penalty: float | None = field(
        default=None, metadata={"help": "Subtracted from the reward of a completion without an end-of-sequence token."}
    )
    target_kl: float | None = field(
        default=None,
        metadata={"help": "Skip the other steps on a rollout once the policy is this far (approximate KL) from it."},
    )
    critic_learning_rate: float | None = field(default=None, metadata={"help": "Default: ten times learning_rate."})
    critic_model: str | None = field(
        default=None, metadata={"help": "Reward model or saved critic to start the critic from. Default: the policy."}
    )
    loss_type: str = field(default="dapo", metadata={"help": "TRL's loss; dapo averages over all tokens of a step."})

    def set_derived(self) -> None:
        self.num_iterations = self.num_ppo_epochs
        self.steps_per_generation = self.gradient_accumulation_steps * self.num_mini_batches
        self.epsilon, self.beta = self.cliprange, self.kl_coef

    def method_problems(self) -> Iterator[str]:
        yield from super().method_problems()
        if self.loss_type in CLIPPED:
            range_of_ratio = {"epsilon_high": "is set by --cliprange"}
        else:
            range_of_ratio = {"cliprange": f"is for --loss_type {' or '.join(CLIPPED)}"}
        yield from given_problems(self, _REFUSED | range_of_ratio)
        if self.load_best_model_at_end:
            yield "--load_best_model_at_end would not load the critic: load the checkpoint yourself"
