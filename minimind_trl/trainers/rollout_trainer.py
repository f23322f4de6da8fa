"""GRPOTrainer as a base for online trainers: the only file that knows its private names.

TRL supplies rollouts, tools, vLLM, PEFT and distribution. A subclass supplies, through the hooks of `RolloutTrainer`,
which prompts to answer, what the answers are worth, further terms of the loss, and state to resume from.
"""

import inspect
import math
import random
import sys
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate.utils import gather_object, is_peft_model
from datasets import IterableDataset
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import GenerationConfig
from transformers.integrations.deepspeed import is_deepspeed_zero3_enabled
from trl import GRPOTrainer
from trl.data_utils import is_conversational
from trl.models import prepare_deepspeed, prepare_fsdp, unwrap_model_for_generation
from trl.trainer.callbacks import SyncRefModelCallback
from trl.trainer.utils import (
    add_fused_lm_head,
    disable_dropout_in_model,
    get_callable_name,
    is_async_callable,
    pad,
    shuffle_sequence_dict,
    split_tensor_dict,
    use_adapter,
)

from ..errors import InputError
from ..evaluation.answers import until_end
from ..evaluation.held_out import evaluating
from ..models.decoding import can_sample, sample
from ..rewards import Reward, declared_range
from .doctor import RLDoctor
from .lm_head import add_learned_positions_head, base_model, unpatched_copy
from .trainer_mixin import TrainerMixin

# What of GRPOTrainer this file leans on: methods with the parameters that are passed, and attributes.
_METHODS = {
    "_generate_and_score_completions": ("inputs",),
    "_calculate_rewards": ("inputs", "prompts", "completions", "completion_ids_list"),
    "_get_per_token_logps_and_entropies": (
        *("model", "input_ids", "attention_mask", "logits_to_keep", "batch_size", "compute_entropy"),
    ),
    "_compute_loss": ("model", "inputs"),
    "_prepare_inputs": ("generation_batch",),
    "_get_train_sampler": ("dataset",),
    "_generate": ("prompts",),
    "_generate_single_turn": ("prompt_ids", "images", "multimodal_fields", "num_generations"),
    "_tokenize_prompts": ("prompts",),
}
_ATTRIBUTES = (
    *("_metrics", "_step", "_buffered_inputs", "_tokenizer", "generation_config", "generation_kwargs", "eos_token_ids"),
    *("num_generations_eval", "reward_weights", "reward_func_names", "ref_model", "beta", "temperature", "use_vllm"),
    *("_logs", "_pending_metrics", "_pending_extra_logs", "_entropy_bonus_enabled", "epsilon_low", "epsilon_high"),
    *("mask_truncated_completions", "aux_loss_enabled", "router_aux_loss_coef", "loss_type"),
    *("chat_template", "chat_template_kwargs", "environment_factories", "tools", "rollout_func"),
)
_STATE = "rollout_state-{}.pt"
_SHARED_STATE = _STATE.format("shared")
TEMPLATE_KWARGS = "chat_template_kwargs"  # the column with a prompt's own arguments of the chat template
_OVER_A_STEP = ("cispo", "dapo", "vespo")  # losses of which a micro-batch gives its part, and not a mean of its own
_UNREWARDED = 10  # rollouts in a row without any reward that are too many; at the start one is
_LOGITS_AT_ONCE = 2**23  # of each of two models, as float32: 34 MB


@dataclass
class Rollout:
    """What one process has generated from one batch of prompts: B completions of at most T tokens.

    Attributes:
        rows: of the data set, one for each completion.
        tokens: TRL's batch: `prompt_ids`, `prompt_mask` (B, P), `completion_ids`, `completion_mask` (B, T), ...
        mask: (B, T), 1 where the policy has chosen the token.
        logps: (B, T) log-probabilities under the policy that generated, where the trainer asks for them.
        ref_logps: (B, T) under the reference, where there is one.
        rewards: (B,) weighted sums; NaN where no function gave a reward.
        gathered: (N, functions) rewards of all processes, in the order of their ranks; NaN where a function gave none.
        lengths: (B,) tokens that the policy has chosen, also where `mask` leaves out a completion that was cut off.
        ended: (B,) whether the completion ends by itself.
        extra: tensors with B rows that a hook adds; `extra_loss` finds them in its batch.
    """

    rows: list[dict]
    tokens: dict[str, Any]
    mask: Tensor
    logps: Tensor | None
    ref_logps: Tensor | None
    rewards: Tensor
    gathered: Tensor
    lengths: Tensor
    ended: Tensor
    extra: dict[str, Tensor] = field(default_factory=dict)

    @property
    def rewarded(self) -> Tensor:
        """(B,): whether the completion has a reward."""
        return ~self.rewards.isnan()


class RolloutTrainer(TrainerMixin, GRPOTrainer):
    """GRPOTrainer with hooks, held-out evaluation that means something, and a resume that is exact at every step.

    Hooks for subclasses, all of which every process calls:

    - `choose_rows(rows)`: which rows of the data set to answer in place of the sampler's;
    - `advantages(rollout)`: (B,) or (B, T), in place of GRPO's; None keeps those;
    - `extra_loss(model, inputs)`: added to the loss of a batch, scaled like `token_mean`;
    - `rollout_figures(rollout)`: more held-out figures, a row of numbers for each completion;
    - `engine_weights()`: a context around the copying of weights to vLLM;
    - `trainer_state()` and `load_trainer_state(state)`: what a checkpoint must keep, tensors and plain values; copies
      of what changes in place.

    A conversational prompt may bring arguments of the chat template in the column `chat_template_kwargs`, which go
    before those of `args`. Reward functions get the prompts as the model reads them as `rendered_prompts`.

    Evaluation answers the held-out prompts greedily, or at `eval_temperature` with a generator of its own, and leaves
    every random stream of the training alone: with it or without, the weights are the same. It reports `eval_reward`,
    `eval_rewards/NAME`, `eval_kl` (the KL to the reference over the whole vocabulary, at training's temperature, mean
    over the answers' tokens), `eval_entropy`, `eval_eos_rate`, `eval_completion_length`, `eval_prompts`,
    `eval_answers`, and as `eval_policy_loss` and `eval_loss` the clipped surrogate on answers that were sampled at the
    first evaluation, with their log-probabilities and rewards then: 0 there, below while the policy does more of what
    was good and less of what was bad; far from those answers it says little.
    Several evaluation sets get their names into the keys: `eval_NAME_reward`.

    A completion for which every reward function gives None has no reward: it is left out of all means and deviations of
    rewards, its advantage is 0, and `frac_reward_none` and `eval_frac_reward_none` tell the share of them.
    `mask_truncated_completions` is for training; in evaluation answers that are cut off count like all others.

    Args:
        reward_funcs: functions, `Reward`s, or paths of reward models, as for GRPOTrainer.
        ref_model: where `args.beta` is not 0; by default a copy of `model` as it is.

    With `args.reward_errors="none"` a completion on which a reward function fails gets None from it, and
    `num_reward_errors` in the logs counts them, those of evaluation too; a first one is told of on stderr.

    Raises:
        InputError: fewer prompts than one rollout answers; in evaluation, a reward function returned something that is
            no reward (see `Reward`), or no completion of the first rollout, or of ten in a row, has any reward.
        TrainingError: the same while training.
    """

    needs_logps = False  # whether `Rollout.logps` is wanted
    kl_in_loss = True  # whether `beta` weighs TRL's term of the loss; else the subclass uses it
    loss_name = "policy_loss"  # of the loss without `extra_loss`, in the logs
    shares_state = False  # whether `trainer_state` is the same in every process, and so is written once
    redraws = False  # whether each epoch over a rollout has minibatches of its own
    _told_of_reward_error = False
    _sampler = None  # of the training prompts, unless they are a stream

    def __init__(self, model, reward_funcs=None, args=None, *positional, ref_model: nn.Module | None = None, **more):
        if isinstance(model, str):
            raise TypeError("give the model itself, such as load_model(path)")
        if args is None:
            raise TypeError("give args, such as RolloutConfig(output_dir)")
        functions = reward_funcs if isinstance(reward_funcs, list) else [] if reward_funcs is None else [reward_funcs]
        beta, args.beta = args.beta, 0.0  # TRL would build the reference from the model's path, and ours may have none
        sync, args.sync_ref_model = args.sync_ref_model, False
        if beta and is_peft_model(model):
            raise InputError("a PeftModel brings no reference: merge its adapter, and give peft_config for a new one")
        if ref_model is not None and more.get("peft_config") is not None:
            raise InputError("with peft_config the reference is the model without its adapter: leave ref_model out")
        reference = ref_model if ref_model is not None or not beta else unpatched_copy(model)
        super().__init__(model, [_checked(function) for function in functions], args, *positional, **more)
        args.beta, self.beta, args.sync_ref_model = beta, beta, sync
        if args.cast_lm_head_to_fp32 and is_deepspeed_zero3_enabled():
            raise InputError("--cast_lm_head_to_fp32 cannot be had under ZeRO-3: leave it out, or take ZeRO-2")
        if not args.cast_lm_head_to_fp32:
            bonus = self._entropy_bonus_enabled
            add_learned_positions_head(self._base_model(), self.temperature, entropy_gradient=bonus)
        if sync and (not beta or is_peft_model(self.model)):
            why = "with LoRA it is the model without its adapter" if beta else "beta is 0, so there is none"
            raise InputError(f"--sync_ref_model has no reference model to move: {why}")
        if beta and not is_peft_model(self.model):  # of LoRA the reference is the model without it
            self._add_reference(reference, sync)
        self._refuse_too_few_prompts()
        self.num_tokens_generated = self.num_reward_errors = 0
        for reward in self._own_rewards():
            alone = self.accelerator.num_processes == 1  # else the others must hear of it before it is raised
            reward.on_error = "none" if args.reward_errors == "none" else "raise" if alone else "note"
        self.new_logps: Tensor | None = None  # (B, T) of the batch whose loss is computed, for `extra_loss`
        self._rewards: Tensor | None = None  # of the last batch, of all processes
        self._rows: list[dict] = []  # whose prompts are being answered
        self._lengths = self._ended = torch.empty(0)  # of this process's completions in it
        self._unrewarded = _UNREWARDED - 1  # rollouts in a row without any reward
        self._frozen: dict[str, list[dict]] = {}
        self._brief_doctors()

    # Hooks

    def choose_rows(self, rows: list[dict]) -> list[dict]:
        return rows

    def advantages(self, rollout: Rollout) -> Tensor | None:
        return None

    def extra_loss(self, model: nn.Module, inputs: dict[str, Any]) -> Tensor | None:
        return None

    def rollout_figures(self, rollout: Rollout) -> dict[str, Tensor]:
        return {}

    def summary(self, figures: dict[str, Tensor]) -> dict[str, float]:
        """More held-out figures from those of every completion, (N,) each; by default none."""
        return {}

    @contextmanager
    def engine_weights(self) -> Iterator[None]:
        yield

    def trainer_state(self) -> dict[str, Any]:
        return {}

    def packed_state(self, state: dict[str, Any]) -> dict[str, Any]:
        """`trainer_state` as it is written to a file."""
        return state

    def load_trainer_state(self, state: dict[str, Any]) -> None:
        pass

    # For subclasses

    def declared_range(self) -> tuple[float, float]:
        """Lowest and highest weighted sum of the rewards; infinite where a function does not declare it."""
        return declared_range(self.reward_funcs, self.reward_weights.tolist())

    def record(self, **figures: float) -> None:
        """Figures for the next log; several of one name are averaged, and NaN says that there is none."""
        for name, value in figures.items():
            if not math.isnan(value := float(value)):
                self._metrics["train" if self.model.training else "eval"][name].append(value)

    def total(self, values: Tensor) -> Tensor:
        """The sum over all processes."""
        return self.accelerator.reduce(values, "sum")

    def gathered(self, values: list) -> list:
        """Python values of all processes, in the order of their ranks."""
        return gather_object(values) if self.accelerator.num_processes > 1 else values

    def own(self, values: Any, count: int) -> Any:
        """This process's `count` of values of all processes."""
        first = self.accelerator.process_index * count
        return values[first : first + count]

    def weighted(self, rewards: Tensor) -> Tensor:
        """(N,) sums of rewards (N, functions) with `reward_weights`, of the functions that apply; NaN of none."""
        sums = (rewards * self.reward_weights.to(rewards.device)).nansum(1)
        return sums.masked_fill(rewards.isnan().all(1), math.nan)

    def expect_rewards(self, rewards: Tensor) -> None:
        """Note what a rollout got, NaN for nothing.

        Raises:
            InputError: no completion has a reward, in the first rollout or in ten in a row.
        """
        if not rewards.isnan().all():
            self._unrewarded = 0
            return
        self._unrewarded += 1
        if self._unrewarded >= _UNREWARDED:
            names, count = ", ".join(self.reward_func_names), len(rewards)
            raise InputError(f"{count} of {count} completions have no reward: {names} returned None for them")

    def token_mean(self, values: Tensor, mask: Tensor, inputs: dict[str, Any]) -> Tensor:
        """Mean over the tokens of a whole optimizer step; what micro-batches and processes give adds up to it."""
        share = inputs["num_items_in_batch"].clamp(min=1) / self.accelerator.num_processes
        if self.model.training:
            share = share * self.current_gradient_accumulation_steps / self.args.steps_per_generation
        return (values * mask).sum() / share

    def logps_of(self, model: nn.Module, tokens: dict[str, Any], entropy: bool = False) -> tuple[Tensor, Tensor | None]:
        """Log-probabilities (B, T) of a rollout's completions, and entropies; call it without gradients."""
        size = self.args.per_device_train_batch_size if self.model.training else self.args.per_device_eval_batch_size
        logps, entropies, _ = self._get_per_token_logps_and_entropies(
            model,
            *whole(tokens),
            tokens["completion_ids"].shape[1],
            batch_size=size,
            compute_entropy=entropy,
        )
        return logps, entropies

    def complete(self, model: nn.Module, prompt_ids: list[list[int]]) -> list[list[int]]:
        """Completions by a model with the policy's tokens, sampled as the policy's are, up to and with their ends."""
        prompts = [torch.tensor(ids) for ids in prompt_ids]
        ids = pad(prompts, padding_value=self._tokenizer.pad_token_id, padding_side="left")
        mask = pad([torch.ones_like(prompt) for prompt in prompts], padding_value=0, padding_side="left")
        device = self.accelerator.device
        quick = device.type == "cpu" and can_sample(model.config, self.generation_config)
        with torch.no_grad():
            output = model.generate(
                input_ids=ids.to(device),
                attention_mask=mask.to(device),
                generation_config=self.generation_config,
                custom_generate=sample if quick else None,
            )
        return [until_end(said, self.eos_token_ids) for said in output[:, ids.shape[1] :].tolist()]

    def rewards_of(self, rows: list[dict], completion_ids: list[list[int]]) -> Tensor:
        """(N, functions) rewards, of all processes, of completions that are not the policy's: nothing is logged."""
        texts = self._tokenizer.batch_decode(completion_ids, skip_special_tokens=True)
        rows = [self._with_rendered_prompt(row) for row in rows]
        prompts = [row["prompt"] for row in rows]
        talk = is_conversational(rows[0])
        completions = [[{"role": "assistant", "content": text}] for text in texts] if talk else texts
        own = self._rewards
        rewards, self._rewards = self._calculate_rewards(rows, prompts, completions, completion_ids), own
        self._pending_metrics.clear()
        self._pending_extra_logs.clear()
        return rewards

    def answer(self, rows: list[dict]) -> list[dict[str, Any]]:
        """One sampled completion for each row, without a trace in the training: `{prompt, completion, reward}`.

        A completion without any reward has None. All processes must call it with the same rows, and get the same.
        """
        answers = []
        with self._apart(), self._sampling(self.temperature):
            for local, count in self._shares(rows):
                rollout = self._rollout(local, self._generate_and_score_completions(local))
                said = [
                    ids[kept.bool()].tolist()
                    for ids, kept in zip(rollout.tokens["completion_ids"], rollout.mask, strict=True)
                ]
                texts = self._tokenizer.batch_decode(said, skip_special_tokens=True)
                mine = [
                    {"prompt": row["prompt"], "completion": text, "reward": None if math.isnan(reward) else reward}
                    for row, text, reward in zip(local, texts, rollout.rewards.tolist(), strict=True)
                ]
                answers += self.gathered(mine)[:count]
        self._metrics["eval"].clear()
        return answers

    # Training

    def _generate_and_score_completions(self, inputs: list[dict]) -> dict[str, Any]:
        training = self.model.training
        rows = self.choose_rows(inputs) if training else inputs
        self._rows = rows = [self._with_rendered_prompt(row) for row in rows]
        seen = self.state.num_input_tokens_seen
        tokens = super()._generate_and_score_completions(rows)
        self.state.num_input_tokens_seen = seen  # counted where they are trained on
        if not training:
            return tokens
        self.expect_rewards(self._rewards)
        self.record(frac_reward_none=self._rewards.isnan().all(1).float().mean())
        if self.num_generations == 1:
            self._metrics["train"].pop("frac_reward_zero_std", None)
        rollout = self._rollout(rows, tokens)
        self.num_tokens_generated += int(self.total(rollout.lengths.sum()))
        with torch.no_grad():
            if self.needs_logps:
                if "old_per_token_logps" not in tokens:
                    tokens["old_per_token_logps"], _ = self.logps_of(self.model, tokens)
                rollout.logps = tokens["old_per_token_logps"]
            advantages = self.advantages(rollout)
        if advantages is not None:
            tokens["advantages"] = advantages
            self._show_advantages(advantages, rollout.mask)
        return tokens | rollout.extra

    def _with_rendered_prompt(self, row: dict) -> dict:
        if self.environment_factories is not None:  # which change the prompt
            return row
        prompt = row["prompt"]
        return row | {"rendered_prompts": prompt if isinstance(prompt, str) else self._render(row, tokenize=False)}

    def _render(self, row: dict, **how: Any) -> Any:
        return self.processing_class.apply_chat_template(
            row["prompt"],
            tools=self.tools or None,
            chat_template=self.chat_template,
            add_generation_prompt=True,
            **how,
            **(self.chat_template_kwargs | (row.get(TEMPLATE_KWARGS) or {})),
        )

    def _tokenize_prompts(self, prompts: list) -> tuple:
        own = any(row.get(TEMPLATE_KWARGS) for row in self._rows) and not isinstance(prompts[0], str)
        if self.environment_factories is not None or not own:
            return super()._tokenize_prompts(prompts)
        rows = [row | {"prompt": prompt} for row, prompt in zip(self._rows, prompts, strict=True)]
        return [self._render(row, tokenize=True, return_dict=True)["input_ids"] for row in rows], None, {}

    def _generate(self, prompts: list) -> tuple:
        generated = super()._generate(prompts)
        _, completion_ids, tool_mask, *_ = generated
        chosen = [len(ids) for ids in completion_ids] if tool_mask is None else [sum(mask) for mask in tool_mask]
        ended = [ids[-1] in self.eos_token_ids for ids in completion_ids]
        self._lengths, self._ended = (torch.tensor(part, device=self.accelerator.device) for part in (chosen, ended))
        return generated

    def _prepare_inputs(self, generation_batch: Any) -> dict[str, Any]:
        of_epoch, of_rollout = self.args.steps_per_generation, self.args.steps_per_generation * self.num_iterations
        begins = self._step % of_epoch == 0 and self._step % of_rollout != 0
        if self.redraws and self.model.training and begins and self._buffered_inputs is not None:
            self._buffered_inputs = _redrawn(self._buffered_inputs)
        return super()._prepare_inputs(generation_batch)

    def _generate_single_turn(self, prompt_ids, images, multimodal_fields, *rest, **named):
        if self.use_vllm:
            with self.engine_weights():
                return super()._generate_single_turn(prompt_ids, images, multimodal_fields, *rest, **named)
        if images or multimodal_fields or self.is_deepspeed_enabled or self.is_fsdp_enabled:
            return super()._generate_single_turn(prompt_ids, images, multimodal_fields, *rest, **named)
        with unwrap_model_for_generation(
            self.model_wrapped,
            self.accelerator,
            generation_kwargs=self.generation_kwargs,
            gradient_checkpointing_kwargs=self.args.gradient_checkpointing_kwargs,
        ) as policy:
            return self.complete(policy, prompt_ids), None

    def _get_per_token_logps_and_entropies(self, *args, **kwargs):
        logps, entropies, aux_loss = super()._get_per_token_logps_and_entropies(*args, **kwargs)
        if torch.is_grad_enabled():
            self.new_logps = logps.detach()
        return logps, entropies, aux_loss

    def _show_advantages(self, advantages: Tensor, mask: Tensor) -> None:
        """Put them, of tokens the mean, into the table of completions, where TRL has its own."""
        if advantages.dim() == 2:
            advantages = (advantages * mask).sum(1) / mask.sum(1).clamp(min=1)
        shown = self.accelerator.gather(advantages.contiguous()).tolist()
        for place, value in enumerate(shown, start=len(self._logs["advantages"]) - len(shown)):
            self._logs["advantages"][place] = value

    def _own_rewards(self) -> list[Reward]:
        return [function for function in self.reward_funcs if isinstance(function, Reward)]

    def _face_reward_errors(self) -> None:
        """Count what reward functions have noted, or raise it in all processes."""
        noted = [error for reward in self._own_rewards() for error in reward.noted]
        for reward in self._own_rewards():
            reward.noted.clear()
        if self.args.reward_errors == "raise":
            self.fail_together(noted[0] if noted else None)
            return
        if noted and not self._told_of_reward_error:
            self._told_of_reward_error = True
            print(f"--reward_errors none: {noted[0]}; further ones are counted only", file=sys.stderr)
        self.num_reward_errors += int(self.total(torch.tensor(len(noted), device=self.accelerator.device)))

    def _calculate_rewards(self, *args, **kwargs) -> Tensor:
        rewards = super()._calculate_rewards(*args, **kwargs)
        self._face_reward_errors()
        if rewards.isinf().any():
            raise InputError("a reward is infinite")
        self._rewards = rewards
        return rewards

    def _rollout(self, rows: list[dict], tokens: dict[str, Any]) -> Rollout:
        return Rollout(
            rows=rows,
            tokens=tokens,
            mask=chosen_mask(tokens),
            logps=tokens.get("old_per_token_logps"),
            ref_logps=tokens.get("ref_per_token_logps"),
            rewards=self.own(self.weighted(self._rewards), len(rows)),
            gathered=self._rewards,
            lengths=self._lengths,
            ended=self._ended,
        )

    def _compute_loss(self, model, inputs):
        self._count(inputs)
        figures = self._metrics["train" if self.model.training else "eval"]
        before = {name: len(values) for name, values in figures.items()}
        beta = self.beta
        try:
            self.beta = beta if self.kl_in_loss else 0.0
            loss = super()._compute_loss(model, inputs)
        finally:
            self.beta = beta
        self.record(**{self.loss_name: self._policy_loss(loss.detach(), figures)})
        if self.mask_truncated_completions and not self.total(chosen_mask(inputs).sum()):
            for name in list(figures):  # of no token at all: they would be zeros
                _shorten(figures, name, before.get(name, 0))
        extra = self.extra_loss(model, inputs)
        return loss if extra is None else loss + extra

    def _policy_loss(self, loss: Tensor, figures: dict[str, list[float]]) -> float:
        """The loss of a micro-batch without an entropy bonus and the balancing of experts, as a part of the step's."""
        steps = self.current_gradient_accumulation_steps
        if self._entropy_bonus_enabled:  # TRL has it then
            mean = figures["policy_loss"][-1]
            _shorten(figures, "policy_loss", len(figures["policy_loss"]) - 1)
            return mean * (steps if self.loss_type in _OVER_A_STEP else 1)
        mean = self.total(loss).item() / self.accelerator.num_processes * steps
        return mean - self.router_aux_loss_coef * figures["aux_loss"][-1] if self.aux_loss_enabled else mean

    def _count(self, inputs: dict[str, Any]) -> None:
        if not self.model.training:
            return
        ids, mask = whole(inputs)
        self.add_tokens({"input_ids": ids, "attention_mask": mask})

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        if "loss" in logs:
            logs["num_tokens_generated"] = self.num_tokens_generated
            if self.args.reward_errors == "none":
                logs["num_reward_errors"] = self.num_reward_errors
        super().log(logs, start_time)

    def add_callback(self, callback) -> None:
        super().add_callback(callback)
        if hasattr(self, "_frozen"):  # not while being built
            self._brief_doctors()

    def _brief_doctors(self) -> None:
        """Tell a doctor what the rewards can be at best, which no log says."""
        for callback in self.callback_handler.callbacks:
            if isinstance(callback, RLDoctor) and callback.reward_range is None:
                callback.reward_range = self.declared_range()

    # Evaluation

    def evaluate(self, eval_dataset=None, ignore_keys=None, metric_key_prefix="eval") -> dict[str, float]:
        rows = self.eval_dataset if eval_dataset is None else eval_dataset
        if rows is None:
            raise ValueError("evaluation needs an eval_dataset")
        if isinstance(rows, dict):
            parts = [self.evaluate(part, ignore_keys, f"{metric_key_prefix}_{name}") for name, part in rows.items()]
            return {name: value for part in parts for name, value in part.items()}
        rows, key = list(rows), metric_key_prefix
        if key not in self._frozen:
            with self.untimed(), self._apart():
                self._frozen[key] = self._sample_frozen(rows)
        with self.untimed(), self._apart():
            figures = self._held_out(rows, self._frozen[key])
            figures = {f"{metric_key_prefix}_{name}": value for name, value in figures.items()}
            self._metrics["eval"].clear()  # TRL's, which weigh batches and not completions equally
            self.log(figures)
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, figures)
        return figures

    @contextmanager
    def _apart(self) -> Iterator[None]:
        """Evaluation mode with random streams of its own, which are the same every time; no answer is masked."""
        python, numpy = random.getstate(), np.random.get_state()
        masked, self.mask_truncated_completions = self.mask_truncated_completions, False
        with torch.random.fork_rng(), evaluating(self.model):
            seed = self.args.seed + self.args.process_index
            random.seed(seed)
            np.random.seed(seed)
            torch.manual_seed(seed)
            try:
                yield
            finally:
                self.mask_truncated_completions = masked
                random.setstate(python)
                np.random.set_state(numpy)

    @contextmanager
    def _sampling(self, temperature: float) -> Iterator[None]:
        """Generate at another temperature, one completion per prompt; 0 is greedy."""
        if self.use_vllm:
            kept, self.vllm_generation.temperature = self.vllm_generation.temperature, temperature
        else:
            changes = {"temperature": temperature} if temperature else {"do_sample": False, "temperature": None}
            if not temperature:
                changes |= {"top_p": None, "top_k": None, "min_p": None}
            kept = (self.generation_config, self.generation_kwargs)
            self.generation_kwargs = self.generation_kwargs | changes
            self.generation_config = GenerationConfig(**self.generation_kwargs, disable_compile=True)
        count, self.num_generations_eval = self.num_generations_eval, 1
        try:
            yield
        finally:
            self.num_generations_eval = count
            if self.use_vllm:
                self.vllm_generation.temperature = kept
            else:
                self.generation_config, self.generation_kwargs = kept

    def _held_out(self, rows: list[dict], frozen: list[dict]) -> dict[str, float]:
        loss = self._frozen_loss(frozen)
        repeats = self.args.num_generations_eval or 1 if self.args.eval_temperature else 1
        with self._sampling(self.args.eval_temperature):
            columns = self._answered([row for row in rows for _ in range(repeats)])
        tokens = columns.pop("tokens")
        rewards = columns.pop("rewards")
        sums = self.weighted(rewards)
        rewarded = sums[~sums.isnan()]
        figures = {
            "loss": loss,
            "policy_loss": loss,
            "reward": rewarded.mean().item(),
            "reward_std": rewarded.std(correction=0).item() if len(rewarded) else math.nan,
            **{f"rewards/{name}": rewards[:, i].nanmean().item() for i, name in enumerate(self.reward_func_names)},
            "entropy": (columns.pop("entropy").sum() / tokens.sum()).item(),
            "eos_rate": columns.pop("ended").mean().item(),
            "completion_length": tokens.mean().item(),
            "frac_reward_none": 1 - len(rewarded) / len(sums),
            "prompts": len(rows),
            "answers": len(sums),
        }
        if "kl" in columns:
            figures["kl"] = (columns.pop("kl").sum() / tokens.sum()).item()
        figures |= self.summary(columns)
        return {name: value for name, value in figures.items() if not math.isnan(value)}  # a mean of no reward

    def _answered(self, rows: list[dict]) -> dict[str, Tensor]:
        """Figures of the answers to all rows, a tensor with a row for each."""
        columns: dict[str, list[Tensor]] = defaultdict(list)
        for local, count in self._shares(rows):
            tokens = self._generate_and_score_completions(local)
            rollout = self._rollout(local, tokens)
            rollout.logps, entropies = self.logps_of(self.model, tokens, entropy=True)
            mine = {
                "tokens": rollout.mask.sum(1).float(),
                "entropy": (entropies * rollout.mask).sum(1),
                "ended": rollout.ended.float(),
                **self.rollout_figures(rollout),
            }
            if rollout.ref_logps is not None:
                mine["kl"] = (self._kl(tokens) * rollout.mask).sum(1)
            for name, column in mine.items():
                columns[name].append(self.accelerator.gather(column.contiguous())[:count])
            columns["rewards"].append(rollout.gathered[:count])
        every = {name: torch.cat(parts) for name, parts in columns.items()}
        self.expect_rewards(every["rewards"])
        return every

    def _kl(self, tokens: dict[str, Any]) -> Tensor:
        """(B, T): KL(policy || reference) in nats, over the whole vocabulary, where each of the tokens is chosen.

        Unlike an estimate from the tokens themselves it does not lean on how these were sampled, or were not.
        """
        (ids, mask), length = whole(tokens), tokens["completion_ids"].shape[1]
        # the same in every process, as a sharded model's forward passes must be
        rows = max(1, _LOGITS_AT_ONCE // ((self.max_completion_length or length) * self.model.config.vocab_size))
        parts = []
        for start in range(0, len(ids), rows):
            inputs = {"input_ids": ids[start : start + rows], "attention_mask": mask[start : start + rows]}
            policy = self._log_softmax(self.model, inputs, length)
            with self._reference() as reference:
                others = self._log_softmax(reference, inputs, length)
            parts.append(F.kl_div(others, policy, reduction="none", log_target=True).sum(-1))
        return torch.cat(parts)

    def _log_softmax(self, model: nn.Module, inputs: dict[str, Tensor], length: int) -> Tensor:
        with self.accelerator.autocast():
            logits = model(**inputs, logits_to_keep=length + 1, use_cache=False).logits[:, :-1]
        return (logits.float() / self.temperature).log_softmax(-1)

    @contextmanager
    def _reference(self) -> Iterator[nn.Module]:
        """The reference model; with LoRA the policy without its adapter, within the block."""
        if self.ref_model is not None:
            yield self.ref_model
            return
        with use_adapter(self.accelerator.unwrap_model(self.model), None):
            yield self.model

    def _shares(self, rows: list[dict]) -> Iterator[tuple[list[dict], int]]:
        """This process's part of every batch, and how many rows the whole batch has; the last row fills up."""
        world, size = self.accelerator.num_processes, self.args.per_device_eval_batch_size
        for start in range(0, len(rows), world * size):
            batch = rows[start : start + world * size]
            each = -(-len(batch) // world)
            filled = batch + [batch[-1]] * (each * world - len(batch))
            yield [dict(row) for row in self.own(filled, each)], len(batch)

    def _sample_frozen(self, rows: list[dict]) -> list[dict]:
        """Answers of the policy as it is now, their log-probabilities, and their rewards, normalised, as advantages."""
        frozen, rewards = [], []
        with self._sampling(self.temperature):
            for local, count in self._shares(rows):
                tokens = self._generate_and_score_completions(local)
                rollout = self._rollout(local, tokens)
                logps, _ = self.logps_of(self.model, tokens)
                real = count - self.accelerator.process_index * len(local)
                kept = (torch.arange(len(local), device=logps.device) < real) & rollout.rewarded
                names = ("prompt_ids", "prompt_mask", "completion_ids", "completion_mask")
                batch = {name: tokens[name] for name in names}
                batch |= {"mask": rollout.mask * kept[:, None], "logps": logps, "advantages": rollout.rewards}
                frozen.append(batch)
                rewards.append(self.accelerator.gather(rollout.rewards)[:count])
        every = torch.cat(rewards)
        self.expect_rewards(every)
        every = every[~every.isnan()]
        mean, deviation = (every.mean(), every.std(correction=0)) if len(every) else (0.0, 1.0)
        for batch in frozen:
            batch["advantages"] = ((batch["advantages"] - mean) / (deviation + 1e-4)).nan_to_num(0)
        return frozen

    def _frozen_loss(self, frozen: list[dict]) -> float:
        sums = torch.zeros(2, dtype=torch.float64, device=self.accelerator.device)
        for batch in frozen:
            logps, _ = self.logps_of(self.model, batch)
            ratio, advantages, mask = (logps - batch["logps"]).exp(), batch["advantages"][:, None], batch["mask"]
            clipped = ratio.clamp(1 - self.epsilon_low, 1 + self.epsilon_high)
            losses = -torch.min(ratio * advantages, clipped * advantages) * mask
            lengths = mask.sum(1)
            sums += torch.stack([(losses.sum(1) / lengths.clamp(min=1)).sum(), (lengths > 0).sum()]).double()
        loss, completions = self.total(sums).tolist()
        return loss / max(completions, 1)

    # State

    def _get_train_sampler(self, dataset=None):
        self._sampler = super()._get_train_sampler(dataset)
        return self._sampler

    def _run_epoch(self, *args, **kwargs) -> None:
        resumed = kwargs["resume_from_checkpoint"] is not None and kwargs["epoch"] == kwargs["epochs_trained"]
        if resumed and self._sampler is not None and self._sampler.shuffle:
            for _ in range(kwargs["epochs_trained"]):  # TRL's would give the first epoch's order of prompts again
                torch.randperm(self._sampler.num_samples, generator=self._sampler.generator)
        super()._run_epoch(*args, **kwargs)

    def snapshot(self) -> dict[str, Any]:
        return super().snapshot() | {"rollout": self._rollout_state()}

    def restore_snapshot(self, snapshot: dict[str, Any]) -> None:
        super().restore_snapshot(snapshot)
        self._load_rollout_state(snapshot["rollout"])

    def _rollout_state(self) -> dict[str, Any]:
        return {
            "step": self._step,
            "buffered": self._buffered_inputs,
            "num_tokens_generated": self.num_tokens_generated,
            "num_reward_errors": self.num_reward_errors,
            "frozen": dict(self._frozen),
            "trainer": self.trainer_state(),
        }

    def _load_rollout_state(self, state: dict[str, Any]) -> None:
        self._step, self._buffered_inputs = state["step"], state["buffered"]
        self.num_tokens_generated, self._frozen = state["num_tokens_generated"], state["frozen"]
        self.num_reward_errors = state.get("num_reward_errors", 0)  # checkpoints of earlier versions have none
        self.load_trainer_state(state["trainer"])

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        super()._save_optimizer_and_scheduler(output_dir)
        Path(output_dir).mkdir(parents=True, exist_ok=True)
        reference = self._base_reference().state_dict() if self.args.sync_ref_model else None
        state = self._rollout_state() | {"reference": reference}
        shared = self.packed_state(state["trainer"])
        state["trainer"] = None if self.shares_state else shared
        torch.save(state, Path(output_dir) / _STATE.format(self.args.process_index))
        if self.shares_state and self.args.should_save:
            torch.save(shared, Path(output_dir) / _SHARED_STATE)

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        super()._load_optimizer_and_scheduler(checkpoint)
        if checkpoint is None:
            return
        state = self._load_state(Path(checkpoint) / _STATE.format(self.args.process_index))
        if self.shares_state:
            state["trainer"] = self._load_state(Path(checkpoint) / _SHARED_STATE)
        self._load_rollout_state(state)
        if state["reference"] is not None:
            self._base_reference().load_state_dict(state["reference"])

    def _load_state(self, path: Path) -> dict[str, Any]:
        if not path.exists():
            raise InputError(f"{path.parent} has no {path.name}: it is no checkpoint of {type(self).__name__}")
        # By its type, because torch.load knows no cpu:0, which is where several processes on a CPU are.
        return torch.load(path, map_location=self.accelerator.device.type, weights_only=True)

    # Set-up

    def _refuse_too_few_prompts(self) -> None:
        args, rows = self.args, self.train_dataset
        prompts = args.generation_batch_size // args.num_generations
        if isinstance(rows, IterableDataset) or len(rows) >= prompts:
            return
        each = args.world_size * args.steps_per_generation
        sizes = range(len(rows) * args.num_generations // each, 0, -1)
        fitting = next((size for size in sizes if size * each % args.num_generations == 0), None)
        remedy = (
            f"set --per_device_train_batch_size {fitting}"
            if fitting
            else "set --per_device_train_batch_size 1 and lower --gradient_accumulation_steps or --num_mini_batches"
        )
        raise InputError(
            f"a rollout answers {prompts} prompts, and there are {len(rows)}, so that no step would be taken: {remedy}"
        )

    def _base_reference(self) -> nn.Module:
        return self.accelerator.unwrap_model(self.ref_model)

    def _base_model(self) -> nn.Module:
        return base_model(self.accelerator.unwrap_model(self.model))

    def _add_reference(self, reference: nn.Module, sync: bool) -> None:
        add_fused_lm_head(reference, temperature=self.temperature, cast_lm_head_to_fp32=self.args.cast_lm_head_to_fp32)
        if not self.args.cast_lm_head_to_fp32:
            add_learned_positions_head(reference, self.temperature)
        if self.args.disable_dropout:
            disable_dropout_in_model(reference)
        reference.eval().requires_grad_(False)
        if self.is_deepspeed_enabled:
            self.ref_model = prepare_deepspeed(reference, self.accelerator)
        elif self.is_fsdp_enabled:
            self.ref_model = prepare_fsdp(reference, self.accelerator)
        else:
            self.ref_model = self.accelerator.prepare_model(reference, evaluation_mode=True)
        if sync:
            self.add_callback(SyncRefModelCallback(ref_model=self.ref_model, accelerator=self.accelerator))


def whole(tokens: dict[str, Any]) -> tuple[Tensor, Tensor]:
    """Ids and mask of prompts with their completions, (B, P + T) each."""
    ids = torch.cat([tokens["prompt_ids"], tokens["completion_ids"]], 1)
    return ids, torch.cat([tokens["prompt_mask"], tokens["completion_mask"]], 1)


def chosen_mask(tokens: dict[str, Any]) -> Tensor:
    """(B, T): 1 where the policy has chosen the token, and no tool."""
    return tokens["completion_mask"] * tokens.get("tool_mask", 1)


def _redrawn(batches: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """As many batches, drawn anew from the rows of all of them."""
    every = {
        name: torch.cat([batch[name] for batch in batches]) if value.dim() else value  # which counts for all of them
        for name, value in batches[0].items()
    }
    return split_tensor_dict(shuffle_sequence_dict(every), len(batches))


def _shorten(figures: dict[str, list[float]], name: str, count: int) -> None:
    """Keep the first `count` values of a figure; one without any would be logged as None."""
    del figures[name][count:]
    if not figures[name]:
        del figures[name]


def broken_contract(trainer: GRPOTrainer | None = None) -> list[str]:
    """What TRL's GRPOTrainer lacks of that which `RolloutTrainer` leans on, a line each."""
    lines = []
    for name, wanted in _METHODS.items():
        method = getattr(GRPOTrainer, name, None)
        known = inspect.signature(method).parameters if method else {}
        if method is None:
            lines.append(f"GRPOTrainer.{name} is gone")
        lines += [f"GRPOTrainer.{name} takes no {part}" for part in wanted if method and part not in known]
    if trainer is not None:
        lines += [f"GRPOTrainer has no {name}" for name in _ATTRIBUTES if not hasattr(trainer, name)]
    return lines


def _checked(function: Any) -> Any:
    """Functions with their answers checked; models and paths, which TRL calls itself, as they are."""
    if isinstance(function, (str, nn.Module, Reward)) or is_async_callable(function):
        return function
    if not callable(function):
        raise InputError(f"a reward function is a function, a model or a path, not {function!r}")
    return Reward(function, get_callable_name(function))
