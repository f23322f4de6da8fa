"""What all online trainers can be told."""

from dataclasses import dataclass, field

from trl import GRPOConfig

from ..errors import InputError, nearest

# TRL says that it does not know a value when it computes the first loss.
_KNOWN = {
    "loss_type": ("grpo", "bnpo", "dr_grpo", "dapo", "cispo", "sapo", "luspo", "vespo"),
    "importance_sampling_level": ("token", "sequence"),
}
_NOT_FOR_THIS = "is not for this method"


class _One(int):
    """One, which GRPOConfig takes for enough generations; only group advantages need two."""

    def __lt__(self, other) -> bool:
        return False


@dataclass
class RolloutConfig(GRPOConfig):
    """GRPOConfig with an evaluation of its own; see `RolloutTrainer`."""

    eval_temperature: float = field(
        default=0.0, metadata={"help": "Temperature of the held-out answers; 0 is greedy. Drawn apart from training's."}
    )

    def __post_init__(self):
        if self.eval_temperature < 0:
            raise InputError(f"--eval_temperature {self.eval_temperature}: must be 0 (greedy) or more")
        for name, known in _KNOWN.items():
            if (value := getattr(self, name)) not in known:
                raise InputError(f"--{name} {value!r} is not known{nearest(str(value), known, listed=True)}")
        why = f"{_NOT_FOR_THIS}: it leaves the model in training mode"
        refuse_given(self, {"use_transformers_continuous_batching": why})
        super().__post_init__()


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
