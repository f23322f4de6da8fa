"""What a recipe needs before and after its trainer: options, model, data, checks, records."""

from .arguments import LoraArguments, RecipeArguments, parse_arguments
from .recipe_configs import DPORecipeConfig, PretrainRecipeConfig, RewardRecipeConfig, SFTRecipeConfig
from .recipe_run import Run, run_recipe

__all__ = [
    "DPORecipeConfig",
    "LoraArguments",
    "PretrainRecipeConfig",
    "RecipeArguments",
    "RewardRecipeConfig",
    "Run",
    "SFTRecipeConfig",
    "parse_arguments",
    "run_recipe",
]
