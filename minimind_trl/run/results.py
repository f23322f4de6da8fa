"""The files of a finished run beside model and tokenizer: figures, lock, record, curves and card."""

from pathlib import Path
from typing import Any

from datasets import Dataset, IterableDataset
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ..evaluation.measures import main_figures
from ..files import atomic_path, write_json
from ..models import from_twin
from ..reports import HISTORY, METRICS
from ..reports.page import REPORT, write_report
from ..trainers import write_curves
from .run_context import RunContext

TWIN = "twin"  # the stock model of a run with --as_twin


def mixture_lock(run: RunContext, record: dict[str, Any]) -> dict[str, Any]:
    """The mixture's lock, with the rows that the trainer kept and dropped."""
    return run.mixer.lock() | ({"training": record["rows"]} if record["rows"] else {})


def count_rows(trainer, rows: Dataset | IterableDataset) -> dict[str, Any] | None:
    """Print and return how many training rows are left, and how many of each split the trainer dropped and why.

    Args:
        trainer: with `rows_dropped` and `drop_reason`.
        rows: the mixture's training split.
    """
    if not trainer.rows_dropped:
        return None
    reason = trainer.drop_reason.format(trainer.args.max_length)
    for split, count in trainer.rows_dropped.items():
        if count:
            trainer.accelerator.print(f"data: {count} {split} rows dropped: {reason}")
    return {
        "train_rows": None if isinstance(rows, IterableDataset) else len(rows) - trainer.rows_dropped["train"],
        "dropped": {split: {reason: count} for split, count in trainer.rows_dropped.items() if count},
    }


def save_both_forms(folder: Path, twin_class: type[PreTrainedModel], tokenizer: PreTrainedTokenizerBase) -> None:
    """Turn a saved stock model into a MiniMind, and keep the stock model in `twin`."""
    twin = twin_class.from_pretrained(folder)
    with atomic_path(folder / TWIN) as temporary:
        twin.save_pretrained(temporary)
        tokenizer.save_pretrained(temporary)
    from_twin(twin).save_pretrained(folder)


def write_results(trainer, run: RunContext, metrics: dict[str, dict]) -> None:
    """Write these files, and print the held-out figures before and after training."""
    config = trainer.args
    folder = Path(config.output_dir)
    # What `minimind-trl eval` needs to give the same figures later.
    options = {
        "phase": run.mixer.mixture.metadata.phase,
        "max_length": getattr(config, "max_length", None),
        "on_long": run.mixer.on_long,
        "batch_size": config.per_device_eval_batch_size,
        "eval_batches": run.args.eval_batches * config.world_size,
        "bf16": config.bf16,
        "assistant_only_loss": getattr(config, "assistant_only_loss", None),
        "beta": getattr(config, "beta", None),
    }
    write_json(folder / METRICS, metrics | {"options": options})
    for file, content in trainer.records.items():
        write_json(folder / file, content())
    start = [{"step": 0, **metrics["before"]}] if metrics else []  # training's own history begins after it
    history = start + trainer.state.log_history
    write_json(folder / HISTORY, history)
    write_curves(history, folder / "curves.png")
    trainer.create_model_card(model_name=folder.name)
    if run.args.report:
        write_report([folder], folder / REPORT)
    for when, figures in metrics.items():
        print(f"held-out {when} training: {main_figures(figures)}")
    print(f"saved to {folder}{f'; all about the run: {folder / REPORT}' if run.args.report else ''}")
