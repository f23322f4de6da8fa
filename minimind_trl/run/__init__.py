"""What the recipes share: arguments, loading, training with evaluation, saving."""

from .arguments import (
    ConversationConfig,
    LoraArguments,
    PreferenceConfig,
    PretrainConfig,
    RecipeArguments,
    RewardModelConfig,
    parse_arguments,
    run_recipe,
)
from .loading import as_reward_model, load_data, load_or_create_model, load_tokenizer
from .training import train_dpo, train_reward, train_sft

__all__ = [
    "ConversationConfig",
    "LoraArguments",
    "PreferenceConfig",
    "PretrainConfig",
    "RecipeArguments",
    "RewardModelConfig",
    "as_reward_model",
    "load_data",
    "load_or_create_model",
    "load_tokenizer",
    "parse_arguments",
    "run_recipe",
    "train_dpo",
    "train_reward",
    "train_sft",
]
