"""What computes a MiniMind, or its stock twin, fastest on a CPU."""

from transformers import PreTrainedModel

from ..internals import attention_implementation
from .tiled_attention import TILED_SDPA
from .twins import TWIN_TYPES


def use_cpu_kernels(model: PreTrainedModel) -> PreTrainedModel:
    """Attend in tiles, unless another attention than `sdpa` was chosen, and run experts one by one.

    torch's grouped product is a loop on a CPU as well, and one in the weights' type, whatever autocast says. Models of
    other types stay as they are.
    """
    if model.config.model_type not in ("minimind", *TWIN_TYPES):
        return model
    if attention_implementation(model) == "sdpa":
        model.set_attn_implementation(TILED_SDPA)
    if getattr(model.config, "num_experts", 0):
        model.set_experts_implementation("eager")
    return model
