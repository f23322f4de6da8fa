"""TRL's trainers as the recipes use them, and the trainers that TRL does not have.

Each name is imported when it is asked for, since some of them take seconds.
"""

import importlib
from typing import Any

_HOMES = {
    "AnswersCollator": "collators",
    "MeteredTrainer": "metered",
    "MiniMindDPOTrainer": "preference_trainers",
    "MiniMindGKDTrainer": "gkd_trainer",
    "MiniMindRewardTrainer": "preference_trainers",
    "MiniMindSFTTrainer": "sft_trainer",
    "PPOConfig": "ppo_config",
    "PPOTrainer": "ppo_trainer",
    "PackedRowsCollator": "collators",
    "RLDoctor": "doctor",
    "RecipeProgress": "callbacks",
    "Rollout": "rollout_trainer",
    "RolloutConfig": "rollout_config",
    "RolloutTrainer": "rollout_trainer",
    "SPOConfig": "spo_config",
    "SPOTrainer": "spo_trainer",
    "StopOnSignal": "callbacks",
    "add_learned_positions_head": "lm_head",
    "checkpoint_problem": "safe_checkpoints",
    "last_good_checkpoint": "safe_checkpoints",
    "write_curves": "curves",
}

__all__ = list(_HOMES)


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f".{_HOMES[name]}", __name__), name)
