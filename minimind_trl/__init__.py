"""MiniMind language models on the Hugging Face stack.

The names below are imported on first use, because torch and transformers take seconds to import. The first use also
registers the models with transformers' Auto classes. A script that uses none of them registers the models by
`import minimind_trl.models`.
"""
# ruff: noqa: F401

import importlib
from typing import TYPE_CHECKING, Any

from .imports import lazy_names

if TYPE_CHECKING:  # the same names, for editors
    from .data import DatasetMixer
    from .errors import InputError
    from .models import (
        MiniMindConfig,
        MiniMindForCausalLM,
        MiniMindForSequenceClassification,
        MiniMindForTokenClassification,
        MiniMindModel,
        load_model,
    )
    from .rewards import load_rewards
    from .tokenization import tiny_tokenizer, train_tokenizer, with_training_template
    from .trainers import PPOConfig, PPOTrainer, SPOConfig, SPOTrainer

__version__ = "0.1.0"

_HOMES = {
    "data": ["DatasetMixer"],
    "errors": ["InputError"],
    "models": [
        *("MiniMindConfig", "MiniMindForCausalLM", "MiniMindForSequenceClassification"),
        *("MiniMindForTokenClassification", "MiniMindModel", "load_model"),
    ],
    "rewards": ["load_rewards"],
    "tokenization": ["tiny_tokenizer", "train_tokenizer", "with_training_template"],
    "trainers": ["PPOConfig", "PPOTrainer", "SPOConfig", "SPOTrainer"],
}
__all__ = sorted(name for names in _HOMES.values() for name in names)
_import, __dir__ = lazy_names(__name__, _HOMES)


def __getattr__(name: str) -> Any:
    if name in __all__:
        importlib.import_module(".models", __name__)  # registers the Auto classes
    return _import(name)
