"""Speed and progress in the training logs: tokens per second, MFU, time left."""

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch

from ..hardware import COUNTED_MODELS, peak_flops, train_flops_per_token
from .step_snapshot import StepSnapshot


class _Mark(NamedTuple):
    """How far training was at some moment; `seconds` without the untimed ones, `wall` with them."""

    seconds: float
    wall: float
    step: int
    tokens: int
    squares: int


class Throughput(StepSnapshot):
    """Adds figures to every training log, beside the trainer's own loss, grad_norm, learning_rate and epoch.

    - `global_step`;
    - `num_input_tokens_seen`: tokens without padding, of all processes, since step 0 (a resumed run continues the
      count). DPO and reward models count both answers, GKD the answers that the student wrote;
    - `tokens_per_second`, `samples_per_second` (rows of the data set: a packed row, a DPO pair), `steps_per_second`:
      over the time since the last log, without evaluation and checkpoints;
    - `mfu_percent`: model FLOPs (see `train_flops_per_token`) over `peak_flops` of all devices. The forward pass of a
      reference or teacher model counts, generation does not. Left out for models whose FLOPs are unknown;
    - `eta_minutes`: time left at the pace of this run since it started or resumed, with evaluation and checkpoints.

    TRL's `num_tokens`, which starts anew when a run is resumed, is dropped from the logs.
    """

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.args.include_num_input_tokens_seen = "no"  # counted here, without a transfer to the CPU in every batch
        self._untimed_seconds = 0.0
        self._is_untimed = False
        self._local_counts: torch.Tensor | None = None  # `count_tokens` of this process since the last gathering
        self._squared_lengths = 0  # of all processes
        self._first_mark: _Mark | None = None  # where this call of `train` started or resumed
        self._last_mark: _Mark | None = None  # at the last log

    @property
    def steps_done(self) -> int:
        """Steps completed since this call of `train` started or resumed."""
        return 0 if self._first_mark is None else self.state.global_step - self._first_mark.step

    @contextmanager
    def untimed(self) -> Iterator[None]:
        """Time within the block does not count in the figures per second; blocks may be nested."""
        if self._is_untimed:
            yield
            return
        started, self._is_untimed = time.perf_counter(), True
        try:
            yield
        finally:
            self._untimed_seconds += time.perf_counter() - started
            self._is_untimed = False

    def add_tokens(self, inputs: Any) -> None:
        """Count the tokens of a batch that is trained on."""
        if (counts := count_tokens(inputs)) is not None:
            self._local_counts = counts if self._local_counts is None else self._local_counts + counts

    def gather_token_counts(self) -> None:
        """Update `state.num_input_tokens_seen`; all processes must call it."""
        if self._local_counts is None:
            return
        copies = self.get_tp_size() * self.get_cp_size()  # tensor and context parallel processes share their rows
        tokens, squares = self.accelerator.gather(self._local_counts[None]).sum(0).tolist()
        self.state.num_input_tokens_seen += tokens // copies
        self._squared_lengths += squares // copies
        self._local_counts = None

    def flops_per_token(self, length: float) -> float:
        """Model FLOPs of training for each token, in sequences of this mean length."""
        model = self.accelerator.unwrap_model(self.model)
        output_size = None if model.get_output_embeddings() is not None else model.config.num_labels
        # ZeRO-3 empties the parameters that it shards, and notes their sizes.
        sizes = [(part.requires_grad, getattr(part, "ds_numel", part.numel())) for part in model.parameters()]
        trained = [size for requires_grad, size in sizes if requires_grad]
        trainable = sum(trained) if len(trained) < len(sizes) else None
        total = train_flops_per_token(model.config, length, output_size, trainable)
        for config in self._forward_only_configs():
            total += train_flops_per_token(config, length) / 3
        return total

    def train(self, *args, **kwargs):
        self._first_mark = None
        return super().train(*args, **kwargs)

    def run_epoch(self, **kwargs) -> None:
        if self._first_mark is None:
            self._local_counts = None
            self._first_mark = self._last_mark = self._mark()
        super().run_epoch(**kwargs)

    def evaluate(self, *args, **kwargs) -> dict[str, float]:
        with self.untimed():
            return super().evaluate(*args, **kwargs)

    def track_num_input_tokens(self, inputs: Any) -> None:
        self.add_tokens(inputs)  # transformers' own count takes padding-free batches' pad ids for padding

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        for figures in self.metrics_to_log.values():
            figures.pop("num_tokens", None)
        if "loss" in logs:
            logs.update(self._figures())
        super().log(logs, start_time)

    def snapshot(self) -> dict[str, Any]:
        counts = (self.state.num_input_tokens_seen, self._local_counts, self._squared_lengths, self.current_flos)
        return super().snapshot() | {"counts": counts}

    def restore_snapshot(self, snapshot: dict[str, Any]) -> None:
        super().restore_snapshot(snapshot)
        seen, self._local_counts, self._squared_lengths, self.current_flos = snapshot["counts"]
        self.state.num_input_tokens_seen = seen

    def _mark(self) -> _Mark:
        state, now = self.state, time.perf_counter()
        seen, squares = state.num_input_tokens_seen, self._squared_lengths
        return _Mark(now - self._untimed_seconds, now, state.global_step, seen, squares)

    def _figures(self) -> dict[str, float]:
        self.gather_token_counts()
        before, now = self._last_mark, self._mark()
        self._last_mark = now
        seconds, steps, tokens = now.seconds - before.seconds, now.step - before.step, now.tokens - before.tokens
        rows = steps * self.get_total_train_batch_size(self.args)
        figures = {
            "global_step": now.step,
            "num_input_tokens_seen": now.tokens,
            "tokens_per_second": tokens / seconds,
            "samples_per_second": rows / seconds,
            "steps_per_second": steps / seconds,
        }
        if tokens and self.model.config.model_type in COUNTED_MODELS:
            mean_length = (now.squares - before.squares) / tokens or tokens / rows
            peak = self.args.world_size * max(1, self.args.n_gpu) * peak_flops(self.args.device, self._compute_dtype())
            figures["mfu_percent"] = 100 * tokens * self.flops_per_token(mean_length) / (seconds * peak)
        minutes_per_step = (now.wall - self._first_mark.wall) / self.steps_done / 60
        figures["eta_minutes"] = (self.state.max_steps - now.step) * minutes_per_step
        return figures

    def _compute_dtype(self) -> torch.dtype:
        if self.args.bf16 or self.args.fp16:
            return torch.bfloat16 if self.args.bf16 else torch.float16
        return next(self.model.parameters()).dtype

    def _forward_only_configs(self) -> Iterator[Any]:
        """Configs of the reference and teacher models, which go forward in every step."""
        for name in ("ref_model", "teacher_model"):
            model = getattr(self, name, None)
            if model is not None and not (name == "ref_model" and getattr(self, "precompute_ref_logps", False)):
                config = self.accelerator.unwrap_model(model).config
                if config.model_type in COUNTED_MODELS:
                    yield config


def count_tokens(inputs: Any) -> torch.Tensor | None:
    """Tokens of a batch without padding, and the sum of its sequences' squared lengths: two integers on its device.

    A padding-free batch is one row of whole sequences, whose positions each start at 0; all of it counts, including the
    few pads that `pad_to_multiple_of` adds at its end. None for a batch without `input_ids`.
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
