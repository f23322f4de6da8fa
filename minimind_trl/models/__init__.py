"""MiniMind's config, models and checkpoint conversion. Importing this package registers the Auto classes."""

from peft.utils import constants as peft_constants
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
)

from ..errors import CheckpointError
from .checkpoints import load_model, load_native, save_native
from .configuration_minimind import PRESETS, MiniMindConfig
from .modeling_minimind import (
    MiniMindForCausalLM,
    MiniMindForSequenceClassification,
    MiniMindForTokenClassification,
    MiniMindModel,
    MiniMindPreTrainedModel,
)
from .twins import from_twin, to_twin

_AUTO_CLASSES = {
    AutoModel: MiniMindModel,
    AutoModelForCausalLM: MiniMindForCausalLM,
    AutoModelForSequenceClassification: MiniMindForSequenceClassification,
    AutoModelForTokenClassification: MiniMindForTokenClassification,
}

# `register` lets the Auto classes find ours. `register_for_auto_class` makes save_pretrained copy the two source files
# beside the weights, so that the checkpoint loads with trust_remote_code if this package is not installed.
AutoConfig.register(MiniMindConfig.model_type, MiniMindConfig)
MiniMindConfig.register_for_auto_class()
for _auto_class, _model_class in _AUTO_CLASSES.items():
    _auto_class.register(MiniMindConfig, _model_class)
    _model_class.register_for_auto_class(_auto_class.__name__)

# Default target modules of LoRA, IA3, VeRA and PEFT's other methods: the same as for Qwen3.
for _name, _mapping in vars(peft_constants).items():
    if _name.startswith("TRANSFORMERS_MODELS_TO_") and "qwen3" in _mapping:
        _mapping[MiniMindConfig.model_type] = _mapping["qwen3"]

__all__ = [
    "PRESETS",
    "CheckpointError",
    "MiniMindConfig",
    "MiniMindForCausalLM",
    "MiniMindForSequenceClassification",
    "MiniMindForTokenClassification",
    "MiniMindModel",
    "MiniMindPreTrainedModel",
    "from_twin",
    "load_model",
    "load_native",
    "save_native",
    "to_twin",
]
