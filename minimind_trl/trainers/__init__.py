"""TRL's trainers as the recipes use them, and the trainers that TRL does not have."""

from ..imports import lazy_names
from ..internals import unwrap_without_importing_deepspeed

unwrap_without_importing_deepspeed()

# Imported on first use, since some of them take seconds.
_HOMES = {
    "callbacks": ["RecipeProgress", "StopOnSignal"],
    "collators": ["AnswersCollator", "PackedRowsCollator"],
    "curves": ["write_curves"],
    "gkd_trainer": ["MiniMindGKDTrainer"],
    "grpo_trainer": ["MiniMindGRPOTrainer"],
    "live_doctor": ["Doctor"],
    "lm_head": ["add_learned_positions_head"],
    "ppo_config": ["PPOConfig"],
    "ppo_trainer": ["PPOTrainer"],
    "preference_trainers": ["MiniMindDPOTrainer", "MiniMindRewardTrainer"],
    "rollout_config": ["RolloutConfig"],
    "rollout": ["Rollout"],
    "rollout_trainer": ["RolloutTrainer"],
    "safe_checkpoints": ["checkpoint_problem", "last_good_checkpoint"],
    "sft_trainer": ["MiniMindSFTTrainer"],
    "spo_config": ["SPOConfig"],
    "spo_trainer": ["SPOTrainer"],
    "trainer_mixin": ["TrainerMixin"],
}
__all__ = sorted(name for names in _HOMES.values() for name in names)
__getattr__, __dir__ = lazy_names(__name__, _HOMES)
