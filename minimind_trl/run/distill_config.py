"""The config of recipes/distill.py, in a file of its own because importing TRL's experiments takes a moment."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, ClassVar

from ..trainers.gkd_trainer import GKDConfig
from ..trainers.option_ranges import SHARE
from .recipe_configs import OWN_EVALUATION, SupervisedConfig


@dataclass
class DistillRecipeConfig(SupervisedConfig, GKDConfig):
    """GKDConfig for a student that imitates a teacher's probabilities, on the mixture's answers or on its own."""

    stage: ClassVar[str] = "distill"
    project_name: ClassVar[str] = "Distill"
    lmbda: float = field(
        default=0.0,
        metadata={"help": "Share of steps on the student's own answers: 0 is offline, 1 on-policy."},
    )
    beta: float = field(
        default=0.0,
        metadata={"help": "0: KL(teacher || student), mode-covering; 1: the reverse KL; between: JSD."},
    )
    assistant_only_loss: bool = field(default=True, metadata={"help": "Only True: the assistant's turns are imitated."})

    option_ranges: ClassVar[dict[str, Any]] = {"beta": SHARE}
    refused_options: ClassVar[dict[str, str | None]] = (
        OWN_EVALUATION
        | dict.fromkeys(
            ("torch_compile", "torch_compile_backend", "torch_compile_mode"),
            "distillation answers with the model that it trains, shape after shape",
        )
        | {
            "packing": "distillation has no --packing",
            "padding_free": "distillation has no --padding_free",
            "assistant_only_loss": "distillation imitates the assistant's turns only",
            "loss_type": "distillation's loss is set by --beta",
            "label_smoothing_factor": "the teacher's probabilities are imitated as they are",
            "packing_strategy": "distillation has no --packing",
        }
    )

    def problems(self) -> Iterator[str]:
        yield from super().problems()
        if not self.teacher_model_name_or_path:
            yield (
                "give the teacher: --teacher_model_name_or_path (a directory, a Hub id or a .pth); to learn from a "
                "teacher's written answers, as of data_configs/distill/reasoning.yaml, use recipes/sft.py"
            )
