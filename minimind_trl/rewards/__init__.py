"""Rewards for online RL: named functions and reward models, all `fn(prompts, completions, **columns) -> list`."""

from .loading import PRESETS, REWARDS, load_rewards
from .models import RewardModel
from .reward import Reward, declared_range

__all__ = ["PRESETS", "REWARDS", "Reward", "RewardModel", "declared_range", "load_rewards"]
