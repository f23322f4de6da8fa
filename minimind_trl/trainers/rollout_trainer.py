"""What GRPO, PPO and SPO share."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import torch
from accelerate.utils import is_peft_model
from datasets import IterableDataset
from torch import Tensor, nn
from transformers.integrations.deepspeed import is_deepspeed_zero3_enabled
from trl import GRPOTrainer
from trl.trainer.utils import get_config_model_id

from ..errors import InputError
from ..models import load_model
from ..tokenization import prepared_for_trl
from .lm_head import add_learned_positions_head, unpatched_copy
from .rollout import Rollout, joined, loss_mask
from .rollout_config import RolloutConfig
from .rollout_rewards import checked
from .rollout_samples import RolloutSamples
from .rollout_state import RolloutState
from .trainer_mixin import TrainerMixin

_TURNS = (
    "answers have different numbers of turns, and processes that share the weights would wait for each other for ever; "
    "use DDP or ZeRO-2"
)
_OVER_A_STEP = ("cispo", "dapo", "vespo")  # losses where a minibatch gives its part of the step's mean


class RolloutTrainer(RolloutState, TrainerMixin, GRPOTrainer):
    """GRPOTrainer whose held-out evaluation is meaningful and whose resume is exact at every step.

    Base of `MiniMindGRPOTrainer`, `PPOTrainer` and `SPOTrainer`, which tell their algorithm in `training_batch` (from
    prompts to advantages) and `minibatch_loss`. GRPOTrainer supplies tools, vLLM, PEFT and distribution.

    A conversational prompt may bring arguments for the chat template in the column `chat_template_kwargs`, which
    override those of `args`. Reward functions get the prompts as the model reads them as `rendered_prompts`.

    Evaluation answers the held-out prompts greedily, or at `eval_temperature` with a random stream of its own. It
    leaves every random stream of the training alone: the weights are the same with and without it. It reports
    `eval_reward`, `eval_rewards/NAME`, `eval_kl` (to the reference, over the whole vocabulary, at training's
    temperature, mean over the answers' tokens), `eval_entropy`, `eval_eos_rate`, `eval_completion_length`,
    `eval_prompts` and `eval_answers`. `eval_policy_loss` and `eval_loss` are the clipped surrogate on answers that were
    sampled at the first evaluation, with their log-probabilities and rewards at that time: 0 there, and lower when the
    policy does more of what was good and less of what was bad. Far from those answers it means little. With several
    evaluation sets the keys have their names: `eval_NAME_reward`.

    A completion for which every reward function returns None has no reward. It is left out of all means and deviations
    of rewards, and its advantage is 0; `frac_reward_none` and `eval_frac_reward_none` are their share.
    `mask_truncated_completions` applies to training only; evaluation counts truncated answers like all others.

    Args:
        model: a model, a `PeftModel`, or a path or Hub id for `load_model`.
        reward_funcs: functions, `Reward`s, or paths of reward models, as for GRPOTrainer.
        args: a config of `config_class`; by default one with `output_dir` NAME-METHOD, such as `minimind-GRPO`.
        ref_model: the reference, if `args.beta` is not 0; by default a copy of `model`. With a new adapter
            (`peft_config`) it is the model without it; for a `PeftModel` it is its adapter as it is at the start.
        watch_funcs: functions or `Reward`s, as `reward_funcs`, that training does not see. Evaluation reports
            `eval_watch/NAME`: where it falls while the reward rises, the policy exploits the reward.

    With `args.reward_errors="none"` a completion on which a reward function fails gets None from it, and
    `num_reward_errors` in the logs counts these, including those in evaluation; the first is printed to stderr.

    Raises:
        InputError: there are fewer prompts than one rollout answers; in evaluation, a reward function returned
            something that is no reward (see `Reward`), or no completion of the first rollout, or of ten in a row, has
            any reward.
        TrainingError: the same during training.
    """

    config_class: ClassVar[type[RolloutConfig]] = RolloutConfig
    loss_name = "policy_loss"  # the policy's loss in the logs
    _rollout_samples: RolloutSamples | None = None  # of the rollout that is trained on, until the next
    _rollout_step = 0

    def __init__(
        self,
        model,
        reward_funcs=None,
        args=None,
        *positional,
        ref_model: nn.Module | None = None,
        watch_funcs: Sequence = (),
        **kwargs,
    ):
        functions = reward_funcs if isinstance(reward_funcs, list) else [] if reward_funcs is None else [reward_funcs]
        model, args = self.model_and_config(model, args)
        has_adapter = is_peft_model(model) or kwargs.get("peft_config") is not None
        if ref_model is not None and has_adapter:
            raise InputError("an adapter brings its reference: leave ref_model out")
        beta, sync = args.beta, args.sync_ref_model
        if sync and (not beta or has_adapter):
            why = "an adapter brings its own" if beta else "beta is 0, so there is none"
            raise InputError(f"--sync_ref_model has no reference model to move: {why}")
        if args.cast_lm_head_to_fp32 and is_deepspeed_zero3_enabled():
            raise InputError("--cast_lm_head_to_fp32 does not work under ZeRO-3: leave it out, or use ZeRO-2")
        reference = None
        if beta and not has_adapter:  # GRPOTrainer would load it from the model's path, which ours may not have
            reference = unpatched_copy(model) if ref_model is None else ref_model
            args.beta, args.sync_ref_model = 0.0, False
        tokenizer = kwargs.get("processing_class")
        has_tools = bool(kwargs.get("tools") or kwargs.get("environment_factory"))
        if has_tools and is_deepspeed_zero3_enabled() and not args.use_vllm:
            raise InputError(f"tools under ZeRO-3: {_TURNS}")
        if has_tools and tokenizer is not None and getattr(tokenizer, "response_template", None) is None:
            kwargs["processing_class"] = prepared_for_trl(tokenizer)  # TRL knows no way to read MiniMind's calls
        super().__init__(model, [checked(function) for function in functions], args, *positional, **kwargs)
        if has_tools and self.is_fsdp_enabled and not args.use_vllm:
            raise InputError(f"tools under FSDP: {_TURNS}")
        if args.torch_compile and (self.is_fsdp_enabled or self.is_deepspeed_enabled):
            raise InputError("--torch_compile under FSDP and DeepSpeed is for recipes that train on rows: leave it out")
        self.check_environment_rewards(len(functions))
        args.beta, self.beta, args.sync_ref_model = beta, beta, sync
        if not args.cast_lm_head_to_fp32:
            add_learned_positions_head(
                self.base_policy(), self.temperature, entropy_gradient=self.has_entropy_bonus, pack=True
            )
        if reference is not None:
            self.add_reference(reference, sync)
        self._refuse_too_few_prompts()
        self.watch_funcs = [checked(function) for function in watch_funcs]
        self.prepare_reward_funcs()

    @classmethod
    def model_and_config(cls, model: str | nn.Module, args: RolloutConfig | None) -> tuple[nn.Module, RolloutConfig]:
        """The model, loaded if it is a path, and the config, by default one named after the model and the method."""
        if args is None:
            name = Path(model if isinstance(model, str) else get_config_model_id(model.config)).name
            args = cls.config_class(f"{name}-{cls.method}", use_cpu=not torch.accelerator.is_available())
        if isinstance(model, str):
            model, args.model_init_kwargs = load_model(model, **(args.model_init_kwargs or {})), None
        return model, args

    # The algorithm: GRPO's, which subclasses replace

    def training_batch(self, rows: list[dict]) -> dict[str, Any]:
        """From the prompts of the sampler to the tensors that the loss needs, of a whole rollout."""
        rollout = self.collect_rollout(rows)
        self._record_rollout(rollout, rollout.tensors)
        return rollout.tensors

    def minibatch_loss(self, model: nn.Module, inputs: dict[str, Any]) -> Tensor:
        return self.policy_loss(model, inputs, self.beta)[0]

    # Its parts

    def generate_batch(self, rows: list[dict]) -> dict[str, Any]:
        return self.training_batch(rows) if self.model.training else self.generate_rollout(rows).tensors

    def collect_rollout(self, rows: list[dict], with_logps: bool = False) -> Rollout:
        """Answer prompts for training: the rollout is counted, and must have a reward now and then.

        Args:
            with_logps: compute `Rollout.logps`, also where GRPO's loss would do without.
        """
        rollout = self.generate_rollout(rows)
        self.expect_rewards(rollout.all_rewards)
        self.record(frac_reward_none=rollout.all_rewards.isnan().all(1).float().mean())
        self.num_tokens_generated += int(self.sum_over_processes(rollout.lengths.sum()))
        if with_logps and rollout.logps is None:
            with torch.no_grad():
                rollout.logps, _ = self.logps_of(self.model, rollout.tensors)
        return rollout

    def batch_of(self, rollout: Rollout, advantages: Tensor, **more: Tensor) -> dict[str, Any]:
        """The tensors of a rollout for the loss.

        Args:
            advantages: (B,) or (B, T), in place of GRPO's.
            more: tensors of B rows that the loss needs.
        """
        self.current_metrics.pop("frac_reward_zero_std", None)  # of GRPO's groups
        shown = advantages
        if advantages.dim() == 2:
            shown = (advantages * rollout.mask).sum(1) / rollout.mask.sum(1).clamp(min=1)
        self.log_advantages(self.accelerator.gather(shown.contiguous()).tolist())
        tensors = rollout.tensors | {"old_per_token_logps": rollout.logps, "advantages": advantages, **more}
        self._record_rollout(rollout, tensors)
        return tensors

    def policy_loss(self, model: nn.Module, inputs: dict[str, Any], beta: float) -> tuple[Tensor, Any]:
        """GRPOTrainer's loss of a minibatch (`loss_type`, entropy bonus, router loss), and the model's output.

        Args:
            beta: weight of its KL to the reference.
        """
        ids, mask = joined(inputs)
        if self.model.training:
            self.add_tokens({"input_ids": ids, "attention_mask": mask})
        metrics = self.current_metrics
        before = {name: len(values) for name, values in metrics.items()}
        loss, outputs = self.grpo_loss(model, inputs, beta)
        if self._rollout_samples is not None and self.model.training:
            self._rollout_samples.see(inputs, outputs.log_probs[:, -inputs["completion_ids"].shape[1] :])
        self.record(**{self.loss_name: self._loss_to_log(loss.detach())})
        if self.mask_truncated_completions and not self.sum_over_processes(loss_mask(inputs).sum()):
            for name in list(metrics):  # means over no token, which would be logged as 0
                _truncate(metrics, name, before.get(name, 0))
        return loss, outputs

    def _loss_to_log(self, loss: Tensor) -> float:
        """The policy's own loss, without entropy bonus and router loss: a minibatch's part of the step's."""
        steps, metrics = self.current_gradient_accumulation_steps, self.current_metrics
        if self.has_entropy_bonus:  # then GRPOTrainer logs it
            mean = metrics["policy_loss"][-1]
            _truncate(metrics, "policy_loss", len(metrics["policy_loss"]) - 1)
            return mean * (steps if self.loss_type in _OVER_A_STEP else 1)
        mean = self.sum_over_processes(loss).item() / self.accelerator.num_processes * steps
        return mean - self.router_aux_loss_coef * metrics["aux_loss"][-1] if self.aux_loss_enabled else mean

    # Samples

    def _record_rollout(self, rollout: Rollout, tensors: dict[str, Any]) -> None:
        self.finish_samples()
        args = self.args
        steps = max(args.steps_per_generation * self.num_iterations // args.gradient_accumulation_steps, 1)
        if self.wants_samples("rollout", (self.state.max_steps - 1) // steps * steps):
            own = self.own_part(rollout.all_rewards, len(rollout.rows))
            self._rollout_samples = RolloutSamples(rollout, tensors, self.reward_func_names, own, self.text_tokenizer)
            self._rollout_step = self.state.global_step

    def finish_samples(self) -> None:
        if self._rollout_samples is not None:
            self.samples.add("rollout", self._rollout_step, self._rollout_samples.finished())
            self._rollout_samples = None

    # Logs and checks

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        if "loss" in logs:
            logs["num_tokens_generated"] = self.num_tokens_generated
            if self.args.reward_errors == "none":
                logs["num_reward_errors"] = self.num_reward_errors
        super().log(logs, start_time)

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


def _truncate(metrics: dict[str, list[float]], name: str, count: int) -> None:
    """Keep the first `count` values of a figure; GRPOTrainer would log one without values as None."""
    del metrics[name][count:]
    if not metrics[name]:
        del metrics[name]
