"""What all online trainers can be told."""

from dataclasses import dataclass, field

from trl import GRPOConfig

from ..errors import InputError


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
        refuse_unused(self, {"use_transformers_continuous_batching": "it leaves the model in training mode"})
        super().__post_init__()


@dataclass
class SingleRolloutConfig(RolloutConfig):
    """One completion per prompt."""

    num_generations: int | None = field(default=1, metadata={"help": "Only 1: one completion per prompt."})

    def __post_init__(self):
        if self.num_generations != 1:
            raise InputError(f"--num_generations {self.num_generations}: this method samples one completion per prompt")
        refuse_unused(self, dict.fromkeys(("scale_rewards", "multi_objective_aggregation"), "there are no groups"))
        self.num_generations = _One(1)
        super().__post_init__()
        self.num_generations = 1


def refuse_unused(config, reasons: dict[str, str]) -> None:
    """Raise InputError where an option is given that would have no effect.

    Args:
        reasons: `{option: why}`.
    """
    given = [name for name in reasons if getattr(config, name) != _default(config, name)]
    if given:
        raise InputError("; ".join(f"--{name} is not for this method: {reasons[name]}" for name in given))


def _default(config, name: str):
    return type(config).__dataclass_fields__[name].default


def refuse_other_names(config, names: dict[str, str]) -> None:
    """Raise InputError where GRPO's name of an option is given that this config sets from its own.

    Args:
        names: `{GRPO's: ours}`.
    """
    given = [name for name in names if getattr(config, name) != _default(config, name)]
    if given:
        raise InputError("; ".join(f"--{name} is set by --{names[name]}" for name in given))
