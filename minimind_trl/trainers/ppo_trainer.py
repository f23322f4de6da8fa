"""Proximal policy optimisation with a critic, on GRPOTrainer's rollouts."""

import math
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from transformers import TrainerCallback
from trl.trainer.utils import disable_dropout_in_model

from ..errors import InputError
from ..hardware import COUNTED_MODELS, train_flops_per_token
from .advantages import generalized_advantages, k3, whiten
from .critic import CRITIC, attach_critic, load_critic, make_critic, split_state, values_of, without_critic
from .ppo_config import PPOConfig
from .rollout_config import CLIPPED
from .rollout_trainer import Rollout, RolloutTrainer, chosen_mask, whole

_CRITIC_FACTOR = 10  # how much faster the critic learns, unless told


class PPOTrainer(RolloutTrainer):
    """PPO for language models: what TRL had until 1.13, with any reward, evaluation, resume and a critic that is kept.

    The reward of a token is `-kl_coef * KL`, and of the last one also the completion's reward. Advantages are
    generalised advantage estimates. The loss is TRL's clipped surrogate plus `vf_coef` times the clipped value loss.

    The critic (`trainer.critic`, a `MiniMindForTokenClassification`) is part of the model that is trained and
    distributed, has its own learning rate, and is saved in the folder `critic` of checkpoints and of the output.
    With LoRA the policy's adapter and the whole critic are trained.

    Each epoch over a rollout draws its minibatches anew. The gradients of actor and critic are clipped apart, to
    `max_grad_norm` each, as MiniMind does it; DeepSpeed clips them together. A completion without any reward moves
    neither.

    Metrics of training, beside TRL's: `actor_loss`, `critic_loss`, `reward`, `kl` (mean log-ratio of the
    rollout's policy to this one), `approx_kl` (the same, k3), `kl_ref` (where there is a reference: to it, per token),
    `clip_fraction` (of losses that clip), `avg_response_len`, `actor_lr`, `critic_lr`, `actor_grad_norm`,
    `critic_grad_norm` (both before they are clipped; `grad_norm` is that of both together), `num_tokens_generated`.
    Held-out, beside `RolloutTrainer`'s: `eval_value_loss`, `eval_explained_variance`, with `whiten_rewards` of rewards
    whitened over all answers. `explained_variance` is left out where the returns hardly differ.

    Args:
        args: a `PPOConfig`.
        others: as for `RolloutTrainer`.
    """

    _tag_names = ("trl", "ppo")
    _name = "PPO"
    _paper: ClassVar[dict[str, str]] = {
        "title": "Proximal Policy Optimization Algorithms",
        "id": "1707.06347",
        "citation": """@article{schulman2017proximal,
    title        = {{Proximal Policy Optimization Algorithms}},
    author       = {John Schulman and Filip Wolski and Prafulla Dhariwal and Alec Radford and Oleg Klimov},
    year         = 2017,
    eprint       = {arXiv:1707.06347},
}""",
    }
    needs_logps, kl_in_loss, loss_name, redraws = True, False, "actor_loss", True

    def __init__(self, model, reward_funcs=None, args: PPOConfig | None = None, *positional, **more):
        if args is None:
            raise TypeError("give args, such as PPOConfig(output_dir)")
        if args.critic_learning_rate is None:  # here, as recipes choose a learning rate after they have made the config
            args.critic_learning_rate = _CRITIC_FACTOR * args.learning_rate
        critic = make_critic(model, args.critic_model)  # of the model without adapters, which the next line adds
        super().__init__(model, reward_funcs, args, *positional, **more)
        if args.target_kl is not None and self.is_deepspeed_enabled:
            raise InputError("--target_kl cannot skip DeepSpeed's steps: leave it out")
        if args.disable_dropout:
            disable_dropout_in_model(critic)
        self.critic = critic.to(self.accelerator.device)
        attach_critic(self._base_model(), self.critic)
        self._too_far = False  # of the rollout at hand, the policy is
        self.add_callback(_BeforeStep(self))

    # Rollouts

    def advantages(self, rollout: Rollout) -> Tensor:
        args, mask = self.args, rollout.mask * rollout.rewarded[:, None]
        self._too_far = False
        values = self._rollout_values(rollout.tokens) * mask
        rewards = self._token_rewards(rollout)
        if args.whiten_rewards:
            rewards = whiten(rewards, mask, self.total, shift_mean=False)
        advantages, returns = generalized_advantages(rewards, values, mask, args.gamma, args.lam)
        if args.whiten_advantages:
            advantages = whiten(advantages, mask, self.total)
        rollout.extra |= {"old_values": values, "returns": returns, "rewarded": rollout.rewarded}
        _, outcomes = generalized_advantages(rewards, values, mask, args.gamma, lam=1.0)
        sums = torch.stack([part.double().sum() for part in value_moments(values, outcomes, mask).values()])
        self.record(explained_variance=explained_variance(*self.total(sums).tolist()))
        self._describe(rollout)
        return advantages

    def _describe(self, rollout: Rollout) -> None:
        rows = torch.tensor(len(rollout.lengths), device=rollout.lengths.device)
        generated, count = self.total(torch.stack([rollout.lengths.sum(), rows])).tolist()
        self.record(avg_response_len=generated / count)
        if rollout.ref_logps is None:
            return
        kl = self._kl_to_reference(rollout) * rollout.mask
        summed_kl, tokens = self.total(torch.stack([kl.sum(), rollout.mask.sum()]).double()).tolist()
        self.record(kl_ref=summed_kl / tokens if tokens else math.nan)

    def _token_rewards(self, rollout: Rollout) -> Tensor:
        """(B, T): the price of leaving the reference, and at the last token of each completion its reward.

        All 0 for a completion without a reward.
        """
        mask, scores = rollout.mask * rollout.rewarded[:, None], rollout.rewards.nan_to_num(0)
        if self.args.missing_eos_penalty is not None:
            scores = scores - self.args.missing_eos_penalty * ~rollout.ended
        rewards = -self.args.kl_coef * self._kl_to_reference(rollout) * mask
        last = (mask * torch.arange(1, mask.shape[1] + 1, device=mask.device)).argmax(1, keepdim=True)
        return rewards.scatter_add(1, last, (scores * mask.any(1))[:, None].to(rewards.dtype))

    def _kl_to_reference(self, rollout: Rollout) -> Tensor:
        if rollout.ref_logps is None:
            return torch.zeros_like(rollout.logps)
        ratio = rollout.ref_logps - rollout.logps
        return -ratio if self.args.kl_estimator == "k1" else k3(ratio)

    def _rollout_values(self, tokens: dict[str, Any]) -> Tensor:
        """(B, T): the critic's values of the states in which the completions' tokens were chosen."""
        ids, mask = whole(tokens)
        size = self.args.per_device_train_batch_size
        with torch.no_grad(), self.accelerator.autocast():
            parts = [
                values_of(self.critic, ids[start : start + size], mask[start : start + size])
                for start in range(0, len(ids), size)
            ]
        return _chosen(torch.cat(parts), tokens["completion_ids"].shape[1])

    # Loss

    def extra_loss(self, model: nn.Module, inputs: dict[str, Any]) -> Tensor:
        mask = chosen_mask(inputs)
        values = _chosen(self.critic.values, mask.shape[1])
        self.critic.values = None  # or its graph would outlive the step
        losses = value_losses(values, inputs["old_values"], inputs["returns"], self.args.cliprange_value)
        shift = self.new_logps - inputs["old_per_token_logps"]
        rewarded = mask * inputs["rewarded"][:, None]  # of the others nobody knows what they return
        figures = {"critic_loss": (losses.detach(), rewarded), "kl": (-shift, mask), "approx_kl": (k3(shift), mask)}
        if self.loss_type in CLIPPED:
            figures["clip_fraction"] = (((shift.exp() - 1).abs() > self.args.cliprange).float(), mask)
        sums = torch.stack([torch.stack([(part * kept).sum(), kept.sum().float()]) for part, kept in figures.values()])
        means = {
            name: summed / tokens if tokens else math.nan
            for name, (summed, tokens) in zip(figures, self.total(sums).tolist(), strict=True)
        }
        self.record(**means)
        if self.args.target_kl is not None and means["approx_kl"] > self.args.target_kl:
            self._too_far = True
        return self.args.vf_coef * self.token_mean(losses, rewarded, inputs)

    def _clip_grad_norm(self, model):
        if self.is_deepspeed_enabled:
            return super()._clip_grad_norm(model)
        return self._clip_apart(self.args.max_grad_norm)

    def _get_grad_norm(self, model, grad_norm=None):
        if grad_norm is None and not self.is_deepspeed_enabled:  # nothing is to be clipped
            grad_norm = self._clip_apart(math.inf)
        return super()._get_grad_norm(model, grad_norm=grad_norm)

    def _clip_apart(self, largest: float) -> Tensor:
        """Clip the gradients of actor and critic to this norm each; returns the norm of both together, before."""
        self.accelerator.unscale_gradients()  # of fp16
        norms = []
        for name, parameters in self._halves().items():
            norm = nn.utils.clip_grad_norm_(parameters, largest)
            norm = norm.full_tensor() if hasattr(norm, "full_tensor") else norm
            self.record(**{f"{name}_grad_norm": norm})
            norms.append(norm.to(self.accelerator.device))  # that of no gradient at all is on the CPU
        return torch.stack(norms).norm()

    def _halves(self) -> dict[str, list[nn.Parameter]]:
        critic = {id(parameter) for parameter in self.critic.parameters()}
        trained = [parameter for parameter in self.model.parameters() if parameter.requires_grad]
        return {
            "actor": [parameter for parameter in trained if id(parameter) not in critic],
            "critic": [parameter for parameter in trained if id(parameter) in critic],
        }

    def create_optimizer(self, model=None) -> torch.optim.Optimizer:
        optimizer = super().create_optimizer(model)
        critic = {id(parameter) for parameter in self.critic.parameters()}
        for group in list(optimizer.param_groups):
            moved = [parameter for parameter in group["params"] if id(parameter) in critic]
            group["params"] = [parameter for parameter in group["params"] if id(parameter) not in critic]
            if moved:
                optimizer.add_param_group(group | {"params": moved, "lr": self.args.critic_learning_rate})
        return optimizer

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

    # Evaluation

    def rollout_figures(self, rollout: Rollout) -> dict[str, Tensor]:
        mask, rewards = rollout.mask * rollout.rewarded[:, None], self._token_rewards(rollout).double()
        values = (self._rollout_values(rollout.tokens) * mask).double()
        nothing = torch.zeros_like(rewards)
        _, outcomes = generalized_advantages(rewards, nothing, mask, self.args.gamma, lam=1.0)
        _, lengths = generalized_advantages(mask.to(rewards), nothing, mask, self.args.gamma, lam=1.0)
        parts = torch.stack([mask.to(rewards), outcomes, lengths, values], -1)
        products = torch.einsum("bti,btj->bij", parts, parts)
        return {"products": products, "token_rewards": torch.stack([rewards.sum(1), rewards.square().sum(1)], 1)}

    def summary(self, figures: dict[str, Tensor]) -> dict[str, float]:
        """Of the sums over tokens of all products of 1, return, discounted length and value.

        Whitened over all answers a reward is `scale * r + shift`, and a return `scale * return + shift * length`, so
        that the figures are the same whatever the batches are.
        """
        products = figures["products"].sum(0)
        count, scale, shift = products[0, 0].item(), 1.0, 0.0
        if self.args.whiten_rewards:
            summed, squared = figures["token_rewards"].sum(0).tolist()
            mean = summed / max(count, 1)
            scale = (squared / max(count, 1) - mean**2 + 1e-8) ** -0.5
            shift = mean * (1 - scale)
        outcome = torch.tensor([0.0, scale, shift, 0.0], dtype=products.dtype, device=products.device)
        error = outcome - torch.tensor([0.0, 0.0, 0.0, 1.0], dtype=products.dtype, device=products.device)
        sums = {
            "returns": products[0] @ outcome,
            "squared_returns": outcome @ products @ outcome,
            "errors": products[0] @ error,
            "squared_errors": error @ products @ error,
        }
        sums = {name: value.item() for name, value in sums.items()}
        value_loss = 0.5 * sums["squared_errors"] / count if count else math.nan
        return {"value_loss": value_loss, "explained_variance": explained_variance(count, **sums)}

    # State and files

    def trainer_state(self) -> dict[str, Any]:
        return {"too_far": self._too_far}

    def load_trainer_state(self, state: dict[str, Any]) -> None:
        self._too_far = state["too_far"]

    def _save(self, output_dir: str | None = None, state_dict: dict | None = None) -> None:
        policy, critic = (None, None) if state_dict is None else split_state(state_dict)
        folder = Path(output_dir or self.args.output_dir)
        with without_critic(self._base_model()):
            super()._save(str(folder), policy)
        if self.args.should_save:  # as Trainer itself does for the policy
            self.critic.save_pretrained(folder / CRITIC, state_dict=critic)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        if self.is_fsdp_enabled:
            super()._load_from_checkpoint(resume_from_checkpoint, model)
            return
        with without_critic(self._base_model()):
            super()._load_from_checkpoint(resume_from_checkpoint, model)
        load_critic(self.critic, Path(resume_from_checkpoint))

    def engine_weights(self):
        return without_critic(self._base_model())  # vLLM has no place for the critic's


class _BeforeStep(TrainerCallback):
    """Leaves out steps on a rollout that the policy has moved too far from: what has no gradient is not stepped."""

    def __init__(self, trainer: PPOTrainer):
        self.trainer = trainer

    def on_pre_optimizer_step(self, args, state, control, **kwargs):
        self.trainer.record(skipped_steps=float(self.trainer._too_far))
        if self.trainer._too_far:
            self.trainer.model.zero_grad(set_to_none=True)


def value_moments(values: Tensor, returns: Tensor, mask: Tensor) -> dict[str, Tensor]:
    """The sums over each completion's tokens, (B,) each, that `explained_variance` takes."""
    errors = (returns - values) * mask
    return {
        "count": mask.sum(1).float(),
        "returns": returns.sum(1),
        "squared_returns": returns.square().sum(1),
        "errors": errors.sum(1),
        "squared_errors": errors.square().sum(1),
    }


def explained_variance(
    count: float, returns: float, squared_returns: float, errors: float, squared_errors: float
) -> float:
    """`1 - Var(returns - values) / Var(returns)`, of sums over tokens.

    NaN where there is nothing to explain: fewer than two tokens, or returns that differ by less than a thousandth of
    their size, as on a solved task.
    """
    if count < 2:
        return math.nan
    variance = squared_returns / count - (returns / count) ** 2
    if variance <= 1e-6 * squared_returns / count:
        return math.nan
    return 1 - (squared_errors / count - (errors / count) ** 2) / variance


def value_losses(values: Tensor, old_values: Tensor, returns: Tensor, cliprange: float) -> Tensor:
    """(B, T): half the squared error of the value, or of the value kept near the old one where that is larger."""
    clipped = old_values + (values - old_values).clamp(-cliprange, cliprange)
    return 0.5 * torch.max((values - returns) ** 2, (clipped - returns) ** 2)


def _chosen(values: Tensor, length: int) -> Tensor:
    return values[:, -length - 1 : -1]
