"""Options of SPOTrainer."""

import math
from collections.abc import Iterator
from dataclasses import dataclass, field

from .rollout_config import CLIPPED, UngroupedConfig, given_problems

_GLOBAL = {"rho_min": 0.5, "rho_max": 0.96, "beta": 0.02, "loss_type": "grpo"}
_PROMPT = {"rho_min": 0.875, "rho_max": 0.96, "beta": 0.0, "loss_type": "dapo"}


@dataclass
class SPOConfig(UngroupedConfig):
    """Single-stream policy optimization (arXiv 2509.13232): one completion per prompt, no group, no critic.

    `tracker="global"` is MiniMind's train_spo.py: one tracker, advantages within +-5 and not normalized, a KL to the
    reference in the loss. Options that are None take the tracker's default.

    `rho_divergence` measures how far the policy has moved since its last answer to a prompt, over that answer's tokens.
    "abs", the mean of |change of log-probability|, is that of the authors' code (verl, recipe/spo), whose half-life is
    0.06; "k3" is an unbiased estimate of the KL, which is much smaller and so keeps more of the past.

    `opponent="snapshot"` is self-play, as MiniMind's documents call it: the reward of a completion is 1, 1/2 or 0 if it
    beats, equals or loses to that of an earlier policy on the same prompt, by the same reward functions.

    Raises:
        InputError: values out of range.
    """

    tracker: str = field(default="prompt", metadata={"help": "prompt: one for each; global: one for all (MiniMind)."})
    reward_range: list[float] | None = field(
        default=None,
        metadata={"help": "Lowest and highest weighted reward. Default: the declared range of the functions."},
    )
    rho_min: float | None = field(
        default=None, metadata={"help": "Least share of history to keep; 0.875, 0.5 (global)."}
    )
    rho_max: float | None = field(default=None, metadata={"help": "Largest share of history to keep; 0.96."})
    rho_half_life: float = field(default=0.06, metadata={"help": "Divergence in nats at which half of it is kept."})
    rho_divergence: str = field(
        default="abs",
        metadata={"help": "abs: mean change of log-probability, as the authors; k3: the KL (tracker prompt)."},
    )
    init_rollouts: int = field(
        default=0, metadata={"help": "Answers to every prompt before training, to initialize its tracker."}
    )
    prioritized_sampling: bool = field(
        default=True, metadata={"help": "Draw prompts with mixed results more often (tracker prompt)."}
    )
    sampling_floor: float = field(default=0.05, metadata={"help": "Weight of a prompt whose reward never varies."})
    opponent: str | None = field(
        default=None, metadata={"help": "snapshot: rewards are wins against earlier policies."}
    )
    opponent_pool: int = field(default=4, metadata={"help": "Earlier policies to keep, including the first."})
    opponent_interval: int = field(default=50, metadata={"help": "Steps between two snapshots."})
    epsilon_high: float | None = field(
        default=None, metadata={"help": "Upper clip range of the ratio, 0.28; with cispo the cap of the ratio, 5."}
    )
    beta: float | None = field(
        default=None, metadata={"help": "Weight of the KL to the reference; 0, or 0.02 (global)."}
    )
    loss_type: str | None = field(default=None, metadata={"help": "TRL's loss: dapo, or grpo (global)."})

    def set_defaults(self) -> None:
        for name, value in (_GLOBAL if self.tracker == "global" else _PROMPT).items():
            if getattr(self, name) is None:
                setattr(self, name, value)
        if self.epsilon_high is None and self.loss_type in CLIPPED:
            self.epsilon_high = 0.28
        super().set_defaults()

    def method_problems(self) -> Iterator[str]:
        yield from super().method_problems()
        if self.num_generations != 1:
            yield f"--num_generations {self.num_generations}: SPO samples one completion per prompt"
        if self.tracker == "prompt" and self.prioritized_sampling:
            reason = "is for --prioritized_sampling false: else prompts are drawn"
            yield from given_problems(self, {"shuffle_dataset": reason})
        if not 0 < self.rho_min <= self.rho_max < 1:
            yield f"--rho_min {self.rho_min} --rho_max {self.rho_max}: 0 < rho_min <= rho_max < 1"
        if self.reward_range is not None and (
            len(self.reward_range) != 2
            or not all(map(math.isfinite, self.reward_range))
            or self.reward_range[0] >= self.reward_range[1]
        ):
            yield f"--reward_range {self.reward_range}: two numbers, the lower one first"
        if self.tracker == "global" and self.rho_divergence != "abs":
            yield "--rho_divergence is for --tracker prompt"
        if self.tracker == "global" and self.init_rollouts:
            yield "--init_rollouts is for --tracker prompt"
        if self.opponent and self.init_rollouts:
            yield "--init_rollouts is not for self-play, which starts where a win is as likely as a loss"
        if self.opponent and self.use_vllm:
            yield "--opponent snapshot generates with transformers: no --use_vllm"
