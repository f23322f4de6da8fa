"""What the recipes add to TRL's trainers, and the trainers that TRL does not have."""

import importlib
from typing import Any

from .callbacks import RecipeProgress, StopOnSignal
from .collators import AnswersCollator, PackedRowsCollator
from .curves import write_curves
from .lm_head import add_learned_positions_head
from .safe_checkpoints import checkpoint_problem, last_good_checkpoint
from .trainer_mixin import TrainerMixin

# Imported when asked for: they take seconds.
_ONLINE = {
    "MiniMindGRPOTrainer": "grpo_trainer",
    "PPOConfig": "ppo_config",
    "PPOTrainer": "ppo_trainer",
    "RLDoctor": "doctor",
    "Rollout": "rollout",
    "RolloutConfig": "rollout_config",
    "RolloutTrainer": "rollout_trainer",
    "SPOConfig": "spo_config",
    "SPOTrainer": "spo_trainer",
}

__all__ = [
    "AnswersCollator",
    "PackedRowsCollator",
    "RecipeProgress",
    "StopOnSignal",
    "TrainerMixin",
    "add_learned_positions_head",
    "checkpoint_problem",
    "last_good_checkpoint",
    "write_curves",
    *_ONLINE,
]


def __getattr__(name: str) -> Any:
    if name not in _ONLINE:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f".{_ONLINE[name]}", __name__), name)
