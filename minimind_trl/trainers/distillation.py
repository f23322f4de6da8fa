"""Distillation, by the GKD trainer that TRL keeps among its experiments; apart, because only its recipe loads these."""

import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import torch
from datasets import Dataset, DatasetDict, IterableDataset

from ..data import DatasetMixer
from ..errors import InputError
from ..evaluation.held_out import evaluating
from ..models import MiniMindForCausalLM, load_model
from ..models.stored import NATIVE_SUFFIXES
from ..run.arguments import OWN_EVALUATION, MachineDefaults
from ..run.learning_rates import settle_learning_rate
from ..run.option_ranges import SHARE
from ..run.training import HeldOutEvaluation, adapter_for, capped, refusals, run, settle, tell_dropped, with_labels
from ..tokenization import with_training_template
from . import AnswersCollator

# TRL warns of its experimental parts, which may change; the lock holds the version that this was tested with.
os.environ.setdefault("TRL_EXPERIMENTAL_SILENCE", "1")
from trl.experimental.gkd import GKDConfig, GKDTrainer


@dataclass
class DistillationConfig(MachineDefaults, GKDConfig):
    """A student that imitates a teacher's probabilities, on the mixture's answers or on its own."""

    stage = "distill"
    lmbda: float = field(
        default=0.0,
        metadata={"help": "Share of the steps on answers that the student writes: 0 is offline, 1 on-policy."},
    )
    beta: float = field(
        default=0.0,
        metadata={"help": "0: KL(teacher || student), covers all that the teacher does; 1: the reverse; between: JSD."},
    )
    assistant_only_loss: bool = field(default=True, metadata={"help": "Only True: the assistant's turns are imitated."})

    option_ranges: ClassVar[dict[str, Any]] = {"beta": SHARE}
    refused_options: ClassVar[dict[str, str | None]] = OWN_EVALUATION | {
        "packing": "distillation has no --packing",
        "padding_free": "distillation has no --padding_free",
        "assistant_only_loss": "distillation imitates the assistant's turns only",
        "loss_type": "distillation's loss is set by --beta",
        "label_smoothing_factor": "the teacher's probabilities are imitated as they are",
        "packing_strategy": "distillation has no --packing",
    }

    def problems(self) -> Iterator[str]:
        yield from super().problems()
        if not self.teacher_model_name_or_path:
            yield (
                "give the teacher: --teacher_model_name_or_path (a directory, a Hub id or a .pth); to learn from a "
                "teacher's written answers, as of data_configs/distill/reasoning.yaml, use recipes/sft.py"
            )


def load_teacher(name: str, student: MiniMindForCausalLM) -> MiniMindForCausalLM:
    """The model to imitate, in evaluation mode and without gradients.

    Raises:
        InputError: it cannot be loaded, or its vocabulary is not the student's.
    """
    if Path(name).suffix in NATIVE_SUFFIXES and not Path(name).exists():
        raise InputError(f"--teacher_model_name_or_path {name}: no such file")
    teacher = load_model(name)
    if teacher.config.vocab_size != student.config.vocab_size:
        raise InputError(
            f"--teacher_model_name_or_path {name} has {teacher.config.vocab_size} tokens, the student "
            f"{student.config.vocab_size}: they must share a tokenizer, as probabilities are compared token by token"
        )
    return teacher.eval().requires_grad_(False)


class RecipeGKDTrainer(HeldOutEvaluation, GKDTrainer):
    """GKDTrainer with the recipes' evaluation and the divergence that is left, balanced experts, and one loss whether
    one process or several share a step.
    """

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        loss, outputs = super().compute_loss(model, inputs, True, num_items_in_batch)
        if self.model.training and num_items_in_batch is not None and self.args.average_tokens_across_devices:
            # GKDTrainer divides by the tokens of all processes, whose gradients are averaged after that.
            loss = loss * self.accelerator.num_processes
        if self.model.training and outputs.aux_loss is not None:
            # GKDTrainer leaves a mixture of experts unbalanced. A sum over the step's tokens is accumulated as it is.
            steps = self.current_gradient_accumulation_steps if num_items_in_batch is not None else 1
            loss = loss + self.model.config.router_aux_loss_coef * outputs.aux_loss / steps
        return (loss, outputs) if return_outputs else loss

    def _held_out_figures(self) -> dict[str, float]:
        return super()._held_out_figures() | {"eval_divergence": self._divergence()}

    def _divergence(self) -> float:
        """The training's divergence, in nats per token, on the held-out answers."""
        nats, tokens = torch.zeros(2, dtype=torch.float64, device=self.args.device)
        with evaluating(self.model), self.compute_loss_context_manager():
            for batch in self.get_eval_dataloader():
                batch = self._prepare_inputs(batch)
                count = (batch["labels"][:, 1:] != -100).sum()
                nats += self.compute_loss(self.model, batch, num_items_in_batch=1).double()
                tokens += count
        nats, tokens = self.accelerator.reduce(torch.stack([nats, tokens]), "sum").tolist()
        return nats / tokens


def train_distillation(args, config, lora, model, teacher, tokenizer, data: DatasetDict, mixer: DatasetMixer) -> dict:
    """Train with TRL's GKDTrainer; of `run`'s arguments and results."""
    settle(args, config, "Distill")
    settle_learning_rate(args, config, lora, model)
    with config.main_process_first(desc="tokenizing"):  # the others find its rows in the cache of `datasets`
        train = _answers(data["train"], tokenizer, config.max_length, config.dataset_num_proc)
    held_out = capped(args, config, data.get("validation"))
    with refusals(config.output_dir):
        trainer = RecipeGKDTrainer(
            model=model,
            teacher_model=teacher,
            args=config,
            processing_class=with_training_template(tokenizer),
            data_collator=AnswersCollator(tokenizer.pad_token_id),
            train_dataset=train,
            eval_dataset=held_out and _answers(held_out, tokenizer, config.max_length),
            peft_config=adapter_for(args, lora, model),
        )
    trainer.held_out, trainer.eval_batches = data.get("validation"), args.eval_batches
    tell_dropped(trainer, data["train"], train=len(data["train"]) - len(train) if isinstance(train, Dataset) else 0)
    return run(trainer, args, tokenizer, data, mixer)


def _answers(
    rows: Dataset | IterableDataset, tokenizer, max_length: int | None, num_proc: int | None = None
) -> Dataset | IterableDataset:
    """Rows with `input_ids` and `labels` (-100 but for the assistant's turns), without those that have no target."""
    rows = with_labels(rows, tokenizer, assistant_only=True, max_length=max_length, num_proc=num_proc)
    return rows.filter(lambda row: any(label != -100 for label in row["labels"]))
