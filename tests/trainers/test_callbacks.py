"""Progress and curves."""

import io
import re
import sys

import pytest
from rich.console import Console

from minimind_trl.errors import InputError
from minimind_trl.trainers import RecipeProgress, write_curves
from minimind_trl.trainers.callbacks import evaluation_line, training_line
from tests.trainers.tiny import sft

EVALUATING = {"eval_strategy": "steps", "eval_steps": 2}


def test_plain_lines_where_there_is_no_terminal(tmp_path, capsys):
    trainer = sft(tmp_path, disable_tqdm=False, **EVALUATING)
    trainer.train()
    output = capsys.readouterr()
    assert "\x1b" not in output.out and "it/s" not in output.err
    lines = [line for line in output.out.splitlines() if line.startswith("step")]
    number = r"[\d.,]+"
    for step in (2, 4):
        training = rf"step {step}/4  loss {number}  lr {number}e-\d+  {number} tokens/s  eta {number} min"
        assert [line for line in lines if re.fullmatch(training, line)]
        assert [line for line in lines if line.startswith(f"step {step}/4  eval: loss ")]
    assert len(lines) == 4


def test_a_bar_on_a_terminal(tmp_path):
    screen = io.StringIO()
    trainer = sft(tmp_path, disable_tqdm=False, **EVALUATING)
    trainer.progress.console = Console(file=screen, force_terminal=True, width=140)
    trainer.train()
    text = screen.getvalue()
    assert "4/4" in text and "tokens/s" in text and "eval: loss" in text
    assert text.count("\x1b[?25l") == text.count("\x1b[?25h") == 1, "the cursor is back"


def test_the_terminal_is_restored_when_training_fails(tmp_path):
    screen = io.StringIO()
    trainer = sft(tmp_path, disable_tqdm=False)
    trainer.progress.console = Console(file=screen, force_terminal=True)
    trainer.compute_loss = None
    with pytest.raises(TypeError):
        trainer.train()
    assert screen.getvalue().endswith("\x1b[?25h") and trainer.progress.bar is None


def test_lines_show_the_figures_that_are_there():
    assert training_line({"loss": 1.0, "learning_rate": 2e-3}) == "loss 1.0000  lr 2.00e-03"
    evaluation = {"eval_loss": 1.0, "eval_runtime": 3.0, "eval_samples_per_second": 7.0, "eval_a": 0.5, "epoch": 1.0}
    assert evaluation_line(evaluation) == "eval: loss 1.000, a 0.5000"
    assert evaluation_line({"train_runtime": 3.0}) == ""


def test_a_single_progress_is_enough(tmp_path):
    callbacks = sft(tmp_path, disable_tqdm=False).callback_handler.callbacks
    names = [type(callback).__name__ for callback in callbacks]
    assert names.count(RecipeProgress.__name__) == 1 and not {"ProgressCallback", "PrinterCallback"} & set(names)


def test_curves(tmp_path):
    pytest.importorskip("matplotlib")
    trainer = sft(tmp_path, **EVALUATING)
    trainer.train()
    write_curves(trainer.state.log_history, tmp_path / "curves.png")
    assert (tmp_path / "curves.png").read_bytes().startswith(b"\x89PNG")
    write_curves([{"step": 0, "eval_loss": 1.0}], tmp_path / "one.png")
    assert (tmp_path / "one.png").is_file()
    write_curves([{"step": 3, "train_runtime": 1.0}], tmp_path / "none.png")
    assert not (tmp_path / "none.png").exists()


def test_curves_without_matplotlib_say_how_to_get_it(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(InputError, match="pip install matplotlib"):
        write_curves([{"step": 1, "loss": 1.0}], tmp_path / "curves.png")
