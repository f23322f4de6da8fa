"""What the recipes share: arguments, loading, training with evaluation, saving."""

from ..imports import lazy_names

# Imported on first use, so that `--help` needs the arguments alone.
_HOMES = {
    "arguments": [
        *("ConversationConfig", "LoraArguments", "PreferenceConfig", "PretrainConfig", "RecipeArguments"),
        *("RewardModelConfig", "parse_arguments", "run_recipe"),
    ],
    "loading": ["as_reward_model", "load_data", "load_or_create_model", "load_tokenizer"],
    "training": ["train_dpo", "train_reward", "train_sft"],
}
__all__ = sorted(name for names in _HOMES.values() for name in names)
__getattr__, __dir__ = lazy_names(__name__, _HOMES)
