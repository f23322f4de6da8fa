"""What all online trainers can be told."""

from dataclasses import dataclass, field
from typing import Literal

from trl import GRPOConfig

from ..errors import InputError, nearest

# TRL says that it does not know a value when it computes the first loss.
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
_CISPO_CAP = 5.0  # of MiniMind, and what TRL's documentation recommends (ScaleRL, arXiv 2510.13786)


class _One(int):
    """One, which GRPOConfig takes for enough generations; only group advantages need two."""

    def __lt__(self, other) -> bool:
        return False


@dataclass
class RolloutConfig(GRPOConfig):
    """GRPOConfig with an evaluation of its own; see `RolloutTrainer`.

    With `loss_type="cispo"`, `epsilon_high` is the largest weight of a token (a ratio, 1 where the policy has not
    moved) and by default 5; with the other losses it is how far above 1 the ratio may go.

    Raises:
        InputError: values that are not known, and options that would have no effect.
    """

    eval_temperature: float = field(
        default=0.0, metadata={"help": "Temperature of the held-out answers; 0 is greedy. Drawn apart from training's."}
    )
    reward_errors: Literal["raise", "none"] = field(
        default="raise",
        metadata={
            "help": "When a reward function fails on a completion, or gives no finite number: raise saves and ends the "
            "run; none takes it for None and counts it in num_reward_errors."
        },
    )
    epsilon_high: float | None = field(
        default=None,
        metadata={"help": "Upper clip range of the ratio. Default: epsilon; with cispo the ratio's cap itself, 5."},
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
        """Options that these settings leave without any effect, and why."""
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
class SingleRolloutConfig(RolloutConfig):
    """One completion per prompt."""

    num_generations: int | None = field(default=1, metadata={"help": "Only 1: one completion per prompt."})

    def __post_init__(self):
        if self.num_generations != 1:
            raise InputError(f"--num_generations {self.num_generations}: this method samples one completion per prompt")
        why = f"{_NOT_FOR_THIS}: there are no groups"
        refuse_given(self, {"scale_rewards": why, "multi_objective_aggregation": why})
        self.num_generations = _One(1)
        super().__post_init__()
        self.num_generations = 1


def refuse_given(config, reasons: dict[str, str]) -> None:
    """Raise InputError where an option is given that would have no effect.

    Args:
        reasons: `{option: why}`, which the message says after its name.
    """
    fields = type(config).__dataclass_fields__
    given = [name for name in reasons if getattr(config, name) != fields[name].default]
    if given:
        raise InputError("; ".join(f"--{name} {reasons[name]}" for name in given))
