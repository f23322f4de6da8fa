"""Runs that end before their time, or meet another one, in this process: what they say, exit with and leave."""

import json
import os
import signal
import sys
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
import torch
import transformers.integrations.integration_utils as integrations
import yaml
from filelock import FileLock

from minimind_trl.imports import import_function
from minimind_trl.run import services
from minimind_trl.run.output_folder import RUN_LOCK
from minimind_trl.trainers import signals
from minimind_trl.trainers.safe_checkpoints import checkpoint_problem, checkpoints_in
from tests.recipes.launching import as_options, weights
from tests.recipes.run_many import run

QUICK = {"preset": "nano", "max_steps": 4, "warmup_steps": 0, "learning_rate": 1e-3, "logging_steps": 1}
QUICK |= {"per_device_train_batch_size": 4, "save_strategy": "no", "eval_batches": 2, "per_device_eval_batch_size": 4}
QUICK |= {"use_cpu": True, "bf16": False, "dataloader_pin_memory": False}


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Path:
    """Where a test's modules and mixtures are; what was imported from it is forgotten afterwards."""
    monkeypatch.syspath_prepend(tmp_path)
    known = set(sys.modules)
    yield tmp_path
    import_function.cache_clear()
    for name in set(sys.modules) - known:
        if str(tmp_path) in str(getattr(sys.modules[name], "__file__", "")):
            del sys.modules[name]


def mixture(folder: Path, phase: str = "sft", **more) -> Path:
    """Sixty short rows."""
    turns = [[{"role": "user", "content": f"say {n}"}, {"role": "assistant", "content": f"{n}"}] for n in range(60)]
    (folder / "rows.jsonl").write_text("".join(json.dumps({"messages": turn}) + "\n" for turn in turns))
    source = {"name": "rows", "source": "rows.jsonl"} | more.pop("source", {})
    content = {"metadata": {"phase": phase, "max_seq_length": 64}, "datasets": [source], "validation": {"ratio": 0.2}}
    (folder / "mixture.yaml").write_text(yaml.safe_dump(content | more))
    return folder / "mixture.yaml"


def module(folder: Path, name: str, text: str) -> str:
    (folder / f"{name}.py").write_text(f"{text}\n# {folder}\n")  # another file, for the cache of built data, every time
    return name


def sft(folder: Path, **more) -> dict:
    options = QUICK | {"data_config": folder / "mixture.yaml", "output_dir": folder / "run", "packing": False} | more
    return run("sft", as_options(**options))


def grpo(folder: Path, **more) -> dict:
    options = QUICK | {"data_config": folder / "mixture.yaml", "output_dir": folder / "run"}
    options |= {"max_completion_length": 4, "per_device_train_batch_size": 8, "num_generations": 4}
    options |= {"gradient_accumulation_steps": 1}
    return run("grpo", as_options(**options | more))


def last_line(result: dict) -> str:
    return result["err"].rstrip("\n").splitlines()[-1]


JUDGE = """
from pathlib import Path

def judge(prompts, completions, completion_ids, trainer_state, **_):
    if trainer_state.global_step == 2 and Path(__file__).with_name("broken").exists():
        raise KeyError("answer")
    return [sum(token < 278 for token in ids) / len(ids) for ids in completion_ids]

judge.low, judge.high = 0.0, 1.0
"""


def test_a_reward_that_fails_in_training_costs_nothing(folder):
    mixture(folder, "rlaif")
    reward = {"reward_funcs": f"{module(folder, 'judge_of_test', JUDGE)}:judge", "eval_interval": 0}
    assert grpo(folder, output_dir=folder / "whole", **reward)["code"] == 0
    (folder / "broken").touch()
    broken, saved = grpo(folder, **reward), folder / "run" / "checkpoint-2"
    assert broken["code"] == 1 and "Traceback" not in broken["err"]
    assert last_line(broken).startswith("error: step 3: reward judge raised KeyError: 'answer'; for the completion ")
    assert last_line(broken).endswith(f"; saved {saved}, --resume auto goes on from it")
    assert checkpoint_problem(saved) is None and not (folder / "run" / RUN_LOCK).exists()
    (folder / "broken").unlink()
    assert grpo(folder, resume="auto", **reward)["code"] == 0
    assert weights(folder / "run") == weights(folder / "whole")


def test_a_run_that_its_reward_has_ended_may_go_on_without_those_completions(folder):
    mixture(folder, "rlaif")
    name = module(folder, "judge_of_test", JUDGE)
    reward = {"reward_funcs": f"{name}:judge", "eval_interval": 0}
    (folder / "broken").touch()
    assert grpo(folder, **reward)["code"] == 1
    resumed = grpo(folder, resume="auto", reward_errors="none", save_strategy="steps", save_steps=4, **reward)
    assert resumed["code"] == 0, resumed["err"]
    [told] = [line for line in resumed["err"].splitlines() if line.startswith("--reward_errors none: ")]
    assert "reward judge raised KeyError: 'answer'; for the completion " in told
    history = json.loads((folder / "run" / "checkpoint-4" / "trainer_state.json").read_text())["log_history"]
    assert [log["num_reward_errors"] for log in history if log["step"] > 2 and "loss" in log] == [8, 8]


FILTER = """
import os, signal, sys

def keep(row, calls=[0]):
    calls[0] += 1
    if calls[0] == {}:
        {}
    return True
"""


def test_a_filter_of_a_stream_that_fails_in_training(folder):
    """In its second pass. Its rows come again as if nothing had happened."""
    name, at = "filter_of_test", folder / "fails_at"
    when = f"(int(open({str(at)!r}).read()) if os.path.exists({str(at)!r}) else 0)"
    source = {"filters": [{"type": f"{module(folder, name, FILTER.format(when, 'raise KeyError(8)'))}:keep"}]}
    mixture(folder, streaming=True, source=source)
    options = {"eval_interval": 0, "max_steps": 16}
    assert sft(folder, output_dir=folder / "whole", **options)["code"] == 0
    [calls] = sys.modules[name].keep.__defaults__
    at.write_text(str(calls[0] - 5))
    calls[0] = 0
    broken = sft(folder, **options)
    at.unlink()
    assert broken["code"] == 1 and "Traceback" not in broken["err"], broken
    told = f"filter {name}:keep failed: KeyError: 8; for the row 'say "
    assert last_line(broken).startswith("error: step ") and told in last_line(broken)
    assert "goes on from it" in last_line(broken)
    assert sft(folder, resume="auto", **options)["code"] == 0
    assert weights(folder / "run") == weights(folder / "whole")


@pytest.mark.parametrize("where", ["filter", "module", "reward"])
def test_sys_exit_in_the_users_code_is_an_error(folder, where):
    if where == "reward":
        mixture(folder, "rlaif")
        name = module(folder, "exits_of_test", "def judge(completions, **_):\n    raise SystemExit(0)\n")
        result, told = grpo(folder, reward_funcs=f"{name}:judge"), "reward judge raised SystemExit: sys.exit(0) was"
    else:
        text = "import sys\nsys.exit()\n" if where == "module" else FILTER.format(3, "sys.exit(0)")
        told = "SystemExit: sys.exit() was" if where == "module" else "failed: SystemExit: sys.exit(0) was"
        mixture(folder, source={"filters": [{"type": f"{module(folder, f'{where}_exits_of_test', text)}:keep"}]})
        result = sft(folder)
    assert result["code"] == 2 and told in last_line(result), result
    assert not (folder / "run").exists()


def test_sys_exit_anywhere_else_names_its_place(folder, monkeypatch):
    mixture(folder)
    monkeypatch.setattr("minimind_trl.run.recipe_run.run_record", lambda *args: sys.exit())
    result = sft(folder)
    assert result["code"] == 1 and not (folder / "run").exists()
    assert last_line(result).startswith("error: SystemExit: sys.exit() was called in <lambda> (")


def signalled(folder: Path, moment: str, number: int) -> dict:
    """A run that gets a signal at a moment before its first step."""
    kill = f"os.kill(os.getpid(), {int(number)})"
    if moment == "data":
        name = module(folder, "signals_of_test", FILTER.format(9, kill))
        mixture(folder, source={"filters": [{"type": f"{name}:keep"}]})
        return sft(folder)
    text = f"import os\ndef judge(completions, **_):\n    {kill}\n    return [0.0] * len(completions)\n"
    mixture(folder, "rlaif")
    return grpo(folder, reward_funcs=f"{module(folder, 'signals_of_test', text)}:judge")


@pytest.mark.parametrize("moment", ["data", "trial"])
@pytest.mark.parametrize("number", signals.SIGNALS)
def test_a_signal_before_the_first_step_ends_in_one_line_and_leaves_nothing(folder, moment, number):
    handlers = [signal.getsignal(each) for each in signals.SIGNALS]
    result = signalled(folder, moment, number)
    assert result["code"] == 128 + number
    assert result["err"].splitlines()[-1:] == [
        f"stopped by {signal.Signals(number).name} before the first step; there was nothing to save"
    ]
    assert "Traceback" not in result["err"] and not (folder / "run").exists()
    assert [signal.getsignal(each) for each in signals.SIGNALS] == handlers


def test_a_signal_while_the_model_is_saved_waits_until_all_is(folder, monkeypatch):
    mixture(folder)
    monkeypatch.setattr("minimind_trl.run.results.write_curves", lambda *_: os.kill(os.getpid(), signal.SIGTERM))
    result = sft(folder)
    assert result["code"] == 143 and "stopped by SIGTERM after the last step; all is saved" in result["out"]
    assert (folder / "run" / "README.md").is_file() and not (folder / "run" / RUN_LOCK).exists()


def test_a_second_run_in_the_folder_is_refused_and_the_lock_of_a_dead_one_is_not(folder):
    """What a run that was killed leaves is the file; the system has let go of the lock."""
    source = {"filters": [{"type": f"{module(folder, 'filter_of_test', FILTER.format(1, 'raise KeyError'))}:keep"}]}
    mixture(folder, source=source)
    path = folder / "run" / RUN_LOCK
    path.parent.mkdir()
    with FileLock(path):
        path.write_text("4711\nelsewhere\n2026-11-25 12:00:00\n")
        refused = sft(folder, resume="auto")
        assert refused["code"] == 2 and path.exists(), "and its data were not looked at"
        assert last_line(refused) == (
            f"error: --output_dir {folder / 'run'} is in use by another run (process 4711 on elsewhere, since "
            "2026-11-25 12:00:00); give another folder, or wait for its end"
        )
    assert path.exists()
    mixture(folder)
    done = sft(folder)
    assert done["code"] == 0 and not path.exists(), done["err"]


def test_a_dry_run_needs_no_lock_and_leaves_nothing(folder):
    mixture(folder)
    result = sft(folder, dry_run=True)
    assert result["code"] == 0 and not (folder / "run").exists()


class Writer:
    """What TensorBoard's SummaryWriter is asked for."""

    made: list["Writer"]

    def __init__(self, log_dir):
        self.log_dir, self.figures, self.closed = Path(log_dir), [], False
        self.log_dir.mkdir(parents=True)
        type(self).made.append(self)

    def add_text(self, *args):
        pass

    def flush(self):
        pass

    def add_scalar(self, name, value, step):
        assert not self.closed
        self.figures.append((step, name))

    def close(self):
        self.closed = True


@pytest.fixture
def trackers(monkeypatch) -> SimpleNamespace:
    """TensorBoard, trackio and SwanLab, of which none need be installed, as transformers' callbacks see them."""
    Writer.made = []
    board, trackio = ModuleType("torch.utils.tensorboard"), ModuleType("trackio")
    board.SummaryWriter = Writer
    runs: list[SimpleNamespace] = []
    trackio.init = lambda project, **_: runs.append(SimpleNamespace(project=project, logs=[], ended=False))
    trackio.log = lambda figures: runs[-1].logs.append(figures)
    trackio.finish = lambda: setattr(runs[-1], "ended", True)
    nothing = SimpleNamespace(get=lambda: None)
    trackio.context_vars = SimpleNamespace(current_space_id=nothing, current_run=nothing)
    trackio.__spec__ = ModuleSpec("trackio", None)

    class Config(dict):
        def update(self, values, **_):
            super().update(values)

    trackio.config = Config()
    swanlab, tracked = ModuleType("swanlab"), []

    def get_run():  # SwanLab's, from 0.8 on
        if not tracked:
            raise RuntimeError("No active Run. Call swanlab.init() first.")
        return tracked[-1]

    mode = SimpleNamespace(mode="offline", api_key=None, project=SimpleNamespace(name=None))
    swanlab.Settings, swanlab.has_run, swanlab.get_run, swanlab.config = (
        lambda: mode,
        lambda: bool(tracked),
        get_run,
        Config(),
    )
    swanlab.init = lambda project, **_: tracked.append(SimpleNamespace(project=project, logs=[]))
    swanlab.log = lambda figures, step: tracked[-1].logs.append(figures)
    swanlab.__spec__ = ModuleSpec("swanlab", None)
    monkeypatch.setitem(sys.modules, "swanlab", swanlab)
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", board)
    monkeypatch.setattr(torch.utils, "tensorboard", board, raising=False)
    monkeypatch.setitem(sys.modules, "trackio", trackio)
    monkeypatch.setitem(services._PACKAGES, "tensorboard", "torch")  # whose module it is a part of here
    for name in ("is_tensorboard_available", "is_trackio_available"):
        monkeypatch.setattr(integrations, name, lambda: True)
    return SimpleNamespace(boards=Writer.made, runs=runs, swanlab=tracked)


def evaluations(folder: Path) -> list[int]:
    history = json.loads((checkpoints_in(folder)[-1] / "trainer_state.json").read_text())["log_history"]
    return [log["step"] for log in history if "eval_loss" in log]


@pytest.mark.parametrize("interval", [2, 3])
def test_trackers_get_one_run_with_every_evaluation_once(folder, trackers, interval):
    mixture(folder)
    options = as_options(**QUICK | {"save_strategy": "steps", "eval_interval": interval, "packing": False})
    options += ["--data_config", str(folder / "mixture.yaml"), "--output_dir", str(folder / "run")]
    result = run("sft", [*options, "--report_to", "tensorboard", "trackio", "swanlab"])
    assert result["code"] == 0, result["err"]
    [board], [tracked], [swan] = trackers.boards, trackers.runs, trackers.swanlab
    assert board.closed and board.log_dir.parent == folder / "run" / "runs" and tracked.ended
    assert tracked.project == swan.project == "MiniMind-SFT"
    steps = sorted({0, *range(interval, 5, interval), 4})
    assert [step for step, name in board.figures if name == "eval/loss"] == steps
    for logs in (tracked.logs, swan.logs):
        assert [log["train/global_step"] for log in logs if "eval/loss" in log] == steps
    assert evaluations(folder / "run") == steps[1:]
    figures = json.loads((folder / "run" / "metrics.json").read_text())
    assert figures["before"].keys() == figures["after"].keys() and figures["before"] != figures["after"]


def test_the_best_model_is_what_the_last_figures_are_of(folder, monkeypatch):
    """Of three evaluations the second one is the best, and nothing is evaluated again to say so."""
    mixture(folder)
    losses, asked = iter([9.0, 3.0, 1.0, 2.0]), []

    def figures(*args, **kwargs):
        asked.append(1)
        return {"eval_loss": next(losses)}

    monkeypatch.setattr("minimind_trl.trainers.sft_trainer.held_out_figures", figures)
    options = {"eval_interval": 2, "save_strategy": "best", "max_steps": 6}
    result = sft(folder, load_best_model_at_end=True, metric_for_best_model="loss", **options)
    assert result["code"] == 0, result["err"]
    after = json.loads((folder / "run" / "metrics.json").read_text())["after"]
    assert after["eval_loss"] == 1.0 and len(asked) == 4
    assert weights(folder / "run") == weights(folder / "run" / "checkpoint-4")


def test_what_tensorboard_began_goes_with_a_run_that_did_not_begin(folder, trackers, monkeypatch):
    mixture(folder)
    evaluate = "minimind_trl.trainers.callbacks.RecipeProgress.on_evaluate"
    monkeypatch.setattr(evaluate, lambda *args, **kwargs: os.kill(os.getpid(), signal.SIGINT))
    result = sft(folder, report_to="tensorboard")
    assert result["code"] == 130 and trackers.boards and not (folder / "run").exists()


def test_a_terminal_that_went_away_is_left():
    """On a pipe without a reader, as on the terminal of a dropped connection, writing is an error."""
    sys.stdout.flush()
    kept = os.dup(1)
    reader, writer = os.pipe()
    try:
        os.dup2(writer, 1)
        os.close(reader)
        with pytest.raises(BrokenPipeError):
            os.write(1, b"lost")
        signals.leave_dead_terminal()
        assert os.write(1, b"nowhere") == 7
    finally:
        os.dup2(kept, 1)
        os.close(kept)
        os.close(writer)
