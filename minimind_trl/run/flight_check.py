"""The flight check: before the first step, print what a run will do, and refuse it if it cannot work.

All reasons to refuse are raised together. The plan lists the mixture, the steps, the share of tokens in the loss, the
shares of rows that are cut or dropped, rendered examples, memory, and the time estimated from a few real steps.
"""

import json
import random
import sys
import time
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from datasets import Dataset, DatasetDict, IterableDataset
from rich.console import Console
from transformers import PreTrainedTokenizerBase
from transformers.training_args import OptimizerNames
from trl import DPOConfig

from ..data import DatasetMixer
from ..data.marked_rows import marked_row
from ..data.report import FEW, describe_long_rows
from ..data.schemas import Row, plain_text
from ..errors import InputError, raise_all
from ..evaluation.held_out import tokenize_rows
from ..evaluation.pairs import tokenize_answers
from ..tokenization import compare_prompts
from .memory import checkpoint_activations, state_memory
from .records import differences, run_record
from .run_context import RunContext

SAMPLE = 256  # training rows to examine
_COMPARED = 100_000  # training rows to compare with the validation rows
_READ = 10_000  # of these at a time
_EXAMPLES = 2
_TIMED_STEPS = 3


def flight_check(trainer, run: RunContext) -> dict[str, Any]:
    """Refuse a run that would train on nothing or on the wrong thing; print the plan.

    Returns:
        `{"plan": text, "warnings": [line, ...]}`, as printed; {} in all processes but the first.

    Raises:
        InputError: one line for each reason, with the nearest setting that works.
    """
    rows = list(islice(run.data["train"], SAMPLE))
    boundary = compare_prompts(rows, trainer.processing_class)
    raise_all(
        [
            *tokenizer_problems(trainer, run),
            *checkpointing_problems(trainer),
            *boundary.problems(),
            *(_length_problems(trainer, rows, run.tokenizer) or _batch_problems(trainer, run.data)),
            *overlap_problems(run.data),
            *resume_problems(trainer, run),
        ]
    )
    seconds = _seconds_per_step(trainer)  # in all processes, since the loss gathers figures
    if not trainer.is_world_process_zero():
        return {}
    console = plan_console()
    warnings = [*_print_plan(console, trainer, rows, run.tokenizer, run.mixer, seconds), *boundary.warnings()]
    return checked(console, warnings)


def plan_console() -> Console:
    return Console(highlight=False, soft_wrap=True, record=True)


def checked(console: Console, warnings: list[str]) -> dict[str, Any]:
    """Print the warnings, and return what was printed."""
    for warning in warnings:
        print(f"warning: {warning}", file=sys.stderr)
    return {"plan": console.export_text(), "warnings": warnings}


def checkpointing_problems(trainer) -> list[str]:
    options = trainer.args.activation_checkpointing_kwargs or {}
    has_experts = getattr(trainer.model.config, "num_experts", 0)
    if trainer.args.activation_checkpointing and options.get("use_reentrant") and has_experts:
        return [
            "--activation_checkpointing_kwargs: with use_reentrant the balancing loss of a mixture of experts has no "
            "gradient: leave use_reentrant out"
        ]
    return []


def tokenizer_problems(trainer, run: RunContext) -> list[str]:
    args, tokenizer, problems = run.args, run.tokenizer, []
    if tokenizer.eos_token_id is None:
        problems.append("the tokenizer has no end-of-sequence token: set eos_token in its tokenizer_config.json")
    if tokenizer.pad_token_id is None:
        problems.append("the tokenizer has no padding token: set pad_token in its tokenizer_config.json")
    # A classifier reads the last token that is not padding; the end of the turn must not look like padding.
    is_reward = getattr(trainer.model.config, "num_labels", None) == 1
    if is_reward and tokenizer.pad_token_id is not None and tokenizer.pad_token_id == tokenizer.eos_token_id:
        problems.append(f"pad_token and eos_token are both {tokenizer.eos_token!r}: give padding a token of its own")
    if args.tokenizer and args.from_weight and (Path(args.from_weight) / "tokenizer.json").is_file():
        own = json.loads((Path(args.from_weight) / "tokenizer.json").read_text(encoding="utf-8"))["model"].get("vocab")
        given = json.loads(tokenizer.backend_tokenizer.to_str())["model"].get("vocab")
        if own != given:
            problems.append(
                f"--tokenizer {args.tokenizer} has another vocabulary than {args.from_weight} was trained with: "
                "leave --tokenizer out"
            )
    return problems


def _batch_problems(trainer, data: DatasetDict) -> list[str]:
    config = trainer.args
    if isinstance(data["train"], IterableDataset):
        return []
    batch = config.per_device_train_batch_size * config.gradient_accumulation_steps * config.world_size
    rows = len(trainer.train_dataset)
    if not rows:
        return [f"no training row is left within --max_length {config.max_length}"]
    if trainer.eval_dataset is not None and not len(trainer.eval_dataset):
        return [f"no held-out row is left within --max_length {config.max_length}"]
    if rows >= batch:
        return []
    fitting = rows // (config.gradient_accumulation_steps * config.world_size)
    return [
        f"a step takes {batch} rows ({config.per_device_train_batch_size} x {config.gradient_accumulation_steps} "
        f"accumulated x {config.world_size} processes), the training split has {rows}: set "
        + (
            f"--per_device_train_batch_size {fitting}"
            if fitting
            else f"--per_device_train_batch_size 1 --gradient_accumulation_steps {max(rows // config.world_size, 1)}"
        )
    ]


def _length_problems(trainer, rows: list[Row], tokenizer: PreTrainedTokenizerBase) -> list[str]:
    limit = trainer.args.max_length
    lengths = [len(ids) for ids, _ in _tokenized(trainer, rows, tokenizer, None)]
    if limit is not None and _on_long(trainer) != "chunk" and all(length > limit for length in lengths):
        fitting = sorted(lengths)[len(lengths) // 2]
        return [
            f"all of the first {len(rows)} rows are longer than --max_length {limit}; half of them fit in {fitting}"
        ]
    longest = trainer.model.config.max_position_embeddings
    if (limit or max(lengths)) > longest:
        return [f"--max_length {limit} is more than the model's {longest} positions: set --max_length {longest}"]
    if "chosen" in rows[0]:
        return []
    targets = _tokenized(trainer, rows, tokenizer, None if _on_long(trainer) == "chunk" else limit)
    if not any(any(mask) for _, mask in targets):
        return [f"no token to learn from in the first {len(rows)} rows within --max_length {limit}"]
    ends = any(mask[i] and ids[i] == tokenizer.eos_token_id for ids, mask in targets for i in range(len(ids)))
    if not ends and any(len(ids) < (limit or len(ids) + 1) for ids, _ in targets):
        return [
            f"the end-of-turn token {tokenizer.eos_token!r} is never trained on in the first {len(rows)} rows: "
            "the model would not learn to stop; use a chat template whose assistant part ends with it"
        ]
    return []


def overlap_problems(data: DatasetDict) -> list[str]:
    if isinstance(data["train"], IterableDataset) or "validation" not in data:
        return []  # a stream is split by content hash, which cannot overlap
    held_out = {_content(row) for row in data["validation"]}
    begins = _beginnings(data["validation"])
    train = data["train"].select(range(min(len(data["train"]), _COMPARED)))
    alike = np.flatnonzero(pc.is_in(_beginnings(train), begins.combine_chunks()))  # only these are worth a closer look
    shared = sum(_content(row) in held_out for row in train.select(alike))
    return [f"{shared} training rows are among the validation rows as well: build the mixture again"] if shared else []


def _beginnings(rows: Dataset) -> pa.ChunkedArray:
    """The text of each row, or its first message."""
    name = next(name for name in ("text", "messages", "prompt") if name in rows.column_names)
    parts = [table[name] for table in rows.select_columns([name]).with_format("arrow").iter(_READ)]
    parts = [pc.struct_field(pc.list_element(part, 0), "content") if name != "text" else part for part in parts]
    return pa.chunked_array([chunk for part in parts for chunk in part.chunks], pa.string())


def resume_problems(trainer, run: RunContext) -> list[str]:
    checkpoint = trainer.args.resume_from_checkpoint
    changed = differences(Path(checkpoint), run_record(trainer, run)) if checkpoint else []
    if not changed:
        return []
    return [
        f"{checkpoint} belongs to another run: {'; '.join(changed)}. Resume with its settings, or start a new run: "
        f"--from_weight {checkpoint} with another --output_dir"
    ]


def _on_long(trainer) -> str:
    """What this trainer does with rows that are too long; TRL's own trainers cut or drop them."""
    return getattr(trainer, "on_long", "cut")


def _content(row: Row) -> str:
    return json.dumps([row.get("prompt"), plain_text(row)], sort_keys=True)


def _tokenized(trainer, rows: list[Row], tokenizer: PreTrainedTokenizerBase, limit: int | None) -> list:
    """Ids and mask of each row; for a preference pair, of the longer side."""
    if "chosen" not in rows[0]:
        return tokenize_rows(rows, tokenizer, limit, getattr(trainer.args, "assistant_only_loss", False))
    if "chosen_ids" in rows[0]:
        longer = [max(row["chosen_ids"], row["rejected_ids"], key=len)[:limit] for row in rows]
        return [(ids, [True] * len(ids)) for ids in longer]
    sides = [
        tokenize_rows([{**row, "messages": row["prompt"] + row[side]} for row in rows], tokenizer, limit)
        for side in ("chosen", "rejected")
    ]
    return [max(pair, key=lambda side: len(side[0])) for pair in zip(*sides, strict=True)]


def _print_plan(
    console: Console,
    trainer,
    rows: list[Row],
    tokenizer: PreTrainedTokenizerBase,
    mixer: DatasetMixer,
    seconds: float | None,
) -> list[str]:
    """Print the plan; returns warnings."""
    config, warnings = trainer.args, []
    limit = config.max_length
    whole = _tokenized(trainer, rows, tokenizer, None)
    cut = whole if mixer.on_long == "chunk" else _tokenized(trainer, rows, tokenizer, limit)
    lengths = np.array([len(ids) for ids, _ in whole])
    dropped = lengths > limit if mixer.on_long == "drop" else np.zeros(len(lengths), dtype=bool)
    no_room = _without_room(trainer, rows, tokenizer, lengths > limit) if mixer.on_long == "cut" else dropped & False
    long_rows = describe_long_rows(lengths[~dropped & ~no_room], limit, mixer.on_long, lengths[dropped])
    supervised = sum(sum(mask) for _, mask in cut) / max(sum(len(ids) for ids, _ in cut), 1)
    learned = "" if "chosen" in rows[0] else f"{supervised:.0%} of the tokens are learned, "
    if mixer.report:
        console.print(mixer.report.table())
    for number, row in enumerate(rows[:_EXAMPLES], start=1):
        console.rule(f"train row {number}, from {row['source']}")
        console.print(marked_row(row, tokenizer, limit, mixer.on_long), markup=False)
    print_model(console, trainer)
    steps, dropped_why = _steps(trainer), trainer.drop_reason.format(limit)
    packed = "packed rows" if getattr(config, "packing", False) else "rows"
    console.print(
        f"plan: {steps:,} steps of {_rows_per_step(config)} {packed} in {config.world_size} process(es), at most "
        f"{limit} tokens each; {learned}{long_rows.rows / len(whole):.1%} of the rows are longer"
        + (f": {long_rows.summary()}" if long_rows.rows else "")
        + (f"; {no_room.mean():.1%} of the rows are dropped: {dropped_why}" if no_room.any() else "")
    )
    if mixer.report is None and long_rows.share > FEW:  # otherwise the mixer has reported it
        warnings.append(
            f"of the first {len(whole)} rows {long_rows.summary()}; --max_length {long_rows.enough} would keep 95% of "
            "the tokens"
        )
    if seconds is not None:
        minutes = seconds * steps / 60
        console.print(f"time: {seconds:.2f} s a step here, {minutes:.1f} minutes in all, without evaluation")
    return warnings


def _without_room(trainer, rows: list[Row], tokenizer: PreTrainedTokenizerBase, over: np.ndarray) -> np.ndarray:
    """Which rows the trainer drops because nothing to learn from is left within `max_length`."""
    config, dropped = trainer.args, np.zeros(len(rows), dtype=bool)
    if isinstance(config, DPOConfig) and config.truncation_mode == "keep_end":
        return dropped  # which always leaves some of the answer
    for at in np.flatnonzero(over):
        if "chosen" in rows[at]:
            dropped[at] = tokenize_answers(rows[at], tokenizer, config.max_length) is None
        else:
            [(_, mask)] = _tokenized(trainer, [rows[at]], tokenizer, config.max_length)
            dropped[at] = not any(mask)
    return dropped


def print_model(console: Console, trainer) -> None:
    """Print size, precision, optimizer, and the memory in use before the first row."""
    config, parameters = trainer.args, list(trainer.model.parameters())
    total = sum(parameter.numel() for parameter in parameters)
    trained = sum(parameter.numel() for parameter in parameters if parameter.requires_grad)
    precision = "bf16" if config.bf16 else "fp16" if config.fp16 else "fp32"
    checkpointing = "with" if config.gradient_checkpointing else "no"
    console.print(
        f"model: {total:,} parameters, {trained:,} of them trained; {precision} on {config.device.type}, "
        f"{OptimizerNames(config.optim).value}, {checkpointing} gradient checkpointing"
    )
    console.print(_memory_line(trainer.model, config))


def _memory_line(model, config) -> str:
    try:
        kept = state_memory(model, config)
    except InputError as error:
        if isinstance(error.__cause__, ImportError):  # training cannot build the optimizer either
            raise
        return f"memory: not known: {error}"
    size = (kept.parameters + kept.gradients + kept.optimizer) / 2**20
    return f"memory: {size:,.0f} MiB for weights, gradients and optimizer; `minimind-trl plan` counts the rest too"


def _rows_per_step(config) -> int:
    return config.per_device_train_batch_size * config.gradient_accumulation_steps * config.world_size


def _steps(trainer) -> int:
    config = trainer.args
    if config.max_steps > 0:
        return config.max_steps
    return int(-(-len(trainer.train_dataset) // _rows_per_step(config)) * config.num_train_epochs)


def _seconds_per_step(trainer) -> float | None:
    """Seconds of an optimizer step: the median of a few forward and backward passes, times the accumulated batches.

    Weights and random states are left as they were. None under DeepSpeed and FSDP, whose model does not exist yet.
    """
    if trainer.is_deepspeed_enabled or trainer.is_fsdp_enabled:
        return None
    model, python = trainer.model, random.getstate()
    was_training, times = model.training, []
    model.train()
    if trainer.args.activation_checkpointing:  # train() switches it on, later
        checkpoint_activations(model, trainer.args)
    with torch.random.fork_rng():
        for batch in islice(trainer.get_train_dataloader(), _TIMED_STEPS):
            started = time.perf_counter()
            inputs = trainer.prepare_inputs(batch)
            with trainer.accelerator.autocast():  # train() adds this to the model's forward pass, later
                loss = trainer.compute_loss(model, inputs)
            loss.backward()
            times.append(time.perf_counter() - started)
    model.zero_grad()
    model.train(was_training)
    random.setstate(python)
    for figures in trainer.metrics_to_log.values():
        figures.clear()
    return sorted(times)[len(times) // 2] * trainer.args.gradient_accumulation_steps
