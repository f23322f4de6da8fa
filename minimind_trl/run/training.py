"""TRL's trainers as the recipes run them: a plan, evaluation before, during and after, and what stays in the folder."""

import copy
import os
import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from accelerate import PartialState
from datasets import Dataset, DatasetDict, IterableDataset
from peft import LoraConfig
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from transformers.integrations import TensorBoardCallback
from transformers.integrations.integration_utils import default_logdir
from transformers.trainer_utils import IntervalStrategy
from trl import DPOTrainer, RewardTrainer, SFTTrainer, pack_dataset

from ..data import LOCK, DatasetMixer
from ..errors import InputError, TrainingInterrupted, nearest, one_line
from ..evaluation import held_out_figures
from ..evaluation.held_out import evaluating, tokenize_rows
from ..evaluation.measures import main_figures
from ..files import write_json
from ..models.adapters import leaves_experts_out, lora_config
from ..models.stored import check_finite_files
from ..tokenization import pieces, with_training_template
from ..trainers import (
    PackedRowsCollator,
    TrainerMixin,
    add_learned_positions_head,
    checkpoint_problem,
    last_good_checkpoint,
    write_curves,
)
from ..trainers.callbacks import EvaluateAtEnd
from ..trainers.safe_checkpoints import checkpoints_in, saving
from .arguments import RecipeArguments, name_project, report_to_wandb
from .flight_check import flight_check
from .learning_rates import settle_learning_rate
from .model_card import complete_card
from .output_folder import RUN_LOCK, lock_output_folder
from .processes import limit_waiting
from .records import RECIPE, run_record


class HeldOutEvaluation(TrainerMixin):
    """For language models: evaluation weighs tokens equally, tells sources apart, and is what `eval` repeats."""

    drops = "no token to learn from within max_length={}"
    held_out: Dataset | None = None
    eval_batches: int | None = None

    def evaluate(self, eval_dataset=None, ignore_keys=None, metric_key_prefix="eval"):
        with self.untimed():
            figures = self._held_out_figures()
        with evaluating(self.model):  # or TRL would take this log for one of training, and empty that
            self.log(figures)
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, figures)
        return figures

    def _held_out_figures(self) -> dict[str, float]:
        return held_out_figures(
            self.model,
            self.processing_class,
            self.held_out,
            max_length=self.args.max_length,
            batch_size=self.args.per_device_eval_batch_size,
            max_batches=self.eval_batches * self.args.world_size,
            assistant_only=self.args.assistant_only_loss,
            bf16=self.args.bf16,
            accelerator=self.accelerator,
            chunk=getattr(self, "on_long", None) == "chunk",
        )


class RecipeSFTTrainer(HeldOutEvaluation, SFTTrainer):
    """SFTTrainer with the recipes' evaluation.

    Before they are packed, rows are cut to `max_length`, and those left without a target dropped; or with
    `on_long="chunk"` go on in further rows, so that nothing is lost and no row holds more than one of them. Turns that
    are not to be trained have no labels.
    """

    rows_without_target = 0  # of the training split; unknown, and 0, for a stream

    def __init__(self, *args, on_long: str = "cut", **kwargs):
        self.on_long = on_long
        super().__init__(*args, **kwargs)
        add_learned_positions_head(self.model)
        if self.args.packing and self.padding_free and not self._attends_with_flash():
            self.padding_free = False
            self.data_collator = PackedRowsCollator(
                self._tokenizer.pad_token_id, return_position_ids=True, pad_to_multiple_of=self.args.pad_to_multiple_of
            )

    def _attends_with_flash(self) -> bool:
        return "flash" in self.model.config._attn_implementation

    def _prepare_dataset(self, dataset, processing_class, args, packing, formatting_func, dataset_name):
        columns = set(dataset.column_names or next(iter(dataset)))
        if columns & {"messages", "untrained"} and "input_ids" not in columns:  # some turns may not be trained
            with args.main_process_first(desc="tokenizing"):
                dataset = with_labels(
                    dataset, processing_class, args.assistant_only_loss, num_proc=args.dataset_num_proc
                )
        pack_whole_rows = packing and args.packing_strategy == "bfd"  # the other strategies do not cut rows
        in_pieces = self.on_long == "chunk" and args.max_length is not None and (pack_whole_rows or not packing)
        limits = copy.copy(args)
        limits.max_length = None if in_pieces else args.max_length
        arguments = (dataset, processing_class, limits, packing and not pack_whole_rows, formatting_func, dataset_name)
        prepared = super()._prepare_dataset(*arguments)
        if in_pieces:
            prepared = pieces_of(prepared, args.max_length)
        elif dataset_name == "train" and isinstance(prepared, Dataset) and (pack_whole_rows or not packing):
            self.rows_without_target = len(dataset) - len(prepared)
        if not pack_whole_rows or (isinstance(prepared, Dataset) and len(prepared) == 0):
            return prepared
        return pack_dataset(prepared.select_columns(["input_ids", "labels"]), args.max_length, "bfd")


def pieces_of(rows: Dataset | IterableDataset, length: int) -> Dataset | IterableDataset:
    """Rows of `input_ids` and `labels`; one of more than `length` tokens becomes several, one after the other.

    Of a row with turns that are not trained, the pieces in which nothing is predicted are left out.
    """

    def split(batch: dict[str, list]) -> dict[str, list]:
        rows = zip(batch["input_ids"], batch["labels"], strict=True)
        parts = [(ids[part], labels[part]) for ids, labels in rows for part in pieces(len(ids), length)]
        parts = [(ids, labels) for ids, labels in parts if any(label != -100 for label in labels[1:])]
        return {"input_ids": [ids for ids, _ in parts], "labels": [labels for _, labels in parts]}

    return rows.select_columns(["input_ids", "labels"]).map(split, batched=True)


def with_labels(
    rows: Dataset | IterableDataset,
    tokenizer: PreTrainedTokenizerBase,
    assistant_only: bool,
    max_length: int | None = None,
    num_proc: int | None = None,
) -> Dataset | IterableDataset:
    """Rows of a mixture with `input_ids` and `labels`, which are -100 where nothing is learned, cut to `max_length`."""

    def tokenize(batch: dict[str, list]) -> dict[str, list]:
        names = [name for name in ("text", "untrained", "messages", "tools") if name in batch]
        whole = [dict(zip(names, values, strict=True)) for values in zip(*(batch[name] for name in names), strict=True)]
        cut = tokenize_rows(whole, tokenizer, max_length, assistant_only)
        labels = [[token if wanted else -100 for token, wanted in zip(*row, strict=True)] for row in cut]
        return {"input_ids": [ids for ids, _ in cut], "labels": labels}

    return rows.map(tokenize, batched=True, **({"num_proc": num_proc} if isinstance(rows, Dataset) else {}))


class RecipeDPOTrainer(TrainerMixin, DPOTrainer):
    """DPOTrainer with the recipes' metrics. Answers are cut to `max_length`, and rows without room for one dropped."""

    drops = "a prompt of max_length={} tokens or more"

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        if self.is_deepspeed_enabled:  # TRL's head takes every model for sharded, which this one is not before training
            for model in filter(None, (self.model, self.ref_model)):
                add_learned_positions_head(self.accelerator.unwrap_model(model), for_preferences=True)

    def evaluate(self, *args, **kwargs):
        figures = super().evaluate(*args, **kwargs)
        if figures.get("eval_rewards/chosen") == figures.get("eval_rewards/rejected") == 0.0:
            # The policy still is its reference, so that every pair is a tie; TRL counts ties as wrong.
            figures["eval_rewards/accuracies"] = 0.5
        return figures


class RecipeRewardTrainer(TrainerMixin, RewardTrainer):
    """RewardTrainer with the recipes' metrics. No row is cut: the reward stands at its last token."""

    drops = "longer than max_length={}"


def train_sft(args, config, lora, model, tokenizer, data: DatasetDict, mixer: DatasetMixer) -> dict:
    """Train with TRL's SFTTrainer; of `run`'s arguments and results."""
    settle(args, config, config.project)
    settle_learning_rate(args, config, lora, model)
    with refusals(config.output_dir):
        trainer = RecipeSFTTrainer(
            model=model,
            args=config,
            processing_class=with_training_template(tokenizer) if config.assistant_only_loss else tokenizer,
            train_dataset=data["train"],
            eval_dataset=capped(args, config, data.get("validation")),
            peft_config=adapter_for(args, lora, model),
            on_long=mixer.on_long,
        )
    trainer.held_out, trainer.eval_batches = data.get("validation"), args.eval_batches
    tell_dropped(trainer, data["train"], train=trainer.rows_without_target)
    return run(trainer, args, tokenizer, data, mixer)


def train_dpo(args, config, lora, model, tokenizer, data: DatasetDict, mixer: DatasetMixer) -> dict:
    """Train with TRL's DPOTrainer against the model as it is now; of `run`'s arguments and results."""
    settle(args, config, "DPO")
    held_out = capped(args, config, data.get("validation"))
    settle_learning_rate(args, config, lora, model)
    with refusals(config.output_dir):
        trainer = RecipeDPOTrainer(
            model=model,
            # With LoRA the reference is the model without its adapter.
            ref_model=None if lora.use_peft or config.precompute_ref_log_probs else copy.deepcopy(model),
            args=config,
            processing_class=tokenizer,
            train_dataset=data["train"],
            eval_dataset=held_out,
            peft_config=adapter_for(args, lora, model),
        )
    _tell_dropped_pairs(trainer, data["train"], held_out)
    return run(trainer, args, tokenizer, data, mixer)


def train_reward(args, config, lora, model, tokenizer, data: DatasetDict, mixer: DatasetMixer) -> dict:
    """Train with TRL's RewardTrainer; of `run`'s arguments and results."""
    settle(args, config, "Reward")
    held_out = capped(args, config, data.get("validation"))
    settle_learning_rate(args, config, lora, model)
    with refusals(config.output_dir):
        trainer = RecipeRewardTrainer(
            model=model,
            args=config,
            processing_class=tokenizer,
            train_dataset=data["train"],
            eval_dataset=held_out,
            peft_config=adapter_for(args, lora, model),
        )
    _tell_dropped_pairs(trainer, data["train"], held_out)
    return run(trainer, args, tokenizer, data, mixer)


def _tell_dropped_pairs(trainer, train: Dataset | IterableDataset, held_out: Dataset | None) -> None:
    of_held_out = 0 if held_out is None else len(held_out) - len(trainer.eval_dataset)
    tell_dropped(trainer, train, train=_missing(trainer.train_dataset, train), validation=of_held_out)


def tell_dropped(trainer, rows: Dataset | IterableDataset, **dropped: int) -> None:
    """Print how many rows of each split the trainer has dropped, and keep the counts for lock, card and `recipe.json`.

    Args:
        trainer: whose `drops` is the reason.
        rows: of the training split, as the mixture gave them.
        dropped: rows by split; of a stream 0, as nobody knows.
    """
    reason = trainer.drops.format(trainer.args.max_length)
    for split, count in dropped.items():
        if count:
            trainer.accelerator.print(f"data: {count} {split} rows dropped: {reason}")
    trainer.row_counts = {
        "train_rows": None if isinstance(rows, IterableDataset) else len(rows) - dropped["train"],
        "dropped": {split: {reason: count} for split, count in dropped.items() if count},
    }


def adapter_for(args: RecipeArguments, lora, model: PreTrainedModel) -> LoraConfig | None:
    """The adapter of `--use_peft`, None without.

    Raises:
        InputError: of `lora_config`; or there is no checkpoint that the adapter could belong to.
    """
    if lora.use_peft and args.preset:
        raise InputError("--use_peft: an adapter belongs to a checkpoint, and --preset saves none: give --from_weight")
    adapter = lora_config(lora, model)
    if adapter and leaves_experts_out(adapter, model) and PartialState().is_main_process:
        print(
            "LoRA: all-linear leaves the experts' stacked weights as they are; --lora_target_parameters "
            "mlp.experts.gate_up_proj mlp.experts.down_proj adapts them, too"
        )
    return adapter


def take_output_folder(args: RecipeArguments, config) -> None:
    """Lock the output folder until `release_output_folders`, and set the checkpoint to go on from.

    Raises:
        InputError: the folder is used, by another run or one before, or read-only, or the checkpoint to resume from is
            missing or damaged.
    """
    lock_output_folder(args, config)
    config.resume_from_checkpoint = _checkpoint_to_resume(args, config)


def settle(args: RecipeArguments, config, name: str) -> None:
    """Turn our options into transformers' settings."""
    limit_waiting(None)  # in the trainer's constructor, where TRL tokenizes; see `run`
    report_to_wandb(args, config, name)
    name_project(args, config, name)
    config.eval_strategy = IntervalStrategy.STEPS if args.eval_interval else IntervalStrategy.NO


@contextmanager
def refusals(output_dir: str) -> Iterator[None]:
    """Around a trainer's constructor: what it refuses is the user's to mend, and leaves no empty folder behind.

    Raises:
        InputError: of the constructor; or what TRL, transformers, accelerate or PEFT say to the options in its place.
    """
    try:
        yield
    except InputError:
        remove_if_empty(output_dir)
        raise
    except (ImportError, NotImplementedError, ValueError) as error:
        remove_if_empty(output_dir)
        raise InputError(one_line(error)) from error


def run(
    trainer,
    args: RecipeArguments,
    tokenizer: PreTrainedTokenizerBase,
    data: DatasetDict,
    mixer: DatasetMixer,
    check: Callable[..., None] = flight_check,
) -> dict:
    """Check and print the plan, evaluate, train, evaluate, and leave model, tokenizer, metrics, lock and model card.

    Returns:
        `{"before": ..., "after": ...}`, held-out figures; empty with `--eval_interval 0` and with `--dry_run`.

    Raises:
        InputError: of `check`, which is called with all the others.
        TrainingError, TrainingInterrupted: of `TrainerMixin.train`; the latter also where a signal comes later, once
            all is saved.
    """
    limit_waiting(trainer.args.ddp_timeout)
    try:
        check(trainer, args, tokenizer, data, mixer)
    except InputError:
        remove_if_empty(trainer.args.output_dir)
        raise
    if args.dry_run:
        remove_if_empty(trainer.args.output_dir)
        return {}
    record = run_record(trainer, args, mixer)
    trainer.records = {LOCK: lambda: _lock(mixer, record), RECIPE: lambda: record}
    metrics: dict[str, dict[str, float]] = {}
    trainer.complete_card = lambda: complete_card(trainer, args, mixer, record, metrics)
    at_end = EvaluateAtEnd(trainer)
    if args.eval_interval:
        at_end.put_first()
        metrics["before"] = _evaluate_first(trainer)
        _check_best_metric(trainer.args, metrics["before"])
    trainer.train(resume_from_checkpoint=trainer.args.resume_from_checkpoint)
    if args.eval_interval:
        metrics["after"] = at_end.figures
    with trainer.signals:  # which wait until all is saved
        with saving("the model", trainer.args.output_dir):
            trainer.processing_class = tokenizer  # with the inference template, in place of the training twin
            trainer.save_model(_internal_call=True)  # or it would be pushed before the results are there
            if trainer.is_world_process_zero():
                _leave_results(trainer, args, mixer, metrics, record)
        if trainer.args.push_to_hub:
            trainer.push_to_hub(commit_message="Model save", revision=trainer.args.hub_revision)
        stopped_by = trainer.signals.agreed(trainer.args)
    trainer.end()
    if stopped_by:
        trainer.accelerator.print(f"stopped by {stopped_by} after the last step; all is saved")
        raise TrainingInterrupted(128 + trainer.signals.number)
    return metrics


def _evaluate_first(trainer) -> dict[str, float]:
    """Held-out figures before the first step; TensorBoard's files begin here, in the run's folder."""
    boards = [part for part in trainer.callback_handler.callbacks if isinstance(part, TensorBoardCallback)]
    for board in boards:
        # Set by the callback itself when training begins, which is later.
        board.logging_dir = board.logging_dir or os.path.join(trainer.args.output_dir, default_logdir())
    try:
        return trainer.evaluate()
    except BaseException:  # a Ctrl-C too: a run that has not begun leaves nothing
        for board in boards:
            shutil.rmtree(board.logging_dir, ignore_errors=True)
            remove_if_empty(Path(board.logging_dir).parent)
        raise


def _lock(mixer: DatasetMixer, record: dict) -> dict:
    """The mixture's lock, with what the trainer has made of its rows."""
    return mixer.lock() | ({"training": record["rows"]} if record["rows"] else {})


def _check_best_metric(config, figures: dict[str, float]) -> None:
    """transformers would look for it only after the first evaluation within training, and end in a traceback."""
    name = config.metric_for_best_model
    if name is None or not figures or f"eval_{name.removeprefix('eval_')}" in figures:
        return
    known = [figure.removeprefix("eval_") for figure in figures if figure.startswith("eval_")]
    remove_if_empty(config.output_dir)
    hint = nearest(name, known, listed=True)
    raise InputError(f"--metric_for_best_model {name}: evaluation has no such figure{hint}")


def _leave_results(trainer, args, mixer: DatasetMixer, metrics: dict, record: dict) -> None:
    config = trainer.args
    folder = Path(config.output_dir)
    # What `minimind-trl eval` needs to give the same figures later.
    options = {
        "phase": mixer.mixture.metadata.phase,
        "max_length": getattr(config, "max_length", None),
        "on_long": mixer.on_long,
        "batch_size": config.per_device_eval_batch_size,
        "eval_batches": args.eval_batches * config.world_size,
        "bf16": config.bf16,
        "assistant_only_loss": getattr(config, "assistant_only_loss", None),
        "beta": getattr(config, "beta", None),
    }
    write_json(folder / "metrics.json", metrics | {"options": options})
    write_json(folder / LOCK, _lock(mixer, record))
    write_json(folder / RECIPE, record)
    start = [{"step": 0, **metrics["before"]}] if metrics else []  # training begins its own history after it
    write_curves(start + trainer.state.log_history, folder / "curves.png")
    trainer.create_model_card(model_name=folder.name)
    for when, figures in metrics.items():
        print(f"held-out {when} training: {main_figures(figures)}")
    print(f"saved to {folder}")


def _missing(prepared: Dataset | IterableDataset, rows: Dataset | IterableDataset) -> int:
    """How many rows a trainer has dropped; 0 for a stream, of which nobody knows."""
    return 0 if isinstance(prepared, IterableDataset) else len(rows) - len(prepared)


def remove_if_empty(folder: str) -> None:
    """Take the run's folder away again, where nothing came into it."""
    with suppress(OSError):  # transformers has made it; one that holds something stays
        Path(folder).rmdir()


def capped(args: RecipeArguments, config, rows: Dataset | None) -> Dataset | None:
    """The held-out rows that an evaluation looks at; None where evaluation is off, or nothing is held out."""
    if not args.eval_interval or rows is None:
        return None
    count = args.eval_batches * config.per_device_eval_batch_size * config.world_size
    return rows.select(range(min(count, len(rows))))


def _checkpoint_to_resume(args: RecipeArguments, config) -> str | None:
    output_dir = config.output_dir
    folder = Path(output_dir)
    if args.resume == "auto":
        return _of_numbers(_newest_whole(folder, config.process_index))
    if args.resume is not None and not Path(args.resume).is_dir():
        raise InputError(f"--resume {args.resume}: no such folder; give auto, or {output_dir}/checkpoint-N")
    if args.resume is not None and (problem := checkpoint_problem(Path(args.resume))):
        raise InputError(f"--resume {args.resume}: {problem}; give another checkpoint, or auto")
    if args.resume is None and folder.is_dir() and any(path.name != RUN_LOCK for path in folder.iterdir()):
        raise InputError(f"--output_dir {output_dir} is not empty; give a new one, or --resume auto")
    return _of_numbers(args.resume)


def _of_numbers(checkpoint: str | None) -> str | None:
    """The same checkpoint, once its weights are known to be finite; else the first batch would get the blame."""
    if checkpoint is not None:
        check_finite_files(Path(checkpoint))
    return checkpoint


def _newest_whole(folder: Path, process: int) -> str | None:
    """The checkpoint of `--resume auto`; None, to begin at the beginning, only where there is none at all."""
    told: list[str] = []
    found = last_good_checkpoint(folder, told.append)
    if found is None and checkpoints_in(folder):
        raise InputError(f"--resume auto: {folder} has no whole checkpoint: {'; '.join(told)}; give a new --output_dir")
    if process == 0:
        print(*told, sep="\n", end="\n" * bool(told), file=sys.stderr)
    return str(found) if found else None
