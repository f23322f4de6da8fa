"""Distillation, by the GKD trainer that TRL keeps among its experiments."""

import os
from pathlib import Path

import torch
from datasets import Dataset, IterableDataset
from transformers import PreTrainedTokenizerBase

from ..errors import InputError
from ..evaluation.held_out import evaluating
from ..models import MiniMindForCausalLM, load_model
from ..models.cpu_kernels import use_cpu_kernels
from ..models.stored import is_native_file
from .collators import AnswersCollator
from .sft_trainer import HeldOutEvaluation
from .tokenized_rows import labelled_rows
from .trainer_mixin import first_batches

# TRL warns that its experimental parts may change; the lock holds the version that this was tested with.
os.environ.setdefault("TRL_EXPERIMENTAL_SILENCE", "1")
from trl.experimental.gkd import GKDConfig, GKDTrainer


def load_teacher(name: str, student: MiniMindForCausalLM, use_cpu: bool = False) -> MiniMindForCausalLM:
    """The model to imitate, in evaluation mode and without gradients.

    Raises:
        InputError: it cannot be loaded, or its vocabulary is not the student's.
    """
    if is_native_file(name) and not Path(name).exists():
        raise InputError(f"--teacher_model_name_or_path {name}: no such file")
    teacher = load_model(name)
    if teacher.config.vocab_size != student.config.vocab_size:
        raise InputError(
            f"--teacher_model_name_or_path {name} has {teacher.config.vocab_size} tokens, the student "
            f"{student.config.vocab_size}: they must share a tokenizer, as probabilities are compared token by token"
        )
    if use_cpu:
        use_cpu_kernels(teacher)
    return teacher.eval().requires_grad_(False)


class MiniMindGKDTrainer(HeldOutEvaluation, GKDTrainer):
    """GKDTrainer on a mixture's rows: it imitates the assistant's turns.

    Added to TRL's: evaluation by token and source, the divergence from the teacher that is left (`eval_divergence`),
    the router loss of a mixture of experts, and the same loss in one process as in several that share a step.

    Args:
        processing_class: a tokenizer whose template marks the assistant's turns (`with_training_template`).
    """

    def __init__(
        self,
        *positional,
        args: GKDConfig,
        processing_class: PreTrainedTokenizerBase,
        train_dataset: Dataset | IterableDataset,
        eval_dataset: Dataset | None = None,
        eval_batches: int | None = None,
        **kwargs,
    ):
        with args.main_process_first(desc="tokenizing"):  # the others find its rows in the cache of `datasets`
            train = _answers(train_dataset, processing_class, args.max_length, args.dataset_num_proc)
        held_out = first_batches(eval_dataset, args, eval_batches)
        super().__init__(
            *positional,
            args=args,
            processing_class=processing_class,
            data_collator=kwargs.pop("data_collator", None) or AnswersCollator(processing_class.pad_token_id),
            train_dataset=train,
            eval_dataset=held_out and _answers(held_out, processing_class, args.max_length),
            eval_batches=eval_batches,
            **kwargs,
        )
        self.held_out = eval_dataset  # with its text
        if isinstance(train, Dataset):  # the length of a stream is unknown
            self.rows_dropped["train"] = len(train_dataset) - len(train)

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        loss, outputs = super().compute_loss(model, inputs, True, num_items_in_batch)
        if self.model.training and num_items_in_batch is not None and self.args.average_tokens_across_devices:
            # GKDTrainer divides by the tokens of all processes, and their gradients are averaged after that.
            loss = loss * self.accelerator.num_processes
        if self.model.training and getattr(outputs, "aux_loss", None) is not None:
            # GKDTrainer leaves a mixture of experts unbalanced. A sum over the step's tokens is accumulated as it is.
            steps = self.current_gradient_accumulation_steps if num_items_in_batch is not None else 1
            loss = loss + self.model.config.router_aux_loss_coef * outputs.aux_loss / steps
        return (loss, outputs) if return_outputs else loss

    def held_out_figures(self) -> dict[str, float]:
        return super().held_out_figures() | {"eval_divergence": self._divergence()}

    def _divergence(self) -> float:
        """The training's divergence, in nats per token, on the held-out answers."""
        nats, tokens = torch.zeros(2, dtype=torch.float64, device=self.args.device)
        with evaluating(self.model), self.compute_loss_context_manager():
            for batch in self.get_eval_dataloader():
                batch = self.prepare_inputs(batch)
                count = (batch["labels"][:, 1:] != -100).sum()
                nats += self.compute_loss(self.model, batch, num_items_in_batch=1).double()
                tokens += count
        nats, tokens = self.accelerator.reduce(torch.stack([nats, tokens]), "sum").tolist()
        return nats / tokens


def _answers(
    rows: Dataset | IterableDataset, tokenizer, max_length: int | None, num_proc: int | None = None
) -> Dataset | IterableDataset:
    """Rows with `input_ids` and `labels` (-100 outside the assistant's turns); those without a target are left out."""
    longest = 2**31 if max_length is None else max_length
    # TRL looks at the messages to see that the rows are conversations.
    options = {"max_length": longest, "num_proc": num_proc, "keep_columns": ("messages",)}
    return labelled_rows(rows, tokenizer, assistant_only=True, **options)
