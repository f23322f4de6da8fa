"""Complete a config from mixture and model; no other place changes a config after parsing."""

import os
import sys
from pathlib import Path

from datasets import Dataset, IterableDataset
from transformers.trainer_utils import IntervalStrategy

from ..data import DatasetMixer
from ..data.workers import default_processes
from ..errors import InputError
from ..models.stored import check_finite_files
from ..trainers.safe_checkpoints import checkpoint_problem, checkpoints_in, last_good_checkpoint
from .learning_rates import set_learning_rate
from .output_folder import RUN_LOCK
from .run_context import RunContext

_MANY = 20_000  # rows that are worth worker processes


def complete_config(run: RunContext) -> None:
    """Set lengths, evaluation, trackers and learning rate.

    Raises:
        InputError: the options contradict the mixture.
    """
    args, config, mixer = run.args, run.config, run.mixer
    _set_lengths(args, config, mixer)
    _set_evaluation(args, config, mixer)
    _set_trackers(args, config)
    if mixer.mixture.streaming and hasattr(config, "shuffle_dataset"):
        config.shuffle_dataset = False  # the mixer shuffles; a resumed run would lose the rows in a second buffer
    set_learning_rate(args, config, run.lora, run.model)


def set_processes(config, rows: Dataset | IterableDataset) -> None:
    """Let TRL prepare the rows on all cores that this process may use; few rows are faster in one process."""
    if getattr(config, "dataset_num_proc", 1) is None and isinstance(rows, Dataset) and len(rows) >= _MANY:
        processes = default_processes()
        config.dataset_num_proc = processes if processes > 1 else None


def _set_lengths(args, config, mixer: DatasetMixer) -> None:
    """Set `max_length`, and what this trainer does with longer rows.

    Raises:
        InputError: a stream without `--max_steps`; or the mixture cuts longer rows, which the trainer cannot.
    """
    if getattr(config, "max_length", 0) is None:  # online trainers have none
        config.max_length = mixer.mixture.metadata.max_seq_length or 1024
    if mixer.mixture.streaming and config.max_steps <= 0:
        raise InputError(f"{args.data_config}: a streaming mixture has no known end: set --max_steps")
    mixer.max_length = getattr(config, "max_length", None)
    mixer.processes = getattr(config, "dataset_num_proc", None)  # online trainers have none
    if config.stage == "reward" and mixer.on_long != "drop":
        if mixer.mixture.metadata.on_long:
            raise InputError(
                f"{args.data_config}: metadata.on_long: {mixer.on_long}, but a reward model judges whole rows and "
                "drops longer ones: set on_long: drop"
            )
        mixer.on_long = "drop"
    if mixer.on_long == "cut" and getattr(config, "packing", False) and config.packing_strategy != "bfd":
        mixer.on_long = "chunk"  # as TRL's other ways to pack do it


def _set_evaluation(args, config, mixer: DatasetMixer) -> None:
    if mixer.mixture.validation is None and args.eval_interval:
        args.eval_interval = 0
        if config.process_index == 0:
            print(f"evaluation: off, {args.data_config} holds no rows out (validation: none)")
    config.eval_strategy = IntervalStrategy.STEPS if args.eval_interval else IntervalStrategy.NO


def _set_trackers(args, config) -> None:
    """Turn `--use_wandb` into transformers' settings, and name the project."""
    project = args.wandb_project or f"MiniMind-{config.project_name}"
    if args.use_wandb:
        config.report_to = [*(name for name in config.report_to if name not in ("none", "wandb")), "wandb"]
        os.environ["WANDB_PROJECT"] = project  # WandB reads the project from there only
    if config.project == type(config).__dataclass_fields__["project"].default:  # for trackers such as trackio
        config.project = project


def set_checkpoint_to_resume(args, config) -> None:
    """Set `resume_from_checkpoint` from `--resume`, once the output folder is locked.

    Raises:
        InputError: the folder is used by an earlier run, or the checkpoint is missing or damaged.
    """
    checkpoint = _checkpoint_to_resume(args, config)
    if checkpoint is not None:
        check_finite_files(Path(checkpoint))  # otherwise the first batch would get the blame
    config.resume_from_checkpoint = checkpoint


def _checkpoint_to_resume(args, config) -> str | None:
    output_dir = config.output_dir
    folder = Path(output_dir)
    if args.resume == "auto":
        return _newest_whole(folder, config.process_index)
    if args.resume is not None and not Path(args.resume).is_dir():
        raise InputError(f"--resume {args.resume}: no such folder; give auto, or {output_dir}/checkpoint-N")
    if args.resume is not None and (problem := checkpoint_problem(Path(args.resume))):
        raise InputError(f"--resume {args.resume}: {problem}; give another checkpoint, or auto")
    if args.resume is None and folder.is_dir() and any(path.name != RUN_LOCK for path in folder.iterdir()):
        raise InputError(f"--output_dir {output_dir} is not empty; give a new one, or --resume auto")
    return args.resume


def _newest_whole(folder: Path, process: int) -> str | None:
    """The checkpoint of `--resume auto`; None, to start from the beginning, only if there is no checkpoint at all."""
    reported: list[str] = []
    found = last_good_checkpoint(folder, reported.append)
    if found is None and checkpoints_in(folder):
        raise InputError(
            f"--resume auto: {folder} has no whole checkpoint: {'; '.join(reported)}; give a new --output_dir"
        )
    if process == 0:
        print(*reported, sep="\n", end="\n" * bool(reported), file=sys.stderr)
    return str(found) if found else None
