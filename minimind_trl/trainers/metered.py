"""What every recipe adds to TRL's trainers: the same figures in every log, and no accident that costs a checkpoint."""

import json
import math
import random
import shutil
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate.utils.memory import clear_device_cache
from datasets import Dataset, IterableDataset
from torch.utils.data import DataLoader
from transformers import PrinterCallback, ProgressCallback, TrainerCallback, TrainingArguments
from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from ..errors import InputError, SavingError, TrainingError, TrainingInterrupted, described, one_line
from ..files import atomic_path, write_json
from ..hardware import COUNTED_MODELS, peak_flops, train_flops_per_token
from .callbacks import RecipeProgress, StopOnSignal
from .endless_stream import EndlessStream, stream_state
from .safe_checkpoints import (
    checkpoint_problem,
    contents_problem,
    processes_of,
    rotate,
    saving,
    what_is_safe,
    write_checksums,
)

_STAGING = ".saving-"
_LEFTOVERS = (f"{_STAGING}*", f".{PREFIX_CHECKPOINT_DIR}-*")  # of a run that was killed while it saved
_ROWS_SHOWN, _CHARACTERS_SHOWN = 8, 80
_OUT_OF_MEMORY = (torch.OutOfMemoryError, MemoryError)


class MeteredTrainer:
    """A mixin for TRL's trainers: `class MiniMindSFTTrainer(MeteredTrainer, SFTTrainer)`.

    Logs of training get, beside the trainer's own loss, grad_norm, learning_rate and epoch:

    - `global_step`;
    - `num_input_tokens_seen`: tokens that are not padding, of all processes, since the first step of all (a resumed run
      goes on counting); DPO and reward models count both answers, GKD the answers that the student wrote;
    - `tokens_per_second`, `samples_per_second` (rows of the data set: a packed row, a DPO pair), `steps_per_second`:
      over the time since the last log, without evaluation and checkpoints;
    - `mfu_percent`: model FLOPs, see `train_flops_per_token`, over `peak_flops` of all devices. The forward pass of
      a reference or teacher model counts, generation does not. Left out for models whose FLOPs are not known;
    - `eta_minutes`: steps to go at the pace of this session, evaluation and checkpoints included.

    TRL's `num_tokens`, which starts anew when a run is resumed, is dropped from the logs.

    A loss or gradient that is not finite raises `TrainingError` before the optimizer's step. Checkpoints appear under
    their name when they are complete, and older ones go only then. SIGINT (Ctrl-C), SIGTERM and SIGHUP end `train` with
    `TrainingInterrupted` (exit code 130, 143 or 129) after the current step and a checkpoint.

    Any error after the first step saves the last completed one before it ends `train`, as if it had been saved then: a
    run that is resumed ends where one without the error does. Of several processes all fail together, and save, where
    rows cannot be had, a collator or a reward fails, or a figure is not finite. One that fails alone (out of memory)
    ends at once, without a checkpoint: the others could not take part.

    A stream is trained on pass after pass, each process on its part of every batch or on the share that
    `split_dataset_by_node` gives it, and a resumed run goes on at its row.

    Args:
        eval_batches: how many batches of each process to evaluate on: later rows of `eval_dataset` are dropped. None:
            all rows. `eval_dataset` must be given by name then.

    Raises:
        InputError: the options that TRL, transformers, accelerate or PEFT refuse.
    """

    rows_dropped: dict[str, int] | None = None
    """Rows of the mixture that the trainer has dropped, by split; None for a trainer that takes all."""
    drop_reason: str
    """Why it drops rows; `{}` stands for `max_length`."""

    _staging: Path | None = None
    _stream: EndlessStream | None = None
    _stream_at: dict[str, Any] | None = None  # where a checkpoint's rows end, if the stream has been read further

    def __init__(self, *positional, eval_batches: int | None = None, **kwargs):
        if eval_batches is not None:
            if "eval_dataset" not in kwargs:
                raise TypeError("with eval_batches, give eval_dataset by name")
            args = next(value for value in (*positional, *kwargs.values()) if isinstance(value, TrainingArguments))
            kwargs["eval_dataset"] = first_batches(kwargs["eval_dataset"], args, eval_batches)
        try:
            super().__init__(*positional, **kwargs)
        except InputError:
            raise
        except (ImportError, NotImplementedError, ValueError) as error:
            raise InputError(one_line(error)) from error
        self.row_counts: dict[str, Any] | None = None  # rows that are left and dropped, for `recipe.json`
        self.args.include_num_input_tokens_seen = "no"  # counted here instead, without a transfer in every batch
        self.records: dict[str, Callable[[], Any]] = {}  # JSON files for every checkpoint, by name
        self.complete_card: Callable[[], None] | None = None  # puts right what TRL drafts as the model card
        self._clock = Stopwatch()
        self._uncounted: torch.Tensor | None = None  # tokens and squared lengths of this process, still on its device
        self._squared_lengths = 0
        self._mark = self._session = _Mark(0.0, 0, 0, 0)
        self._in_step = False
        self._inputs: Any = None  # of the batch at hand
        self._completed: _Completed | None = None  # the last step of this session
        self._changing = -1  # the step after which the optimizer is at work, or has worked with what it must not
        self._together = self.args.world_size == 1  # whether all processes stop at the same place
        self.signals = StopOnSignal()
        self.progress = RecipeProgress()
        if self.pop_callback(ProgressCallback) or self.pop_callback(PrinterCallback):
            self.add_callback(self.progress)
        self.add_callback(self.signals)
        self.add_callback(_Session(self))

    def train(self, *args, **kwargs):
        """As `Trainer.train`.

        Raises:
            TrainingError: see the class; the state after the last completed step is saved. An error before the first
                step is raised as it is.
            TrainingInterrupted: a signal came; the state after its step is saved.
        """
        self._completed, self._stream_at, self._together = None, None, self.args.world_size == 1
        if self.is_local_process_zero():
            for pattern in _LEFTOVERS:
                for leftover in Path(self.args.output_dir).glob(pattern):
                    shutil.rmtree(leftover, ignore_errors=True)
        try:
            with self.signals, self._saving_what_is_done():
                result = super().train(*args, **kwargs)
                if name := self.signals.agreed(self.args):
                    self._leave(name)
                return result
        finally:
            self.progress.close()

    def get_batch_samples(self, epoch_iterator, num_batches, device):
        self._in_step, batches, failure = True, [], None
        try:
            batches = list(islice(epoch_iterator, num_batches))
        except (Exception, SystemExit) as error:
            failure = error
        self.fail_together(failure)  # before the processes count their tokens together
        return super().get_batch_samples(iter(batches), num_batches, device)

    def fail_together(self, failure: BaseException | None) -> None:
        """Raise what has failed in this or another process, so that none waits for it; all processes must call it.

        Raises:
            TrainingError: another process has failed; else the failure.
        """
        if self.args.world_size == 1:
            anywhere = failure is not None
        else:
            anywhere = self.accelerator.gather(torch.tensor([failure is not None], device=self.args.device).int()).any()
        if not anywhere:
            return
        self._together = True
        raise failure or TrainingError("another process has failed, and tells why")

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        result = super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        if self.is_deepspeed_enabled and torch.is_grad_enabled():  # whose engine steps within `training_step`
            self._stop_where_not_finite(result[0] if return_outputs else result, inputs)
            if self._in_step and self.accelerator.sync_gradients:
                self._changing = self.state.global_step
        return result

    def training_step(self, model, inputs, num_items_in_batch=None) -> torch.Tensor:
        self._inputs = inputs
        loss = super().training_step(model, inputs, num_items_in_batch)
        self._stop_where_not_finite(loss, inputs)
        return loss

    def _stop_where_not_finite(self, loss: torch.Tensor, inputs: Any) -> None:
        bad = ~torch.isfinite(loss.detach()).all()
        # All processes must stop together: the others would step with the gradients of the bad one.
        bad_anywhere = bad if self.accelerator.num_processes == 1 else self.accelerator.gather(bad.int()).any()
        self._together |= bool(bad_anywhere)
        if bad_anywhere and bad:
            self._stop_training(f"the loss is {loss.item()}", inputs)
        elif bad_anywhere:
            self._stop_training("another process's loss is not finite", None)

    def _get_grad_norm(self, model, grad_norm=None):
        norm = super()._get_grad_norm(model, grad_norm=grad_norm)
        # With fp16, infinite gradients are how the loss scale is found; the scaler skips those steps itself.
        if norm is not None and not self.args.fp16 and not math.isfinite(norm):
            what = f"the norm of the gradient is {float(norm)}, though the loss is finite"
            self._together = True  # the norm is that of all
            # DeepSpeed's engine has stepped by now.
            self._stop_training(what, None, did="saved" if self.is_deepspeed_enabled else "changed")
        return norm

    def evaluate(self, *args, **kwargs) -> dict[str, float]:
        self._distribute()
        with self._clock.paused(), self._before_engine():
            return super().evaluate(*args, **kwargs)

    def _distribute(self) -> None:
        """Put the model into DDP, where training has not: evaluation marks it as prepared, and it would never be."""
        has_own_engine = self.is_deepspeed_enabled or self.is_fsdp_enabled
        if self.accelerator.num_processes > 1 and not has_own_engine and self.model_wrapped is self.model:
            self._wrap_model(self.model)  # tells accelerate with which of our settings
            self.model_wrapped = self.accelerator.prepare_model(self.model)

    @contextmanager
    def _before_engine(self) -> Iterator[None]:
        """Until training makes DeepSpeed's engine, evaluate without: transformers would make one that cannot train."""
        enabled = self.is_deepspeed_enabled
        self.is_deepspeed_enabled = enabled and self.deepspeed is not None
        try:
            yield
        finally:
            self.is_deepspeed_enabled = enabled

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        for figures in getattr(self, "_metrics", {}).values():
            figures.pop("num_tokens", None)
        if "loss" in logs:
            logs.update(self._figures())
        super().log(logs, start_time)

    def _track_num_input_tokens(self, inputs) -> None:
        # The hook of transformers after every batch. Its own count takes padding-free batches' pad ids for padding.
        if (counts := count_tokens(inputs)) is not None:
            self._uncounted = counts if self._uncounted is None else self._uncounted + counts

    def _settle_tokens(self) -> None:
        """Bring the count of all processes up to date; all of them must call it."""
        if self._uncounted is None:
            return
        # of tensor and context parallel processes, several hold the same rows
        copies = self.get_tp_size() * self.get_cp_size()
        tokens, squares = self.accelerator.gather(self._uncounted[None]).sum(0).tolist()
        self.state.num_input_tokens_seen += tokens // copies
        self._squared_lengths += squares // copies
        self._uncounted = None

    def _start_session(self) -> None:
        self._uncounted = None
        self._peak = self.args.world_size * max(1, self.args.n_gpu) * peak_flops(self.args.device, self._dtype())
        self._clock = Stopwatch()
        self._mark = self._session = self._now()

    def _now(self) -> "_Mark":
        return _Mark(
            self._clock.seconds(), self.state.global_step, self.state.num_input_tokens_seen, self._squared_lengths
        )

    def _figures(self) -> dict[str, float]:
        self._settle_tokens()
        before, now = self._mark, self._now()
        self._mark = now
        seconds, steps, tokens = now.seconds - before.seconds, now.step - before.step, now.tokens - before.tokens
        figures = {
            "global_step": now.step,
            "num_input_tokens_seen": now.tokens,
            "tokens_per_second": tokens / seconds,
            "samples_per_second": steps * self.get_total_train_batch_size(self.args) / seconds,
            "steps_per_second": steps / seconds,
        }
        if tokens and self.model.config.model_type in COUNTED_MODELS:
            rows = steps * self.get_total_train_batch_size(self.args)
            length = (now.squares - before.squares) / tokens or tokens / rows
            figures["mfu_percent"] = 100 * tokens * self._flops_per_token(length) / (seconds * self._peak)
        steps_done = now.step - self._session.step
        figures["eta_minutes"] = (self.state.max_steps - now.step) * self._clock.wall_seconds() / steps_done / 60
        return figures

    def _dtype(self) -> torch.dtype:
        if self.args.bf16 or self.args.fp16:
            return torch.bfloat16 if self.args.bf16 else torch.float16
        return next(self.model.parameters()).dtype

    def _flops_per_token(self, length: float) -> float:
        model = self.accelerator.unwrap_model(self.model)
        config = model.config
        output_size = None if model.get_output_embeddings() is not None else config.num_labels
        # Of a parameter that ZeRO-3 shards, nothing is there.
        sizes = ((part.requires_grad, getattr(part, "ds_numel", part.numel())) for part in model.parameters())
        trained = [size for requires_grad, size in sizes if requires_grad]
        has_frozen = len(trained) < sum(1 for _ in model.parameters())
        total = train_flops_per_token(config, length, output_size, sum(trained) if has_frozen else None)
        for helper in self._helper_configs():
            total += train_flops_per_token(helper, length) / 3  # forward only
        return total

    def _helper_configs(self) -> Iterator[Any]:
        """Of the models that go forward in every step beside the trained one."""
        for name in ("ref_model", "teacher_model"):
            model = getattr(self, name, None)
            if model is not None and not (name == "ref_model" and getattr(self, "precompute_ref_logps", False)):
                config = self.accelerator.unwrap_model(model).config
                if config.model_type in COUNTED_MODELS:
                    yield config

    def _stop_training(self, what: str, inputs: Any, did: str = "changed") -> None:
        self._inputs = inputs
        raise _NotFinite(f"{what}; stopped before it {did} the weights")

    @contextmanager
    def _saving_what_is_done(self) -> Iterator[None]:
        """Around training: an error ends it once the last completed step is saved, and tells of that."""
        try:
            yield
        except (TrainingInterrupted, SavingError):
            raise
        except _NotFinite as error:
            raise TrainingError(self._breaking_off(error)) from None
        except BaseException as error:  # of whatever kind: sys.exit() and Ctrl-C in a function of the user's, too
            if self._completed is None:
                raise
            broken = TrainingError(self._breaking_off(error))
            if self.signals.number and isinstance(error, OSError):  # a terminal that went away in the middle of a line
                raise TrainingInterrupted(128 + self.signals.number) from error
            if not isinstance(error, (InputError, TrainingError, SystemExit, *_OUT_OF_MEMORY)):
                broken.unexpected = error
            raise broken from error

    def _breaking_off(self, error: BaseException) -> str:
        """Save what is done, and say so after the error, and which rows it came with."""
        process = f" in process {self.args.process_index}" if self.args.world_size > 1 else ""
        where = f"step {self.state.global_step + 1}" if self._in_step else f"after step {self.state.global_step}"
        foreseen = isinstance(error, (InputError, TrainingError))
        self._together |= isinstance(error, InputError)  # of which all processes have heard by now
        # a row that is the reason is named by what foresees it
        rows = [] if isinstance(error, InputError) else describe_rows(self._inputs, self.processing_class)
        if isinstance(error, _OUT_OF_MEMORY):  # make room: what the error's frames hold, and the gradients
            traceback.clear_frames(error.__traceback__)
            self.model.zero_grad()
            clear_device_cache(garbage_collection=True)
        told = f"{where}{process}: {error if foreseen else described(error)}"
        joint = ", " if isinstance(error, _NotFinite) else "; "
        listing = f". The batch's {len(rows)} rows begin:\n{_listing(rows)}" if rows else ""
        return f"{told}{joint}{self._save_completed()}{listing}"

    def _save_completed(self) -> str:
        """Save the last completed step, if it is not; returns what is safe then."""
        step, run_dir = self.state.global_step, Path(self.args.output_dir)
        folder = run_dir / f"{PREFIX_CHECKPOINT_DIR}-{step}"
        if self._completed is None or checkpoint_problem(folder) is None:
            return what_is_safe(run_dir)
        if self._changing == step:
            return f"the optimizer was at work, and nothing was saved; {what_is_safe(run_dir)}"
        if not self._together:
            return f"the other processes cannot save with this one; {what_is_safe(run_dir)}"
        if self._completed.step == step:  # else the step's own callbacks failed, and nothing of the next has begun
            self.restore_progress(self._completed.progress)
        try:
            self._write_checkpoint(self.model, trial=None)
        except SavingError as error:
            return str(error)
        except Exception as error:  # of what else a checkpoint calls: what has broken the run off is to be told
            return f"its state could not be saved: {described(error)}; {what_is_safe(run_dir)}"
        return f"saved {folder}, --resume auto goes on from it"

    def _load_best_model(self) -> None:
        super()._load_best_model()
        self._changing = self.state.global_step  # these are the weights of another one

    def progress_made(self) -> dict[str, Any]:
        """What belongs to a checkpoint and changes within a step, besides weights and optimizer; kept after every step.

        Later changes must not reach it.
        """
        return {
            "random": _random_states(),
            "stream": self._stream_state(),
            "counts": (self.state.num_input_tokens_seen, self._uncounted, self._squared_lengths, self.current_flos),
        }

    def restore_progress(self, progress: dict[str, Any]) -> None:
        """Go back to what `progress_made` gave."""
        _set_random_states(*progress["random"])
        self._stream_at = progress["stream"]
        self.state.num_input_tokens_seen, self._uncounted, self._squared_lengths, self.current_flos = progress["counts"]

    def _maybe_log_save_evaluate(self, *args, **kwargs) -> None:
        self._in_step, self._inputs = False, None
        self._note_progress()
        super()._maybe_log_save_evaluate(*args, **kwargs)
        self._note_progress()

    def _note_progress(self) -> None:
        if self.state.global_step > self._session.step:  # else an epoch has ended that had no step
            self._completed = _Completed(self.state.global_step, self.progress_made())

    def _leave(self, signal_name: str) -> None:
        folder = Path(self._get_output_dir(trial=None)) / f"{PREFIX_CHECKPOINT_DIR}-{self.state.global_step}"
        self.accelerator.wait_for_everyone()
        if not folder.is_dir():  # the signal came after the last step
            self._save_checkpoint(self.model, trial=None)
            self.control = self.callback_handler.on_save(self.args, self.state, self.control)
        self.progress.close()
        self.accelerator.print(
            f"stopped by {signal_name} after step {self.state.global_step} of {self.state.max_steps}; saved {folder}"
        )
        raise TrainingInterrupted(128 + self.signals.number)

    def _get_dataloader(self, dataset, description, batch_size, sampler_fn=None, is_training=False, *args, **kwargs):
        collator, self.data_collator = self.data_collator, partial(_collate, self.data_collator, self.processing_class)
        try:
            if is_training and isinstance(dataset, IterableDataset):
                return self._stream_loader(dataset, description, batch_size)
            return super()._get_dataloader(dataset, description, batch_size, sampler_fn, is_training, *args, **kwargs)
        finally:
            self.data_collator = collator

    def _stream_loader(self, dataset: IterableDataset, description: str, batch_size: int) -> DataLoader:
        # Not through accelerate, which would read a batch ahead of the state, and share out again what is shared.
        is_share = dataset._distributed is not None
        share = () if is_share else (self.args.process_index, self.args.world_size)
        self._stream = EndlessStream(dataset, batch_size, *share)
        return DataLoader(
            self._stream,
            batch_size=batch_size,
            collate_fn=self._get_collator_with_removed_columns(self.data_collator, description),
            num_workers=self.args.dataloader_num_workers,
            prefetch_factor=self.args.dataloader_prefetch_factor,
            multiprocessing_context=self.args.dataloader_multiprocessing_context,
            in_order=self.args.dataloader_in_order,
            pin_memory=self.args.dataloader_pin_memory,
            generator=torch.Generator(),  # or it would draw from that of the training
        )

    def _run_epoch(self, *args, **kwargs) -> None:
        if self.state.global_step >= self.state.max_steps:  # resumed after the last: transformers would take one more
            self.control.should_training_stop = True
            return
        checkpoint = kwargs["resume_from_checkpoint"]
        if self._stream and checkpoint and stream_state(checkpoint, self.args.process_index).exists():
            state = stream_state(checkpoint, self.args.process_index).read_text(encoding="utf-8")
            self._stream.load_state_dict(json.loads(state))
            kwargs["steps_trained_in_current_epoch"] = 0  # which transformers would read again
            kwargs["epoch"] = kwargs["epochs_trained"] = self.state.global_step / self.state.max_steps
        before = self.state.global_step
        super()._run_epoch(*args, **kwargs)
        if self._stream and self.state.global_step == before:  # transformers would take it for the end
            raise InputError(
                "the training stream gives not one batch: all its rows are dropped, or a batch takes more prompts than "
                "it has; look at it with `minimind-trl data`, or make the batch smaller"
            )

    def _save_rng_state(self, output_dir: str) -> None:
        super()._save_rng_state(output_dir)
        if state := self._stream_at or self._stream_state():
            write_json(stream_state(output_dir, self.args.process_index), state)

    def _stream_state(self) -> dict[str, Any] | None:
        with_workers = self.args.dataloader_num_workers  # which are ahead, and do not tell of their places
        return self._stream.state_dict() if self._stream and not with_workers else None

    def _load_rng_state(self, checkpoint: str | None) -> None:
        saved_by = processes_of(Path(checkpoint)) if checkpoint else 0
        if saved_by not in (0, self.args.world_size):  # transformers would go on with other random numbers
            raise InputError(
                f"{checkpoint} was saved by {saved_by} processes, this run has {self.args.world_size}: resume with "
                f"{saved_by}, or start a new run from its weights"
            )
        super()._load_rng_state(checkpoint)

    def create_model_card(self, *args, **kwargs) -> None:
        super().create_model_card(*args, **kwargs)
        if self.complete_card is not None and self.is_world_process_zero():
            self.complete_card()

    def _get_output_dir(self, trial) -> str:
        return super()._get_output_dir(trial) if self._staging is None else str(self._staging)

    def _push_from_checkpoint(self, checkpoint_folder: str) -> None:
        if self._staging is None:
            super()._push_from_checkpoint(checkpoint_folder)

    def _save_checkpoint(self, model, trial) -> None:
        run_dir = Path(self._get_output_dir(trial))
        folder = run_dir / f"{PREFIX_CHECKPOINT_DIR}-{self.state.global_step}"
        with self._clock.paused():
            self._write_checkpoint(model, trial)
            if self.args.push_to_hub:
                self._push_from_checkpoint(str(folder))
            if self.args.should_save:
                rotate(folder, self.args.save_total_limit, self.state.best_model_checkpoint)
            self.accelerator.wait_for_everyone()

    def _write_checkpoint(self, model, trial) -> None:
        # transformers writes a checkpoint in place; here it writes to a folder beside, which is renamed when complete.
        run_dir = Path(self._get_output_dir(trial))
        name = f"{PREFIX_CHECKPOINT_DIR}-{self.state.global_step}"
        with self._clock.paused():
            self._settle_tokens()
            self._staging = run_dir / f"{_STAGING}{name}"
            try:
                with saving(name, run_dir):
                    super()._save_checkpoint(model, trial)  # also rotates, among the one checkpoint that is there
                    self.accelerator.wait_for_everyone()
                    self._publish(self._staging / name, run_dir / name)
            finally:
                staging, self._staging = self._staging, None
                if self.args.should_save:
                    shutil.rmtree(staging, ignore_errors=True)
            self.accelerator.wait_for_everyone()  # one that ends before it is there would take the others along

    def _publish(self, staged: Path, final: Path) -> None:
        if self.state.best_global_step == self.state.global_step and self.state.best_model_checkpoint is not None:
            self.state.best_model_checkpoint = str(final)
        if self.args.should_save:
            self.state.save_to_json(str(staged / TRAINER_STATE_NAME))
            for file, content in self.records.items():
                write_json(staged / file, content())
            if problem := contents_problem(staged):
                raise TrainingError(problem)
            write_checksums(staged)
            with atomic_path(final) as temporary:
                staged.rename(temporary)


def first_batches(rows: Any, args: TrainingArguments, batches: int | None) -> Any:
    """The rows of the first `batches` evaluation batches of every process, of each of several data sets by name.

    A stream or None stays as it is, and everything does with `batches=None`.
    """
    if isinstance(rows, dict):
        return {name: first_batches(part, args, batches) for name, part in rows.items()}
    if batches is None or not isinstance(rows, Dataset):
        return rows
    return rows.select(range(min(batches * args.per_device_eval_batch_size * args.world_size, len(rows))))


class Stopwatch:
    """Seconds since it was made, without those spent in `paused` blocks, which may be nested."""

    def __init__(self):
        self._start = time.perf_counter()
        self._paused = 0.0
        self._paused_since: float | None = None

    def seconds(self) -> float:
        now = time.perf_counter() if self._paused_since is None else self._paused_since
        return now - self._start - self._paused

    def wall_seconds(self) -> float:
        return time.perf_counter() - self._start

    @contextmanager
    def paused(self) -> Iterator[None]:
        if self._paused_since is not None:
            yield
            return
        self._paused_since = time.perf_counter()
        try:
            yield
        finally:
            self._paused += time.perf_counter() - self._paused_since
            self._paused_since = None


class _Mark:
    """How far a training was at some moment."""

    def __init__(self, seconds: float, step: int, tokens: int, squares: int):
        self.seconds, self.step, self.tokens, self.squares = seconds, step, tokens, squares


class _Completed:
    """A step that is done, and what of it the next one changes before it is done itself."""

    def __init__(self, step: int, progress: dict[str, Any]):
        self.step, self.progress = step, progress


class _NotFinite(TrainingError):
    """A loss or gradient is not finite."""


class _Session(TrainerCallback):
    """Tells a trainer when its training begins, and when the optimizer does."""

    def __init__(self, trainer: MeteredTrainer):
        self.trainer = trainer

    def on_train_begin(self, args, state, control, **kwargs):
        self.trainer._start_session()

    def on_pre_optimizer_step(self, args, state, control, **kwargs):
        self.trainer._changing = state.global_step


def _random_states() -> tuple:
    on_gpu = torch.cuda.get_rng_state() if torch.cuda.is_initialized() else None
    return random.getstate(), np.random.get_state(), torch.get_rng_state(), on_gpu


def _set_random_states(python: tuple, numpy: tuple, cpu: torch.Tensor, on_gpu: torch.Tensor | None) -> None:
    random.setstate(python)
    np.random.set_state(numpy)
    torch.set_rng_state(cpu)
    if on_gpu is not None:
        torch.cuda.set_rng_state(on_gpu)


def _collate(collator: Callable, processing_class: Any, rows: list) -> Any:
    """A collator whose failures name the rows."""
    try:
        return collator(rows)
    except (Exception, SystemExit) as error:
        name = getattr(collator, "__qualname__", type(collator).__qualname__)
        shown = ", ".join(repr(row[: _CHARACTERS_SHOWN // 2]) for row in describe_rows(rows, processing_class))
        raise TrainingError(f"the collator {name} failed: {described(error)}; the rows begin {shown}") from error


def count_tokens(inputs: Any) -> torch.Tensor | None:
    """Tokens of a batch without padding, and the sum of its sequences' squared lengths: two integers on its device.

    A padding-free batch is a single row of whole sequences, whose positions start at 0 each; all of it counts (with
    `pad_to_multiple_of` also the few pads at its end). None for a batch without `input_ids`.
    """
    if not isinstance(inputs, Mapping) or "input_ids" not in inputs:
        return None
    mask, positions = inputs.get("attention_mask"), inputs.get("position_ids")
    if mask is None:
        mask = torch.ones_like(inputs["input_ids"])
    mask = mask.long()
    # with positions, 1 + 3 + ... + (2n - 1) = n^2
    squares = mask.sum(-1).square() if positions is None else mask * (2 * positions.long() + 1)
    return torch.stack([mask.sum(), squares.sum()])


def describe_rows(inputs: Any, processing_class: Any) -> list[str]:
    """The rows of a batch as text, without padding; packed sequences one by one. Empty where they cannot be told."""
    tokenizer = getattr(processing_class, "tokenizer", processing_class)
    if isinstance(inputs, list):  # online trainers and collators get the rows themselves
        return [_row_text(row, tokenizer) for row in inputs]
    if not isinstance(inputs, Mapping) or "input_ids" not in inputs or tokenizer is None:
        return []
    ids, mask, positions = (inputs.get(name) for name in ("input_ids", "attention_mask", "position_ids"))
    rows = []
    for row in range(ids.shape[0]):
        kept = ids[row] if mask is None else ids[row][mask[row].bool()]
        starts = [0]
        if positions is not None:
            here = positions[min(row, positions.shape[0] - 1)]
            here = here if mask is None else here[mask[row].bool()]
            starts = (here == 0).nonzero().flatten().tolist() or [0]
        ends = [*starts[1:], len(kept)]
        rows += [tokenizer.decode(kept[start:end]) for start, end in zip(starts, ends, strict=True)]
    return rows


def _row_text(row: Any, tokenizer: Any) -> str:
    if isinstance(row, Mapping) and "input_ids" in row and tokenizer is not None:
        return tokenizer.decode(row["input_ids"])
    return str(row.get("prompt", row)) if isinstance(row, Mapping) else str(row)


def _listing(rows: list[str]) -> str:
    lines = [f"  {number}. {row[:_CHARACTERS_SHOWN]!r}" for number, row in enumerate(rows[:_ROWS_SHOWN], start=1)]
    if len(rows) > _ROWS_SHOWN:
        lines.append(f"  and {len(rows) - _ROWS_SHOWN} more")
    return "\n".join(lines)
