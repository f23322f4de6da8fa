"""TRL's SFTTrainer for pretraining, midtraining and fine-tuning, and the evaluation of language models."""

import copy

from datasets import Dataset
from trl import SFTTrainer, pack_dataset

from ..evaluation import held_out_figures
from ..evaluation.held_out import evaluating
from ..internals import SFTHooks, attention_implementation
from ..models.modeling_minimind import MiniMindPreTrainedModel
from .collators import PackedRowsCollator
from .layer_compilation import LayerCompilation
from .lm_head import add_learned_positions_head, base_model
from .sample_recording import LossSamples
from .tokenized_rows import is_from_mixture, labelled_rows, pieces_of
from .trainer_mixin import TrainerMixin


class HeldOutEvaluation(TrainerMixin):
    """A mixin for trainers of language models: the evaluation that `minimind-trl eval` repeats.

    Every token has the same weight, and each source gets its own figures.

    Args:
        eval_dataset: held-out rows of a mixture.
        eval_batches: batches per evaluation and process, at most; None for all.
    """

    drop_reason = "no token to learn from within max_length={}"

    def __init__(self, *args, eval_dataset: Dataset | None = None, eval_batches: int | None = None, **kwargs):
        self.held_out, self.eval_batches = eval_dataset, eval_batches
        self.rows_dropped = {"train": 0}  # unknown, and 0, for a stream
        super().__init__(*args, eval_dataset=eval_dataset, eval_batches=eval_batches, **kwargs)

    def evaluate(self, eval_dataset=None, ignore_keys=None, metric_key_prefix="eval"):
        with self.untimed():
            figures = self.held_out_figures()
            self.record_answers(self.held_out)
        with evaluating(self.model):  # otherwise TRL takes this log for one of training, and empties that
            self.log(figures)
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, figures)
        return figures

    def held_out_figures(self) -> dict[str, float]:
        losses = LossSamples(self.processing_class) if self.wants_samples("loss") else None
        figures = held_out_figures(
            self.model,
            self.processing_class,
            self.held_out,
            max_length=self.args.max_length,
            batch_size=self.args.per_device_eval_batch_size,
            max_batches=self.eval_batches and self.eval_batches * self.args.world_size,
            assistant_only=self.args.assistant_only_loss,
            bf16=self.args.bf16,
            accelerator=self.accelerator,
            chunk=getattr(self, "on_long", None) == "chunk",
            on_row=losses,
        )
        if losses:
            self.add_samples("loss", losses.samples)
        return figures


class MiniMindSFTTrainer(LayerCompilation, HeldOutEvaluation, SFTHooks, SFTTrainer):
    """SFTTrainer on a mixture's rows, with the evaluation above.

    Rows are cut to `max_length` before they are packed, and rows left without a target are dropped. With
    `on_long="chunk"` longer rows continue in further rows instead, so that nothing is lost and no row mixes two of
    them. Turns that are not trained have no labels.
    """

    def __init__(self, *args, on_long: str = "cut", **kwargs):
        self.on_long = on_long
        super().__init__(*args, **kwargs)
        add_learned_positions_head(self.model)
        if self.args.packing and self.padding_free and not self._attends_with_flash():
            self.padding_free = False
            padding = self.processing_class.pad_token_id
            self.data_collator = PackedRowsCollator(
                padding,
                pad_to_multiple_of=self.args.pad_to_multiple_of,
                return_attention_mask=isinstance(base_model(self.model), MiniMindPreTrainedModel),
            )

    def _attends_with_flash(self) -> bool:
        return "flash" in attention_implementation(self.model)

    def prepare_dataset(self, dataset, processing_class, args, packing, formatting_func, dataset_name):
        pack_whole_rows = packing and args.packing_strategy == "bfd"  # the other strategies do not cut rows
        in_pieces = self.on_long == "chunk" and args.max_length is not None and (pack_whole_rows or not packing)
        limits = copy.copy(args)
        limits.max_length = None if in_pieces else args.max_length
        if is_from_mixture(dataset) and formatting_func is None:
            with args.main_process_first(desc="tokenizing"):
                cuts = limits.max_length if pack_whole_rows or not packing else None
                prepared = self._labelled(dataset, processing_class, args, cuts)
            limits.max_length = None if cuts else limits.max_length
        else:
            prepared = dataset
        arguments = (processing_class, limits, packing and not pack_whole_rows, formatting_func, dataset_name)
        prepared = super().prepare_dataset(prepared, *arguments)
        if in_pieces:
            prepared = pieces_of(prepared, args.max_length)
        elif dataset_name == "train" and isinstance(prepared, Dataset) and (pack_whole_rows or not packing):
            self.rows_dropped["train"] = len(dataset) - len(prepared)
        if not pack_whole_rows or (isinstance(prepared, Dataset) and len(prepared) == 0):
            return prepared
        return pack_dataset(prepared.select_columns(["input_ids", "labels"]), args.max_length, "bfd")

    def _labelled(self, rows, tokenizer, args, max_length: int | None):
        keep_end = args.truncation_mode == "keep_end"
        return labelled_rows(rows, tokenizer, args.assistant_only_loss, max_length, keep_end, args.dataset_num_proc)
