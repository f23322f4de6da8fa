"""What the recipes add to TRL's trainers."""

from .callbacks import RecipeProgress, StopOnSignal
from .checkpoints import checkpoint_problem, last_good_checkpoint
from .collators import AnswersCollator, PackedRowsCollator
from .curves import write_curves
from .lm_head import add_learned_positions_head
from .metered import MeteredTrainer

__all__ = [
    "AnswersCollator",
    "MeteredTrainer",
    "PackedRowsCollator",
    "RecipeProgress",
    "StopOnSignal",
    "add_learned_positions_head",
    "checkpoint_problem",
    "last_good_checkpoint",
    "write_curves",
]
