"""Proximal policy optimization with a critic, on GRPOTrainer's rollouts."""

from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from transformers import TrainerCallback
from trl.trainer.utils import shuffle_sequence_dict, split_tensor_dict

from ..errors import InputError
from .actor_critic_trainer import ActorCriticTrainer, completion_values
from .advantages import (
    clipped_value_losses,
    explained_variance,
    generalized_advantages,
    k3,
    token_rewards,
    value_moments,
    whiten,
)
from .ppo_config import PPOConfig
from .rollout import Rollout, loss_mask
from .rollout_config import CLIPPED


class PPOTrainer(ActorCriticTrainer):
    """PPO for language models (Schulman et al., arXiv 1707.06347; Ziegler et al., arXiv 1909.08593).

    It has what TRL's PPOTrainer had until 1.13, and any reward function, held-out evaluation, an exact resume, and a
    critic that is saved. The algorithm is `training_batch`, `minibatches_of_next_epoch` and `minibatch_loss`, in that
    order.

    The critic (`trainer.critic`, a `MiniMindForTokenClassification`) is a submodule of the model that is trained and
    distributed, has its own learning rate, and is saved in the folder `critic` of checkpoints and of the output. With
    LoRA the policy's adapter and the whole critic are trained. The gradients of actor and critic are clipped apart, to
    `max_grad_norm` each, as in MiniMind; DeepSpeed clips them together.

    Metrics of training, in addition to TRL's: `actor_loss`, `critic_loss`, `reward`, `kl` (mean log-ratio of the
    rollout's policy to this one), `approx_kl` (the same by k3), `kl_ref` (per token to the reference, if there is one),
    `clip_fraction` (for losses that clip), `avg_response_len`, `actor_lr`, `critic_lr`, `actor_grad_norm`,
    `critic_grad_norm` (before clipping; `grad_norm` is that of both together), `num_tokens_generated`,
    `explained_variance` (left out if the returns hardly differ), `skipped_steps` (share, because of `target_kl`).
    Held-out, in addition to `RolloutTrainer`'s: `eval_value_loss`, `eval_explained_variance`; with `whiten_rewards`
    the rewards are whitened over all answers.

    Args:
        args: a `PPOConfig`.
        others: as for `RolloutTrainer`.
    """

    method = "PPO"
    paper: ClassVar[dict[str, str]] = {
        "title": "Proximal Policy Optimization Algorithms",
        "id": "1707.06347",
        "citation": """@article{schulman2017proximal,
    title        = {{Proximal Policy Optimization Algorithms}},
    author       = {John Schulman and Filip Wolski and Prafulla Dhariwal and Alec Radford and Oleg Klimov},
    year         = 2017,
    eprint       = {arXiv:1707.06347},
}""",
    }
    config_class, loss_name = PPOConfig, "actor_loss"

    def __init__(self, model, reward_funcs=None, args: PPOConfig | None = None, *positional, **kwargs):
        super().__init__(model, reward_funcs, args, *positional, **kwargs)
        if self.args.target_kl is not None and self.is_deepspeed_enabled:
            raise InputError("--target_kl cannot skip DeepSpeed's steps: leave it out")
        self.exceeded_target_kl = False  # the policy is further than target_kl from the one of the current rollout
        self.add_callback(_SkipSteps(self))

    # The algorithm. Trainer's loop calls the first method once per rollout, the second before each further epoch over
    # it, and the third for each minibatch; then it clips the gradients (`clip_grad_norm`) and steps.

    def training_batch(self, rows: list[dict]) -> dict[str, Any]:
        args, self.exceeded_target_kl = self.args, False

        # 1. Rollout: the policy answers the prompts, and the reward functions score the answers. A completion without
        #    any reward trains neither actor nor critic. Without a KL the loss knows the log-probabilities by itself.
        rollout = self.collect_rollout(rows, with_logps=bool(args.kl_coef))
        mask = rollout.mask * rollout.rewarded[:, None]

        # 2. Rewards: the KL to the reference at every token, the completion's score at the last.
        rewards = self.token_rewards(rollout)
        if args.whiten_rewards:
            rewards = whiten(rewards, mask, self.sum_over_processes, shift_mean=False)

        # 3. Values of the critic, in the states in which the tokens were chosen.
        values = self.rollout_values(rollout.tensors) * mask

        # 4. Generalized advantage estimation.
        advantages, returns = generalized_advantages(rewards, values, mask, args.gamma, args.lam)
        if args.whiten_advantages:
            advantages = whiten(advantages, mask, self.sum_over_processes)

        self._log_rollout(rollout, rewards, values, mask)
        return self.batch_of(rollout, advantages, old_values=values, returns=returns, rewarded=rollout.rewarded)

    def minibatches_of_next_epoch(self, minibatches: list[dict[str, Any]]) -> list[dict[str, Any]]:
        # 5. Epochs: each further one draws its minibatches anew from the rows of the rollout. (Scalars count for all.)
        rows = {
            name: torch.cat([batch[name] for batch in minibatches]) if tensor.dim() else tensor
            for name, tensor in minibatches[0].items()
        }
        return split_tensor_dict(shuffle_sequence_dict(rows), len(minibatches))

    def minibatch_loss(self, model: nn.Module, inputs: dict[str, Any]) -> Tensor:
        args, mask = self.args, loss_mask(inputs)

        # 6. Policy loss: -min(ratio * A, clip(ratio, 1 - cliprange, 1 + cliprange) * A), computed by GRPOTrainer. The
        #    same forward pass gives the new values. The KL to the reference is in the rewards, so beta is 0 here.
        policy_loss, outputs = self.policy_loss(model, inputs, beta=0.0)

        # 7. Value loss, clipped around the old values.
        values = completion_values(outputs.token_values, mask.shape[1])
        value_losses = clipped_value_losses(values, inputs["old_values"], inputs["returns"], args.cliprange_value)
        rewarded = mask * inputs["rewarded"][:, None]

        # 8. What is logged; the policy may be too far from the rollout's to go on with it.
        logps = outputs.log_probs[:, -mask.shape[1] :].detach()
        old_logps = inputs["old_per_token_logps"]
        log_ratio = torch.zeros_like(logps) if old_logps is None else logps - old_logps
        self.record_means(rewarded, critic_loss=value_losses.detach())
        figures = {"kl": -log_ratio, "approx_kl": k3(log_ratio)}
        if self.loss_type in CLIPPED:
            figures["clip_fraction"] = ((log_ratio.exp() - 1).abs() > args.cliprange).float()
        means = self.record_means(mask, **figures)
        if args.target_kl is not None and means["approx_kl"] > args.target_kl:
            self.exceeded_target_kl = True

        # 9. The loss of the minibatch; its gradients are clipped for actor and critic apart.
        return policy_loss + args.vf_coef * self.token_mean(value_losses, rewarded, inputs)

    # Rewards and figures

    def token_rewards(self, rollout: Rollout) -> Tensor:
        """(B, T) rewards of the tokens; all 0 for a completion without a reward."""
        scores = rollout.rewards.nan_to_num(0)
        if self.args.missing_eos_penalty is not None:
            scores = scores - self.args.missing_eos_penalty * ~rollout.ended
        mask = rollout.mask * rollout.rewarded[:, None]
        return token_rewards(scores, self._kl_estimates(rollout), self.args.kl_coef, mask)

    def _kl_estimates(self, rollout: Rollout) -> Tensor:
        """(B, T): estimates of the KL from the reference, from the chosen tokens; 0 without a reference."""
        if rollout.ref_logps is None:
            return torch.zeros_like(rollout.mask, dtype=torch.float)
        log_ratio = rollout.ref_logps - rollout.logps
        return -log_ratio if self.args.kl_estimator == "k1" else k3(log_ratio)

    def _log_rollout(self, rollout: Rollout, rewards: Tensor, values: Tensor, mask: Tensor) -> None:
        _, outcomes = generalized_advantages(rewards, values, mask, self.args.gamma, lam=1.0)
        sums = torch.stack([part.double().sum() for part in value_moments(values, outcomes, mask).values()])
        self.record(explained_variance=explained_variance(*self.sum_over_processes(sums).tolist()))
        self.record_means(torch.ones_like(rollout.lengths), avg_response_len=rollout.lengths)
        if rollout.ref_logps is not None:
            self.record_means(rollout.mask, kl_ref=self._kl_estimates(rollout))

    # Evaluation

    def answer_figures(self, rollout: Rollout) -> dict[str, Tensor]:
        mask, rewards = rollout.mask * rollout.rewarded[:, None], self.token_rewards(rollout).double()
        values = (self.rollout_values(rollout.tensors) * mask).double()
        zeros = torch.zeros_like(rewards)
        _, outcomes = generalized_advantages(rewards, zeros, mask, self.args.gamma, lam=1.0)
        _, lengths = generalized_advantages(mask.to(rewards), zeros, mask, self.args.gamma, lam=1.0)
        parts = torch.stack([mask.to(rewards), outcomes, lengths, values], -1)
        products = torch.einsum("bti,btj->bij", parts, parts)
        return {"products": products, "token_rewards": torch.stack([rewards.sum(1), rewards.square().sum(1)], 1)}

    def summarize(self, figures: dict[str, Tensor]) -> dict[str, float]:
        """From sums over tokens of all products of 1, return, discounted length and value.

        Whitened over all answers a reward is `scale * r + shift`, and a return `scale * return + shift * length`, so
        the figures do not depend on the batches.
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
        value_loss = 0.5 * sums["squared_errors"] / count if count else float("nan")
        return {"value_loss": value_loss, "explained_variance": explained_variance(count, **sums)}

    # State

    def method_state(self) -> dict[str, Any]:
        return {"too_far": self.exceeded_target_kl}

    def load_method_state(self, state: dict[str, Any]) -> None:
        self.exceeded_target_kl = state["too_far"]


class _SkipSteps(TrainerCallback):
    """Skips optimizer steps once the policy is further than target_kl from the rollout's: no gradient, no step."""

    def __init__(self, trainer: PPOTrainer):
        self.trainer = trainer

    def on_pre_optimizer_step(self, args, state, control, **kwargs):
        self.trainer.record(skipped_steps=float(self.trainer.exceeded_target_kl))
        if self.trainer.exceeded_target_kl:
            self.trainer.model.zero_grad(set_to_none=True)
