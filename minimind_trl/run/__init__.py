"""What a recipe needs before and after its trainer: options, model, data, checks, records."""

from ..imports import lazy_names

# Imported on first use, so that options can be read without what a run needs.
_HOMES = {
    "arguments": ["LoraArguments", "RecipeArguments", "parse_arguments"],
    "exit_codes": ["run_recipe"],
    "recipe_configs": ["DPORecipeConfig", "PretrainRecipeConfig", "RewardRecipeConfig", "SFTRecipeConfig"],
    "recipe_run": ["Run"],
}
__all__ = sorted(name for names in _HOMES.values() for name in names)
__getattr__, __dir__ = lazy_names(__name__, _HOMES)
