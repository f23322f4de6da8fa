"""A policy and a critic that train together: one model, two learning rates, two gradient norms, two folders."""

import math
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from trl.trainer.utils import disable_dropout_in_model

from ..hardware import COUNTED_MODELS, train_flops_per_token
from .critic import CRITIC, attach_critic, load_critic, make_critic, split_state, values_of, without_critic
from .rollout import joined
from .rollout_trainer import RolloutTrainer

_CRITIC_FACTOR = 10  # default learning rate of the critic, in those of the policy


class ActorCriticTrainer(RolloutTrainer):
    """A `RolloutTrainer` with a critic (`trainer.critic`), which is a submodule of the policy while it trains.

    The critic has its own learning rate, its gradients are clipped apart from the policy's, and it is saved in the
    folder `critic` of checkpoints and of the output.
    """

    def __init__(self, model, reward_funcs=None, args=None, *positional, **kwargs):
        model, args = self.model_and_config(model, args)
        if args.critic_learning_rate is None:  # recipes set learning_rate after the config is made
            args.critic_learning_rate = _CRITIC_FACTOR * args.learning_rate
        critic = make_critic(model, args.critic_model)  # before the next line adds adapters
        super().__init__(model, reward_funcs, args, *positional, **kwargs)
        if args.disable_dropout:
            disable_dropout_in_model(critic)
        self.critic = critic.to(self.accelerator.device)
        self.compile_layers(self.critic)
        attach_critic(self.base_policy(), self.critic)

    def rollout_values(self, tensors: dict[str, Any]) -> Tensor:
        """(B, T): the critic's values of the states in which the tokens of the completions were chosen."""
        ids, mask = joined(tensors)
        answered = mask.bool()
        answered[:, : tensors["prompt_ids"].shape[1]] = False
        size = self.args.per_device_train_batch_size
        with torch.no_grad(), self.accelerator.autocast():
            parts = [
                values_of(self.critic, *(part[start : start + size] for part in (ids, mask, answered)))
                for start in range(0, len(ids), size)
            ]
        return completion_values(torch.cat(parts), tensors["completion_ids"].shape[1])

    # Optimizer

    def create_optimizer(self, model=None) -> torch.optim.Optimizer:
        optimizer = super().create_optimizer(model)
        critic = set(self.critic.parameters())
        for group in list(optimizer.param_groups):
            of_critic = [parameter for parameter in group["params"] if parameter in critic]
            group["params"] = [parameter for parameter in group["params"] if parameter not in critic]
            if of_critic:
                optimizer.add_param_group(group | {"params": of_critic, "lr": self.args.critic_learning_rate})
        return optimizer

    def clip_grad_norm(self, model):
        if self.is_deepspeed_enabled:  # DeepSpeed clips actor and critic together
            return super().clip_grad_norm(model)
        return self._clip_apart(self.args.max_grad_norm)

    def get_grad_norm(self, model, grad_norm=None):
        if grad_norm is None and not self.is_deepspeed_enabled:  # without clipping
            grad_norm = self._clip_apart(math.inf)
        return super().get_grad_norm(model, grad_norm)

    def _clip_apart(self, max_norm: float) -> Tensor:
        """Clip the gradients of actor and critic to this norm each; returns the norm of both together before that."""
        self.accelerator.unscale_gradients()  # with fp16
        norms = []
        for name, parameters in self.trained_parameters().items():
            norm = nn.utils.clip_grad_norm_(parameters, max_norm)
            norm = norm.full_tensor() if hasattr(norm, "full_tensor") else norm
            self.record(**{f"{name}_grad_norm": norm})
            norms.append(norm.to(self.accelerator.device))  # without any gradient it is on the CPU
        return torch.stack(norms).norm()

    def trained_parameters(self) -> dict[str, list[nn.Parameter]]:
        critic = set(self.critic.parameters())
        trained = [parameter for parameter in self.model.parameters() if parameter.requires_grad]
        return {
            "actor": [parameter for parameter in trained if parameter not in critic],
            "critic": [parameter for parameter in trained if parameter in critic],
        }

    # Logs

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        if "loss" in logs and "learning_rate" in logs:
            logs["actor_lr"] = logs["critic_lr"] = logs["learning_rate"]
            if self.args.learning_rate:
                logs["critic_lr"] *= self.args.critic_learning_rate / self.args.learning_rate  # one schedule for both
        super().log(logs, start_time)

    def flops_per_token(self, length: float) -> float:
        critic = self.critic.config
        own = train_flops_per_token(critic, length, output_size=1) if critic.model_type in COUNTED_MODELS else 0.0
        return super().flops_per_token(length) + own

    # Files

    def write_model(self, output_dir: str | None = None, state_dict: dict | None = None) -> None:
        policy, critic = (None, None) if state_dict is None else split_state(state_dict)
        folder = Path(output_dir or self.args.output_dir)
        with self._without_critic():
            super().write_model(str(folder), policy)
        if self.args.should_save:
            self.critic.save_pretrained(folder / CRITIC, state_dict=critic)

    def load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        if self.is_fsdp_enabled:
            super().load_from_checkpoint(resume_from_checkpoint, model)
            return
        with self._without_critic():
            super().load_from_checkpoint(resume_from_checkpoint, model)
        load_critic(self.critic, Path(resume_from_checkpoint))

    def engine_weights(self) -> AbstractContextManager:
        return self._without_critic()  # vLLM has no place for it

    def _without_critic(self) -> AbstractContextManager:
        return without_critic(self.base_policy())


def completion_values(values: Tensor, length: int) -> Tensor:
    """Of values (B, P + T) those of the states in which the T = `length` tokens of the completions were chosen."""
    return values[:, -length - 1 : -1]
