"""Options that all online trainers share."""

from dataclasses import dataclass, field
from typing import Literal

from trl import GRPOConfig

from ..errors import InputError, nearest

# TRL refuses unknown values only when it computes the first loss.
_KNOWN = {
    "loss_type": ("grpo", "bnpo", "dr_grpo", "dapo", "cispo", "sapo", "luspo", "vespo"),
    "importance_sampling_level": ("token", "sequence"),
}
_NOT_FOR_THIS = "is not for this method"
_NO_EFFECT = {
    "use_transformers_continuous_batching": f"{_NOT_FOR_THIS}: it leaves the model in training mode",
    "use_transformers_paged": f"{_NOT_FOR_THIS}: it leaves the model in training mode",
    "label_smoothing_factor": f"{_NOT_FOR_THIS}: there are no labels",
    "data_seed": f"{_NOT_FOR_THIS}: prompts are shuffled with --seed",
    "train_sampling_strategy": f"{_NOT_FOR_THIS}: prompts are shuffled, or not with --shuffle_dataset false",
    "length_column_name": f"{_NOT_FOR_THIS}: prompts are not sorted by length",
}
CLIPPED = ("grpo", "bnpo", "dr_grpo", "dapo", "luspo")  # losses that clip the ratio on both sides
_FOR_LOSSES = {
    "epsilon": CLIPPED,
    "epsilon_high": (*CLIPPED, "cispo"),
    "delta": CLIPPED,
    "importance_sampling_level": tuple(loss for loss in _KNOWN["loss_type"] if loss != "vespo"),
    **dict.fromkeys(("sapo_temperature_pos", "sapo_temperature_neg"), ("sapo",)),
    **dict.fromkeys(("vespo_k_pos", "vespo_lambda_pos", "vespo_k_neg", "vespo_lambda_neg"), ("vespo",)),
}
_NEEDS = {
    **dict.fromkeys(("ref_model_mixup_alpha", "ref_model_sync_steps"), "sync_ref_model"),
    **dict.fromkeys(
        ("entropy_coef_min", "entropy_coef_max", "entropy_coef_delta", "entropy_target"), "use_adaptive_entropy"
    ),
}
_CISPO_CAP = 5.0  # MiniMind's, and the one that TRL's documentation recommends (ScaleRL, arXiv 2510.13786)


class _One(int):
    """A 1 that passes GRPOConfig's check for two generations, which only group advantages need."""

    def __lt__(self, other) -> bool:
        return False


@dataclass
class RolloutConfig(GRPOConfig):
    """GRPOConfig with options for held-out evaluation and reward errors; see `RolloutTrainer`.

    With `loss_type="cispo"`, `epsilon_high` caps a token's ratio itself (1 for an unchanged policy) and is 5 by
    default; with the other losses it is how far above 1 the ratio may go.

    Raises:
        InputError: unknown values, and options without effect.
    """

    eval_temperature: float = field(default=0.0, metadata={"help": "Temperature of the held-out answers; 0 is greedy."})
    reward_errors: Literal["raise", "none"] = field(
        default="raise",
        metadata={
            "help": "If a reward function fails or returns no finite number. raise: save and end the run; none: use "
            "None for the completion, and count it in num_reward_errors."
        },
    )
    epsilon_high: float | None = field(
        default=None,
        metadata={
            "help": "Upper clip range of the ratio, default epsilon; with cispo the cap of the ratio, default 5."
        },
    )

    def __post_init__(self):
        if self.eval_temperature < 0:
            raise InputError(f"--eval_temperature {self.eval_temperature}: must be 0 (greedy) or more")
        if self.reward_errors not in ("raise", "none"):
            raise InputError(f"--reward_errors {self.reward_errors!r}: raise or none")
        for name, known in _KNOWN.items():
            if (value := getattr(self, name)) not in known:
                raise InputError(f"--{name} {value!r} is not known{nearest(str(value), known, listed=True)}")
        refuse_given(self, self._without_effect())
        if self.loss_type == "cispo":
            self.epsilon_high = _CISPO_CAP if self.epsilon_high is None else self.epsilon_high
            if self.epsilon_high < 1:
                raise InputError(
                    f"--epsilon_high {self.epsilon_high:g}: with --loss_type cispo it is the largest weight of a "
                    "token, whose ratio is 1 at first, and this would scale every gradient down: set "
                    f"{_CISPO_CAP:g}, or leave it out"
                )
        super().__post_init__()

    def _without_effect(self) -> dict[str, str]:
        """Options that have no effect with these settings, and why."""
        for_losses = {
            name: f"is for --loss_type {' or '.join(losses)}"
            for name, losses in _FOR_LOSSES.items()
            if self.loss_type not in losses
        }
        alone = {name: f"is for --{needed} true" for name, needed in _NEEDS.items() if not getattr(self, needed)}
        if not self.beta:
            alone["use_bias_correction_kl"] = "is for a KL in the loss: set --beta"
        return _NO_EFFECT | for_losses | alone


@dataclass
class UngroupedConfig(RolloutConfig):
    """For methods that do not compare the answers to one prompt with each other."""

    num_generations: int | None = field(default=1, metadata={"help": "Answers to each prompt of a rollout."})

    def __post_init__(self):
        why = f"{_NOT_FOR_THIS}: there are no groups"
        refuse_given(self, {"scale_rewards": why, "multi_objective_aggregation": why})
        if (count := self.num_generations) < 1:
            raise InputError(f"--num_generations {count}: at least 1")
        self.num_generations = _One(1) if count == 1 else count
        super().__post_init__()
        self.num_generations = count


def range_problems(config, at_least: dict[str, float], above_zero: tuple[str, ...] = ()) -> list[str]:
    """One line for each option that is out of range; None is in every range."""
    values = {name: getattr(config, name) for name in (*at_least, *above_zero)}
    given = {name: value for name, value in values.items() if value is not None}
    problems = [
        f"--{name} {given[name]}: at least {low}" for name, low in at_least.items() if given.get(name, low) < low
    ]
    return problems + [f"--{name} {given[name]}: more than 0" for name in above_zero if given.get(name, 1) <= 0]


def refuse_given(config, reasons: dict[str, str]) -> None:
    """Raise InputError if an option is given that has no effect.

    Args:
        reasons: `{option: why}`; the message is the option's name and this.
    """
    fields = type(config).__dataclass_fields__
    given = [name for name in reasons if getattr(config, name) != fields[name].default]
    if given:
        raise InputError("; ".join(f"--{name} {reasons[name]}" for name in given))
