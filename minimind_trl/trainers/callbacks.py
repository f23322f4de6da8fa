"""Callbacks: stop on signals, evaluate at the end, show progress."""

import os
import signal
import threading
import time

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn
from transformers import TrainerCallback
from transformers.trainer_utils import has_length

from ..evaluation.measures import main_figures
from .signals import SIGNALS, leave_dead_terminal

# The terminal sends a Ctrl-C to all its processes, and launchers pass theirs on to the workers: not a second one.
_SECONDS_OF_ECHO = 2.0


class StopOnSignal(TrainerCallback):
    """Ends training after the current step, with a checkpoint, when SIGINT (Ctrl-C), SIGTERM or SIGHUP comes.

    A context manager: signals are handled within the block only. A second signal, more than two seconds after the
    first, kills at once. All processes stop if any of them gets a signal. Ignored signals (as under nohup) stay
    ignored. Outside the main thread, where Python allows no handlers, it does nothing.

    Attributes:
        number: the signal that this or another process got; 0 for none.
    """

    def __init__(self):
        self.number = 0
        self._first_at: float | None = None  # the time of this process's first signal
        self._handlers_before: dict[int, object] = {}
        self._pid = os.getpid()

    def __enter__(self) -> "StopOnSignal":
        self.number, self._first_at, self._pid = 0, None, os.getpid()
        if threading.current_thread() is threading.main_thread():
            for number in SIGNALS:
                if signal.getsignal(number) not in (signal.SIG_IGN, None):
                    self._handlers_before[number] = signal.signal(number, self._on_signal)
        return self

    def __exit__(self, *exception) -> None:
        for number, handler in self._handlers_before.items():
            signal.signal(number, handler)
        self._handlers_before = {}

    def on_step_end(self, args, state, control, **kwargs):
        if self.agreed(args):
            control.should_training_stop = control.should_save = control.should_log = True
            control.should_evaluate = False

    def agreed(self, args) -> str | None:
        """The name of the signal that any process got, or None; all processes must call it."""
        if args.world_size > 1:
            number = torch.tensor(self.number, device=args.device)
            torch.distributed.all_reduce(number, torch.distributed.ReduceOp.MAX)
            self.number = int(number)
        return signal.Signals(self.number).name if self.number else None

    def _on_signal(self, number: int, frame) -> None:
        if os.getpid() != self._pid:  # a worker that the data loader forked
            return
        if number == getattr(signal, "SIGHUP", None):
            leave_dead_terminal()
        if self._first_at is None:
            self.number, self._first_at = number, time.monotonic()
            if os.environ.get("RANK", "0") == "0":
                # not print: the signal may have come in the middle of one
                os.write(2, b"\nstopping once the work is saved; a second signal kills at once\n")
        elif time.monotonic() - self._first_at > _SECONDS_OF_ECHO:
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)


class EvaluateAtEnd(TrainerCallback):
    """Evaluates the model that training leaves, unless that was done, before the trackers close.

    Callbacks run in their order, and the trackers' are early ones: call `put_first`.

    Attributes:
        figures: of the evaluation of that model; None if a signal ended training.
    """

    def __init__(self, trainer):
        self.trainer = trainer
        self.figures: dict[str, float] | None = None
        self._by_step: dict[int, dict[str, float]] = {}

    def put_first(self) -> None:
        self.trainer.callback_handler.callbacks.insert(0, self)

    def on_evaluate(self, args, state, control, metrics=None, **kwargs):
        self._by_step[state.global_step] = metrics

    def on_train_begin(self, args, state, control, **kwargs):
        self._by_step.clear()

    def on_train_end(self, args, state, control, **kwargs):
        if self.trainer.signals.agreed(args):
            return  # a signal asks for a quick end
        is_best = args.load_best_model_at_end and state.best_global_step
        step = state.best_global_step if is_best else state.global_step
        self.figures = self._by_step[step] if step in self._by_step else self.trainer.evaluate()


class RecipeProgress(TrainerCallback):
    """A bar with the latest figures on a terminal; elsewhere, and with `--disable_tqdm`, one plain line per log."""

    def __init__(self, console: Console | None = None):
        self.console = console or Console()
        self.bar: Progress | None = None
        self._training: TaskID | None = None
        self._evaluation: TaskID | None = None

    def on_train_begin(self, args, state, control, **kwargs):
        if state.is_world_process_zero and self.console.is_terminal and not args.disable_tqdm:
            columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
            figures = TextColumn("{task.fields[figures]}")
            self.bar = Progress(*columns, figures, console=self.console, refresh_per_second=4)
            self._training = self.bar.add_task("train", total=state.max_steps, completed=state.global_step, figures="")
            self.bar.start()

    def on_step_end(self, args, state, control, **kwargs):
        if self.bar is not None:
            self.bar.update(self._training, completed=state.global_step)

    def on_prediction_step(self, args, state, control, eval_dataloader=None, **kwargs):
        if self.bar is None or not has_length(eval_dataloader):
            return
        if self._evaluation is None:
            self._evaluation = self.bar.add_task("eval", total=len(eval_dataloader), figures="")
        self.bar.advance(self._evaluation)

    def on_evaluate(self, args, state, control, **kwargs):
        if self.bar is not None and self._evaluation is not None:
            self.bar.remove_task(self._evaluation)
        self._evaluation = None

    def on_log(self, args, state, control, logs=None, **kwargs):
        if not state.is_world_process_zero or not logs:
            return
        if self.bar is not None and "loss" in logs:
            self.bar.update(self._training, figures=training_line(logs))
            return
        line = training_line(logs) if "loss" in logs else evaluation_line(logs)
        if line:
            steps = f"/{state.max_steps}" if state.max_steps else ""
            self.console.print(
                f"step {state.global_step}{steps}  {line}", markup=False, highlight=False, soft_wrap=True
            )

    def on_train_end(self, args, state, control, **kwargs):
        self.close()

    def close(self) -> None:
        """Remove the bar and leave the terminal as it was; called after a failure, too."""
        if self.bar is not None:
            self.bar.stop()
        self.bar = self._evaluation = None


def training_line(logs: dict[str, float]) -> str:
    """`loss 1.2346  lr 2.00e-03  51,234 tokens/s  eta 3.2 min`, without figures that are missing."""
    formats = {
        "loss": "loss {:.4f}",
        "learning_rate": "lr {:.2e}",
        "tokens_per_second": "{:,.0f} tokens/s",
        "eta_minutes": "eta {:.1f} min",
    }
    return "  ".join(text.format(logs[name]) for name, text in formats.items() if name in logs)


def evaluation_line(logs: dict[str, float]) -> str:
    """The main figures, `eval: loss 0.8950, perplexity 2.447`; empty for logs that are not of an evaluation."""
    figures = main_figures(logs)
    return f"eval: {figures}" if figures else ""
