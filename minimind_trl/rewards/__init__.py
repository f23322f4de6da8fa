"""Rewards for online RL: functions and reward models, all called as `fn(prompts, completions, **columns) -> list`."""

from .registry import PRESETS, REWARDS, load_rewards
from .reward import Reward, declared_range
from .reward_models import RewardModel

__all__ = ["PRESETS", "REWARDS", "Reward", "RewardModel", "declared_range", "load_rewards"]
