"""Settings of PPOTrainer, under the names of TRL's last PPOConfig."""

from dataclasses import dataclass, field

from ..errors import InputError
from .rollout_config import CLIPPED, SingleRolloutConfig, refuse_given

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
class PPOConfig(SingleRolloutConfig):
    """Proximal policy optimisation (Schulman et al., arXiv 1707.06347) for language models (arXiv 1909.08593).

    A rollout has `per_device_train_batch_size * gradient_accumulation_steps * num_mini_batches` completions in each
    process. Each of its minibatches is a step of the optimizer, and `num_ppo_epochs` times all of them are taken, drawn
    anew each time.

    `max_grad_norm` is for the gradients of actor and critic each.

    Raises:
        InputError: values out of range, GRPO's names for what PPO calls otherwise, or `load_best_model_at_end`.
    """

    num_ppo_epochs: int = field(default=4, metadata={"help": "How often a rollout is trained on."})
    num_mini_batches: int = field(default=1, metadata={"help": "Optimizer steps that one epoch over a rollout takes."})
    kl_coef: float = field(default=0.05, metadata={"help": "Weight of the KL to the reference, in the reward."})
    kl_estimator: str = field(
        default="k1", metadata={"help": "k1: log(p/ref), unbiased; k3: ref/p - 1 - log(ref/p), never negative."}
    )
    cliprange: float = field(default=0.2, metadata={"help": "Clip range of the probability ratio."})
    cliprange_value: float = field(default=0.2, metadata={"help": "How far a value may move from the rollout's."})
    vf_coef: float = field(default=0.1, metadata={"help": "Weight of the value loss."})
    gamma: float = field(default=1.0, metadata={"help": "Discount per token."})
    lam: float = field(default=0.95, metadata={"help": "Lambda of the generalised advantage estimation."})
    whiten_rewards: bool = field(default=False, metadata={"help": "Scale token rewards to variance 1."})
    whiten_advantages: bool = field(default=True, metadata={"help": "Scale advantages to mean 0 and variance 1."})
    missing_eos_penalty: float | None = field(
        default=None, metadata={"help": "Taken from the reward of a completion that does not end by itself."}
    )
    target_kl: float | None = field(
        default=None,
        metadata={"help": "No more steps on a rollout once the policy is this far (approximate KL) from it."},
    )
    critic_learning_rate: float | None = field(default=None, metadata={"help": "Default: ten times learning_rate."})
    critic_model: str | None = field(
        default=None, metadata={"help": "Reward model, or saved critic, to start the critic from. Default: the policy."}
    )
    loss_type: str = field(default="dapo", metadata={"help": "How TRL averages over tokens; dapo: over all of a step."})

    def __post_init__(self):
        if self.loss_type in CLIPPED:
            range_problem = {"epsilon_high": "is set by --cliprange"}
        else:
            range_problem = {"cliprange": f"is for --loss_type {' or '.join(CLIPPED)}"}
        refuse_given(self, _REFUSED | range_problem)
        at_least = {"num_ppo_epochs": 1, "num_mini_batches": 1, "kl_coef": 0, "vf_coef": 0}
        problems = [
            f"--{name} {getattr(self, name)}: at least {low}"
            for name, low in at_least.items()
            if getattr(self, name) < low
        ]
        problems += [
            f"--{name} {getattr(self, name)}: between 0 and 1"
            for name in ("gamma", "lam")
            if not 0 <= getattr(self, name) <= 1
        ]
        problems += [
            f"--{name} {getattr(self, name)}: more than 0"
            for name in ("cliprange", "cliprange_value")
            if getattr(self, name) <= 0
        ]
        if self.kl_estimator not in ("k1", "k3"):
            problems.append(f"--kl_estimator {self.kl_estimator!r}: k1 or k3")
        if self.target_kl is not None and self.target_kl <= 0:
            problems.append(f"--target_kl {self.target_kl}: more than 0")
        if self.critic_learning_rate is not None and self.critic_learning_rate < 0:
            problems.append(f"--critic_learning_rate {self.critic_learning_rate}: at least 0")
        if self.load_best_model_at_end:
            problems.append("--load_best_model_at_end would not bring the critic back: load the checkpoint yourself")
        if problems:
            raise InputError("\n".join(problems))
        self.num_iterations = self.num_ppo_epochs
        self.steps_per_generation = self.gradient_accumulation_steps * self.num_mini_batches
        self.epsilon, self.beta = self.cliprange, self.kl_coef
        super().__post_init__()
