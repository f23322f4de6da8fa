"""Options that all online trainers share."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

from trl import GRPOConfig

from ..errors import raise_all
from .option_ranges import one_of, range_problems

_LOSSES = ("grpo", "bnpo", "dr_grpo", "dapo", "cispo", "sapo", "luspo", "vespo")
_NOT_FOR_THIS = "is not for this method"
_NO_EFFECT = {
    "use_transformers_paged": "is an old name: set --use_transformers_continuous_batching true",
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
    "importance_sampling_level": tuple(loss for loss in _LOSSES if loss != "vespo"),
    **dict.fromkeys(("sapo_temperature_pos", "sapo_temperature_neg"), ("sapo",)),
    **dict.fromkeys(("vespo_k_pos", "vespo_lambda_pos", "vespo_k_neg", "vespo_lambda_neg"), ("vespo",)),
}
_NEEDS = {
    "transformers_continuous_batching_config": "use_transformers_continuous_batching",
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
    max_tool_result_length: int = field(
        default=1024, metadata={"help": "Characters of a tool's result that the policy reads; the rest is cut off."}
    )
    epsilon_high: float | None = field(
        default=None,
        metadata={
            "help": "Upper clip range of the ratio, default epsilon; with cispo the cap of the ratio, default 5."
        },
    )

    option_ranges: ClassVar[dict[str, Any]] = {  # TRL checks these with the first loss only
        "loss_type": one_of(*_LOSSES),
        "importance_sampling_level": one_of("token", "sequence"),
    }

    def __post_init__(self):
        self.set_defaults()
        raise_all(self.method_problems())
        self.set_derived()
        super().__post_init__()

    def set_defaults(self) -> None:
        """Set options that are None and whose default depends on others."""
        if self.loss_type == "cispo" and self.epsilon_high is None:
            self.epsilon_high = _CISPO_CAP

    def set_derived(self) -> None:
        """Set TRL's options that others stand for."""

    def method_problems(self) -> Iterator[str]:
        """One line for each option that is out of range, has no effect, or contradicts another."""
        yield from range_problems(self)
        yield from given_problems(self, self._without_effect())
        if self.loss_type == "cispo" and self.epsilon_high < 1:
            yield (
                f"--epsilon_high {self.epsilon_high:g}: with --loss_type cispo it is the largest weight of a token, "
                f"whose ratio is 1 at first, and this would scale every gradient down: set {_CISPO_CAP:g}, or leave it "
                "out"
            )

    def _without_effect(self) -> dict[str, str]:
        """Options that have no effect with these settings, and why."""
        for_losses = {
            name: f"is for --loss_type {' or '.join(losses)}"
            for name, losses in _FOR_LOSSES.items()
            if self.loss_type not in losses
        }
        alone = {name: f"is for --{needed} true" for name, needed in _NEEDS.items() if not getattr(self, needed)}
        if self.use_transformers_continuous_batching:
            why = "has no effect with --use_transformers_continuous_batching"
            alone |= dict.fromkeys(("use_vllm", "cache_implementation", "repetition_penalty"), why)
        if not self.beta:
            alone["use_bias_correction_kl"] = "is for a KL in the loss: set --beta"
        return _NO_EFFECT | for_losses | alone


@dataclass
class UngroupedConfig(RolloutConfig):
    """For methods that do not compare the answers to one prompt with each other."""

    num_generations: int | None = field(default=1, metadata={"help": "Answers to each prompt of a rollout."})

    def __post_init__(self):
        count = self.num_generations
        if count == 1:
            self.num_generations = _One(1)
        super().__post_init__()
        self.num_generations = count

    def method_problems(self) -> Iterator[str]:
        yield from super().method_problems()
        why = f"{_NOT_FOR_THIS}: there are no groups"
        yield from given_problems(self, {"scale_rewards": why, "multi_objective_aggregation": why})


def given_problems(config, reasons: dict[str, str]) -> Iterator[str]:
    """One line for each option that is given, although it has no effect.

    Args:
        reasons: `{option: why}`; the message is the option's name and this.
    """
    fields = type(config).__dataclass_fields__
    yield from (f"--{name} {why}" for name, why in reasons.items() if getattr(config, name) != fields[name].default)
