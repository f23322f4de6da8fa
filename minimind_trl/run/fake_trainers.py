"""The recipes' own trainers on models and rows without content, whose memory a plan counts."""

import copy
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import datasets
import torch
from accelerate.utils.deepspeed import HfDeepSpeedConfig
from datasets import Dataset
from transformers import PretrainedConfig, Trainer
from transformers.integrations.deepspeed import set_hf_deepspeed_config, unset_hf_deepspeed_config

from ..internals import fused_head_columns, modules_of_fake_tensors, use_cpu
from ..models import MiniMindForCausalLM, MiniMindForSequenceClassification
from ..models.adapters import lora_config
from ..tokenization import tiny_tokenizer, with_training_template
from ..trainers import add_learned_positions_head
from .memory import Memory, MemoryCounter, count_trainer

ONLINE = ("grpo", "ppo", "spo")
PAIRS = ("dpo", "reward")  # two rows of tokens for a row of the data set
_TOKEN = 5  # any that is not padding


@dataclass
class TrainerSetup:
    """What a recipe trains, and on what.

    Args:
        trainer_class: the recipe's.
        config: its config, of TRL.
        length: tokens of a row; for an online recipe, of a prompt.
        zero_stage: DeepSpeed's, 0 without it. Under ZeRO, weights themselves have 16 bits, not only the computation.
        teacher: config of the teacher of `distill`.
    """

    recipe: str
    trainer_class: type[Trainer]
    config: Any
    lora: Any
    model_config: PretrainedConfig
    length: int
    zero_stage: int = 0
    teacher: PretrainedConfig | None = None

    def count(self) -> Memory:
        """Build the trainer without data and count its memory."""
        config = self.config
        columns = self.model_config.vocab_size if config.device.type == "cpu" else 2**20  # see `fused_head_columns`
        with (
            tempfile.TemporaryDirectory() as folder,
            fused_head_columns(columns),
            _quiet(),
            modules_of_fake_tensors(),
            MemoryCounter() as memory,
        ):
            trainer = self._trainer(folder)
            batch, eval_batch, answer = self._batch(trainer), self._eval_batch(trainer), self._answer_length()
            return count_trainer(memory, trainer, batch, eval_batch, self.length, answer)

    def _answer_length(self) -> int:
        if self.recipe in ONLINE:
            return self.config.max_completion_length
        return self.config.max_new_tokens if getattr(self.config, "lmbda", 0) else 0

    def _trainer(self, folder: str) -> Trainer:
        config = self._config(folder)
        model, extra = self._model(), {}
        if self.recipe == "dpo" and not self.lora.use_peft:
            extra["ref_model"] = copy.deepcopy(model)
        if self.recipe == "distill":
            extra["teacher_model"] = MiniMindForCausalLM(self.teacher).eval().requires_grad_(False)
        if self.recipe in ONLINE:
            extra |= {"reward_funcs": _no_reward, "rollout_func": self._rollout}
        with _zero_stage(self.zero_stage):
            trainer = self.trainer_class(
                model=model,
                args=config,
                processing_class=with_training_template(tiny_tokenizer()),
                train_dataset=self._rows(),
                peft_config=lora_config(self.lora, model),
                **extra,
            )
            if self.recipe == "dpo" and self.zero_stage:  # see the trainer, which does so under DeepSpeed
                for part in filter(None, (trainer.model, trainer.ref_model)):
                    add_learned_positions_head(part, for_preferences=True)
        if getattr(self.config, "precompute_ref_log_probs", False):
            # What a constructor that precomputes leaves behind; it would hash the weights.
            trainer.precompute_ref_logps, trainer.ref_model = True, None
        return trainer

    def _config(self, folder: str) -> Any:
        """The recipe's config for a trainer on the CPU that reports, uploads and saves nothing."""
        config = copy.copy(self.config)
        use_cpu(config)
        is_half = (config.bf16 or config.fp16) and not self.zero_stage
        config.bf16, config.fp16 = is_half, False  # an fp16 number takes as much, and has no CPU kernels
        config.mixed_precision = "bf16" if is_half else "no"
        changes = {
            "output_dir": folder,
            "report_to": [],
            "push_to_hub": False,
            "eval_strategy": "no",
            "load_best_model_at_end": False,
            "max_length": self.length,
            "assistant_only_loss": False,  # rows without text; all of their tokens are learned
            "precompute_ref_log_probs": False,  # see `_trainer`
            "lmbda": 0.0,  # answers of the student, and of the teacher, are counted as generation
            "seq_kd": False,
            "reward_weights": None,
            "reward_range": None,
            "init_rollouts": 0,
            "opponent": None,
        }
        for name, value in changes.items():
            if hasattr(config, name):
                setattr(config, name, value)
        return config

    def _model(self) -> MiniMindForCausalLM | MiniMindForSequenceClassification:
        model_config = copy.deepcopy(self.model_config)
        if self.recipe == "reward":
            model_config.num_labels = 1
        kind = MiniMindForSequenceClassification if self.recipe == "reward" else MiniMindForCausalLM
        model = kind(model_config)
        if self.zero_stage and (self.config.bf16 or self.config.fp16):
            model.to(torch.bfloat16)
        return model

    def _rows(self) -> Dataset:
        """Short rows that the trainer's constructor takes; what is counted are those of `_batch`."""
        if self.recipe in ONLINE:
            return Dataset.from_dict({"prompt": [f"{number}" for number in range(self.config.generation_batch_size)]})
        prompt, answer = [{"role": "user", "content": "1"}], [{"role": "assistant", "content": "2"}]
        if self.recipe == "distill":
            return Dataset.from_list([{"messages": prompt + answer}])
        if self.recipe == "dpo":
            return Dataset.from_list([{"prompt": prompt, "chosen": answer, "rejected": answer}])
        return Dataset.from_dict({name: [ids[:2]] for name, ids in self._row().items()})

    def _row(self) -> dict[str, list[int]]:
        ids = [_TOKEN] * self.length
        if self.recipe == "dpo":
            return {"prompt_ids": ids[:1], "chosen_ids": ids[1:], "rejected_ids": ids[1:]}
        names = ("chosen_ids", "rejected_ids") if self.recipe == "reward" else ("input_ids", "labels")
        return dict.fromkeys(names, ids)

    def _batch(self, trainer: Trainer, rows: int | None = None) -> Any:
        rows = rows or self.config.per_device_train_batch_size
        if self.recipe in ONLINE:
            rows *= self.config.steps_per_generation
            return [dict(trainer.train_dataset[number]) for number in range(rows)]
        row = self._row()
        if self.recipe == "dpo" and self.config.precompute_ref_log_probs:
            row |= {"ref_chosen_logps": 0.0, "ref_rejected_logps": 0.0}
        return trainer.data_collator([dict(row) for _ in range(rows)])

    def _eval_batch(self, trainer: Trainer) -> Any:
        rows = self.config.per_device_eval_batch_size
        if self.recipe in ONLINE:
            return None
        if self.recipe in PAIRS:
            return self._batch(trainer, rows)
        return [([_TOKEN] * self.length, [True] * self.length)] * rows

    def _rollout(self, prompts: list, trainer: Trainer) -> dict[str, list]:
        """TRL's hook in place of generation: prompts and answers of the greatest length."""
        prompt, answer = [_TOKEN] * self.length, [_TOKEN] * self.config.max_completion_length
        return {"prompt_ids": [prompt] * len(prompts), "completion_ids": [answer] * len(prompts), "logprobs": None}


def _no_reward(completions: list, **columns: Any) -> list[float]:
    return [0.0] * len(completions)


_no_reward.low, _no_reward.high = 0.0, 1.0  # SPO wants a range


@contextmanager
def _zero_stage(stage: int) -> Iterator[None]:
    """Let transformers report this stage of ZeRO, 0 for none, without DeepSpeed."""
    settings = HfDeepSpeedConfig({"zero_optimization": {"stage": stage}})  # transformers keeps a weak reference
    if stage:
        set_hf_deepspeed_config(settings)
    try:
        yield
    finally:
        if stage:
            unset_hf_deepspeed_config()


@contextmanager
def _quiet() -> Iterator[None]:
    """Hide the libraries' warnings, which concern a training, and the progress bars of the stand-in rows."""
    disabled = datasets.are_progress_bars_disabled()
    datasets.disable_progress_bars()
    with warnings.catch_warnings(action="ignore"):
        try:
            yield
        finally:
            if not disabled:
                datasets.enable_progress_bars()
