"""The language-model head for training with a small vocabulary."""

import copy
import functools
import types
from contextlib import nullcontext

import torch
from accelerate.utils import is_peft_model
from peft import PeftModel
from transformers.integrations.deepspeed import is_deepspeed_zero3_enabled
from trl.trainer.utils import FusedCausalLMOutput

from ..models import MiniMindForCausalLM
from ..models.modeling_minimind import load_balancing_loss
from .packed_answers import pack_inputs
from .token_figures import token_figures

# Up to this size the logits of all learned positions fit in memory; TRL's head, in tiles, is for larger ones.
LARGEST_VOCABULARY = 32_768


def unpatched_copy(model: torch.nn.Module) -> torch.nn.Module:
    """A copy with the forward of its class: a patched forward would call the original model."""
    copied = copy.deepcopy(model)
    for module in copied.modules():
        module.__dict__.pop("forward", None)
    return copied


def base_model(model: torch.nn.Module) -> torch.nn.Module:
    """The model within PEFT's wrapper, or the model itself."""
    return model.get_base_model() if is_peft_model(model) else model


def add_learned_positions_head(
    model: MiniMindForCausalLM | PeftModel,
    temperature: float = 1.0,
    for_preferences: bool = False,
    entropy_gradient: bool = False,
    pack: bool = False,
) -> None:
    """Let `model(..., labels=labels, fused_lm_head=True)` compute the logits of learned positions only, all at once.

    Replaces TRL's `add_fused_lm_head`, with the same contract. Without Triton that computes every position in tiles,
    which takes two fifths of a training step on a CPU with a vocabulary of 6,400. The balancing loss of a MoE is the
    model's own, not Mixtral's. Models with larger vocabularies keep TRL's head, except under ZeRO-3, where TRL's head
    assumes that the model is already sharded.

    Args:
        model: the model, or a PEFT model around it.
        temperature: divides the logits, for log-probabilities of what was sampled at that temperature.
        for_preferences: also return the figures that only DPO needs.
        entropy_gradient: keep the gradient of the entropy, for an entropy bonus; else it costs no memory.
        pack: compute the states of answers without padding, and of equal prompts once (`pack_answers`). This needs
            attention by SDPA, whose masks are arbitrary.
    """
    model = base_model(model)
    if model.config.vocab_size > LARGEST_VOCABULARY and not is_deepspeed_zero3_enabled():
        return
    other_forward = model.forward

    @functools.wraps(type(model).forward)  # `generate` inspects the signature
    def forward(self, *args, fused_lm_head: bool = False, **kwargs):
        if not fused_lm_head or kwargs.get("shift_labels") is not None:
            return other_forward(*args, fused_lm_head=fused_lm_head, **kwargs)
        labels = kwargs.pop("labels")
        kwargs.pop("num_items_in_batch", None)
        packed = pack_inputs(self, kwargs, labels != -100) if pack else None
        with packed.states_only(self.model) if packed else nullcontext():
            outputs = self.model(*args, **kwargs | (packed.inputs() if packed else {}) | {"use_cache": False})
        labels = labels[:, 1:]
        learned = labels != -100
        targets, states = labels[learned], outputs.last_hidden_state
        states = states[:, :-1][learned] if packed is None else states.flatten(0, 1)[packed.states]
        logits = self.lm_head(states)
        figures = token_figures(logits, targets, temperature, for_preferences, entropy_gradient)
        aux_loss = None
        if getattr(outputs, "router_logits", None):  # a stock dense model has none
            shape = outputs.last_hidden_state.shape[:2]
            aux_loss = load_balancing_loss(outputs.router_logits, self.config, shape, kwargs.get("attention_mask"))
        figures = {
            # masked_scatter keeps a batch without learned positions connected to the model
            name: figure.new_zeros(learned.shape).masked_scatter(learned, figure)
            for name, figure in figures.items()
        }
        return FusedCausalLMOutput(**figures, label_mask=learned, aux_loss=aux_loss)

    model.forward = types.MethodType(forward, model)
