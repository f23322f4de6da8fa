"""The critic of PPO: a value for every token, trained inside the policy's forward pass."""

import copy
import functools
import types
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from accelerate.utils import is_peft_model
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn.functional import pad
from transformers.utils import SAFE_WEIGHTS_NAME
from trl.trainer.utils import FusedCausalLMOutput

from ..errors import InputError
from ..internals import attention_implementation
from ..models import (
    MiniMindForCausalLM,
    MiniMindForSequenceClassification,
    MiniMindForTokenClassification,
    from_twin,
    load_model,
)
from ..models.checkpoints import architecture_of
from ..models.cpu_kernels import use_cpu_kernels
from ..models.stored import check_finite
from ..models.tiled_attention import TILED_SDPA
from ..models.twins import TWIN_TYPES
from .packed_answers import pack_inputs

CRITIC = "critic"  # the submodule, and the folder beside the policy's files


@dataclass
class OutputWithValues(FusedCausalLMOutput):
    """TRL's output of a fused forward pass, with the critic's values (B, length)."""

    token_values: Tensor | None = None


def make_critic(policy: MiniMindForCausalLM, name: str | None = None) -> MiniMindForTokenClassification:
    """A value model with the policy's body (adapters merged) or that of a reward model or saved critic.

    A new head predicts 0; a reward model's head predicts its score of the text so far.

    Args:
        name: path or Hub id of the reward model or critic; None takes the policy.

    Raises:
        InputError: `name` is no reward model or critic of MiniMind, or has another vocabulary than the policy.
    """
    if is_peft_model(policy):
        policy = copy.deepcopy(policy).merge_and_unload()
    source = policy if name is None else _scoring_model(name)
    if source.config.model_type in TWIN_TYPES:
        source = from_twin(source)
    if source.config.vocab_size != policy.config.vocab_size:
        raise InputError(
            f"--critic_model {name} has {source.config.vocab_size} tokens, the policy {policy.config.vocab_size}: the "
            "critic reads the policy's tokens"
        )
    config = copy.deepcopy(source.config)
    config.num_labels = 1
    critic = MiniMindForTokenClassification(config).to(policy.dtype)
    critic.model.load_state_dict(source.model.state_dict())
    for parameter in critic.score.parameters():
        nn.init.zeros_(parameter)
    if name is not None:
        critic.score.load_state_dict(source.score.state_dict(), strict=False)  # a reward model's has no bias
    if attention_implementation(policy) == TILED_SDPA:
        use_cpu_kernels(critic)
    return critic


def attach_critic(policy: MiniMindForCausalLM, critic: MiniMindForTokenClassification) -> None:
    """Make the critic a submodule of the policy, so that whatever wraps and trains the policy does so with the critic.

    A forward pass of training (`fused_lm_head=True`, with gradients) returns `OutputWithValues`.
    """
    policy.add_module(CRITIC, critic)
    inner = policy.forward

    @functools.wraps(type(policy).forward)
    def forward(self, *args, fused_lm_head: bool = False, **kwargs):
        outputs = inner(*args, fused_lm_head=fused_lm_head, **kwargs)
        if not fused_lm_head or not torch.is_grad_enabled():
            return outputs
        answered = kwargs["labels"] != -100
        values = values_of(self.get_submodule(CRITIC), kwargs["input_ids"], kwargs["attention_mask"], answered)
        return OutputWithValues(**outputs, token_values=values)

    policy.forward = types.MethodType(forward, policy)


def values_of(critic: nn.Module, input_ids: Tensor, attention_mask: Tensor, answered: Tensor) -> Tensor:
    """(B, length): at each position the value of the state in which the next token is chosen.

    Args:
        answered: (B, length), true for the tokens of the answers; values of other states may be left out (0).
    """
    inputs = {"input_ids": input_ids, "attention_mask": attention_mask}
    packed = pack_inputs(critic, inputs, answered)
    if packed is None:
        return critic(**inputs, use_cache=False).logits.squeeze(-1).float()
    with packed.states_only(critic.model):
        values = critic(**packed.inputs(), use_cache=False).logits.float().flatten()[packed.states]
    before = answered[:, 1:]
    return pad(values.new_zeros(before.shape).masked_scatter(before, values), (0, 1))


@contextmanager
def without_critic(policy: nn.Module) -> Iterator[None]:
    """Remove the critic from the policy within the block: for saving, loading and copying weights to vLLM."""
    critic = policy.get_submodule(CRITIC)
    delattr(policy, CRITIC)
    try:
        yield
    finally:
        policy.add_module(CRITIC, critic)


def split_state(state: dict[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Split a state dict into the policy's and the critic's part; the critic's keys lose their prefix."""
    policy, critic = {}, {}
    for name, tensor in state.items():
        _, found, rest = f".{name}".partition(f".{CRITIC}.")
        (critic if found else policy)[rest if found else name] = tensor
    return policy, critic


def load_critic(critic: nn.Module, folder: Path) -> None:
    """Load the critic of a checkpoint.

    Raises:
        InputError: the folder has no critic, or its weights are not finite.
    """
    path = folder / CRITIC / SAFE_WEIGHTS_NAME
    if not path.exists():
        raise InputError(f"{folder} has no {CRITIC}/{SAFE_WEIGHTS_NAME}: it is no checkpoint of PPO")
    state = load_file(path)
    check_finite(state.items(), path)
    critic.load_state_dict(state)


def _scoring_model(name: str) -> MiniMindForSequenceClassification | MiniMindForTokenClassification:
    kinds = {cls.__name__: cls for cls in (MiniMindForSequenceClassification, MiniMindForTokenClassification)}
    try:
        made_for = architecture_of(name)
        if made_for in kinds:
            model = load_model(name, kinds[made_for])
        elif made_for is None:
            load_model(name)  # says what is wrong with it
    except InputError as error:
        raise InputError(f"--critic_model {error}") from error
    if made_for not in kinds or model.config.num_labels != 1:
        raise InputError(
            f"--critic_model {name} is a {made_for}; give a reward model of recipes/reward.py or a run's {CRITIC}/"
        )
    return model
