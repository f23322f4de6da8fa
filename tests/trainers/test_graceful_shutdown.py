"""Signals and errors save the last completed step, and a resumed run ends as a whole one."""

import os
import signal
import threading
import time
from functools import partial
from pathlib import Path

import pytest
import torch
from datasets import IterableDataset
from transformers import TrainerCallback

from minimind_trl.errors import InputError, TrainingError, TrainingInterrupted
from minimind_trl.rewards import Reward
from minimind_trl.trainers import last_good_checkpoint
from minimind_trl.trainers.safe_checkpoints import checkpoint_problem, checkpoints_in
from minimind_trl.trainers.signals import SIGNALS
from tests.forking import run, says
from tests.trainers.accidents import At, checkpoints, running, same, weights
from tests.trainers.online import low_ids, online, prompts
from tests.trainers.tiny import dpo, sft, text_rows


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130), (signal.SIGHUP, 129)])
def test_a_signal_saves_after_the_step_and_exits(number, code, tmp_path, capsys):
    before = [signal.getsignal(n) for n in SIGNALS]
    trainer = sft(tmp_path, max_steps=6, eval_strategy="steps", eval_steps=3)
    trainer.add_callback(At(3, lambda: os.kill(os.getpid(), number)))
    with pytest.raises(TrainingInterrupted) as caught:
        trainer.train()
    assert caught.value.code == code
    assert last_good_checkpoint(tmp_path) == tmp_path / "checkpoint-3"
    [line] = [line for line in capsys.readouterr().out.splitlines() if "stopped" in line]
    assert line == f"stopped by {number.name} after step 3 of 6; saved {tmp_path}/checkpoint-3"
    assert not any("eval_loss" in entry for entry in trainer.state.log_history), "no time for that"
    assert [signal.getsignal(n) for n in SIGNALS] == before


def test_a_run_that_a_signal_stopped_ends_where_a_whole_one_does(tmp_path):
    whole = sft(tmp_path / "whole", max_steps=6)
    whole.train()
    stopped = sft(tmp_path / "parts", max_steps=6)
    stopped.add_callback(At(3, lambda: os.kill(os.getpid(), signal.SIGTERM)))
    with pytest.raises(TrainingInterrupted):
        stopped.train()
    resumed = sft(tmp_path / "parts", max_steps=6)
    resumed.train(resume_from_checkpoint=str(last_good_checkpoint(tmp_path / "parts")))
    assert resumed.state.global_step == 6 and same(weights(resumed), weights(whole))
    assert resumed.state.num_input_tokens_seen == whole.state.num_input_tokens_seen


def test_a_signal_after_the_last_step_still_saves(tmp_path):
    trainer = sft(tmp_path, max_steps=2, eval_strategy="steps", eval_steps=2)
    evaluate = trainer.evaluation_loop

    def loop(*args, **kwargs):
        os.kill(os.getpid(), signal.SIGTERM)
        return evaluate(*args, **kwargs)

    trainer.evaluation_loop = loop
    with pytest.raises(TrainingInterrupted):
        trainer.train()
    assert last_good_checkpoint(tmp_path) == tmp_path / "checkpoint-2"


def test_training_in_a_thread_leaves_signals_alone(tmp_path):
    trainer, handlers = sft(tmp_path, max_steps=2), []
    trainer.add_callback(At(1, lambda: handlers.append(signal.getsignal(signal.SIGINT))))
    thread = threading.Thread(target=trainer.train)
    thread.start()
    thread.join()
    assert trainer.state.global_step == 2 and handlers == [signal.getsignal(signal.SIGINT)]


def test_errors_restore_the_handlers(tmp_path):
    before = signal.getsignal(signal.SIGINT)
    trainer = sft(tmp_path)
    trainer.compute_loss = None
    with pytest.raises(TypeError):
        trainer.train()
    assert signal.getsignal(signal.SIGINT) is before


STUCK = """
import sys, time
from minimind_trl.trainers import callbacks
from tests.trainers.accidents import At
from tests.trainers.tiny import sft
callbacks._SECONDS_OF_ECHO = 0.5
trainer = sft(sys.argv[1])
def hang():
    print("hanging", flush=True)
    while True:
        time.sleep(0.1)
trainer.add_callback(At(2, hang))
trainer.train()
"""


def test_a_second_signal_kills_at_once_but_not_an_echo(tmp_path):
    with running(STUCK, tmp_path) as (process, log):
        assert says(log, "hanging")
        os.kill(process.pid, signal.SIGINT)
        os.kill(process.pid, signal.SIGINT)  # as a launcher passes it on
        assert says(log, "a second signal kills")
        time.sleep(1)
        assert process.is_alive()
        os.kill(process.pid, signal.SIGINT)
        process.join(10)
        assert process.exitcode == -signal.SIGINT


ACCIDENT_IN_ONE = """
import os, signal, sys
from tests.trainers.accidents import At
from tests.trainers.tiny import sft
accident, folder = sys.argv[1:]
trainer = sft(folder, save_strategy="steps", save_steps=2, max_steps=6)
compute = trainer.compute_loss
def broken(*args, **kwargs):
    return compute(*args, **kwargs) * (float("nan") if trainer.state.global_step == 2 else 1)
if trainer.args.process_index == 1 and accident == "nan":
    trainer.compute_loss = broken
if trainer.args.process_index == 1 and accident == "signal":
    trainer.add_callback(At(3, lambda: os.kill(os.getpid(), signal.SIGTERM)))
trainer.train()
"""


@pytest.mark.slow
@pytest.mark.parametrize("accident", ["nan", "signal"])
def test_an_accident_in_one_process_stops_all_at_the_same_step(accident, tmp_path):
    script = tmp_path / "train.py"
    script.write_text(ACCIDENT_IN_ONE)
    folder = tmp_path / "out"
    result = run(script, [accident, folder], processes=2)
    assert result.returncode != 0
    if accident == "nan":
        assert "step 3 in process 1: the loss is nan" in result.stderr
        assert "step 3 in process 0: another process's loss is not finite" in result.stderr
        assert checkpoints(folder) == ["checkpoint-2"]
    else:
        assert f"stopped by SIGTERM after step 3 of 6; saved {folder}/checkpoint-3" in result.stdout
        assert checkpoints(folder) == ["checkpoint-2", "checkpoint-3"]
        assert (folder / "checkpoint-3" / "rng_state_1.pth").is_file()
    assert last_good_checkpoint(folder) is not None


STEPS = {"max_steps": 6, "logging_steps": 1}


def fail(error: BaseException):
    raise error


class AtEnd(TrainerCallback):
    """Fails at the end of a step."""

    def __init__(self, step: int):
        self.step = step

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == self.step:
            raise ValueError("at its end")


def learned(trainer) -> list[tuple]:
    """What every step since the first of all has learned from, and its loss."""
    logs = [log for log in trainer.state.log_history if "loss" in log]
    return [(log["step"], log["loss"], log["grad_norm"], log["num_input_tokens_seen"]) for log in logs]


_WHOLE = {}  # runs that did not fail: their weights, and what they learned


def whole_run(make, folder: Path, **options) -> tuple[dict, list[tuple]]:
    key = str((getattr(make, "args", make), getattr(make, "func", None), options))
    if key not in _WHOLE:
        trainer = make(folder / "whole", **STEPS, **options)
        trainer.train()
        _WHOLE[key] = weights(trainer), learned(trainer)
    return _WHOLE[key]


def broken_then_resumed(make, folder: Path, breaks, message: str, saved: int, **options):
    """A run that `breaks(trainer)` lets fail saves a step, and goes on from it to the end of one that did not fail.

    What `breaks` returns mends it again. Returns what the whole run and the resumed one learned.
    """
    broken = make(folder / "parts", **STEPS, **options)
    mend = breaks(broken)
    with pytest.raises(TrainingError, match=message) as caught:
        broken.train()
    if mend:
        mend()
    checkpoint = folder / "parts" / f"checkpoint-{saved}"
    assert f"; saved {checkpoint}, --resume auto goes on from it" in str(caught.value)
    assert [*checkpoints_in(folder / "parts")] == [checkpoint] and checkpoint_problem(checkpoint) is None
    resumed = make(folder / "parts", **STEPS, **options)
    resumed.train(resume_from_checkpoint=str(checkpoint))
    whole, lessons = whole_run(make, folder, **options)
    assert resumed.state.global_step == 6 and same(weights(resumed), whole)
    assert [lesson for lesson in lessons if lesson[0] != saved] == [one for one in learned(resumed) if one[0] != saved]
    return lessons, learned(resumed)


def test_an_error_of_any_kind(tmp_path):
    fails = At(4, lambda: fail(KeyError("x")))
    whole, resumed = broken_then_resumed(sft, tmp_path, lambda t: t.add_callback(fails), "step 4: KeyError: 'x'", 3)
    assert whole == resumed and len(whole) == 6


@pytest.mark.parametrize("step", [1, 4])
def test_an_error_at_the_end_of_a_step(step, tmp_path):
    """Before the step's figures are logged, which are missing then."""
    message = f"step {step + 1}: ValueError: at its end"
    broken_then_resumed(sft, tmp_path, lambda trainer: trainer.add_callback(AtEnd(step)), message, step)


def out_of_memory(trainer) -> None:
    """In the second batch of the fourth step."""
    compute, calls = trainer.compute_loss, []

    def full(*args, **kwargs):
        calls.append(1)
        return fail(torch.OutOfMemoryError("CUDA out of memory")) if len(calls) == 8 else compute(*args, **kwargs)

    trainer.compute_loss = full


@pytest.mark.parametrize("make", [sft, dpo])
def test_memory_that_does_not_suffice_between_two_batches_of_a_step(make, tmp_path):
    message = r"(?s)step 4: OutOfMemoryError: CUDA out of memory; saved .*The batch's \d rows begin:"
    broken_then_resumed(make, tmp_path, out_of_memory, message, 3, gradient_accumulation_steps=2)


def broken_collator(error: BaseException):
    def breaks(trainer) -> None:
        collate, calls = trainer.data_collator, []

        class Careless:
            def __call__(self, rows):
                calls.append(1)
                return fail(error) if len(calls) == 4 else collate(rows)

        trainer.data_collator = Careless()

    return breaks


@pytest.mark.parametrize(
    ("error", "told"), [(KeyError("colour"), "KeyError: 'colour'"), (SystemExit(0), r"SystemExit: sys.exit\(0\) was")]
)
def test_a_collator_is_named_with_its_rows(error, told, tmp_path):
    """accelerate reads a batch ahead, so that the fourth is asked for in the third step."""
    message = rf"step 3: the collator .*Careless failed: {told}.*; the rows begin 'row \d+: "
    broken_then_resumed(sft, tmp_path, broken_collator(error), message, 2)


def test_an_evaluation_that_fails_comes_after_a_step(tmp_path):
    def breaks(trainer):
        trainer.evaluation_loop = lambda *args, **kwargs: fail(ValueError("no figures"))

    make = partial(sft, eval_strategy="steps", eval_steps=3)
    broken_then_resumed(make, tmp_path, breaks, "after step 3: ValueError: no figures", 3)


def streamed(folder: Path, broken: bool = False, **options):
    rows = text_rows(40).to_list()

    def read(parts):
        for part in parts:
            for row in rows[10 * part : 10 * part + 10]:
                if broken and row["text"].startswith("row 27"):
                    raise InputError("filter mine:f failed: KeyError: 'x'; for the row 'row 27'")
                yield row

    stream = IterableDataset.from_generator(read, gen_kwargs={"parts": list(range(4))})
    return sft(folder, rows=stream, max_length=None, **options)


def test_a_filter_of_a_stream_that_fails_in_the_middle_of_a_step(tmp_path):
    """Rows of the step that were read by then are read again."""
    options = STEPS | {"per_device_train_batch_size": 5, "gradient_accumulation_steps": 1}
    whole = streamed(tmp_path / "whole", **options)
    whole.train()
    broken = streamed(tmp_path / "parts", broken=True, **options)
    with pytest.raises(
        TrainingError, match=r"step \d: filter mine:f failed: KeyError: 'x'; for the row 'row 27'; saved"
    ):
        broken.train()
    resumed = streamed(tmp_path / "parts", **options)
    found = last_good_checkpoint(tmp_path / "parts")
    resumed.train(resume_from_checkpoint=str(found))
    assert 0 < int(found.name[-1]) < 6 and same(weights(resumed), weights(whole)) and learned(resumed) == learned(whole)


ONLINE = {
    "grpo": {"steps_per_generation": 2},
    "ppo": {"num_mini_batches": 2, "num_ppo_epochs": 1, "kl_coef": 0.1},
    "spo": {"steps_per_generation": 2},
}


@pytest.mark.parametrize("method", ONLINE)
@pytest.mark.parametrize("fault", ["raises", "nan"])
def test_a_reward_that_fails_in_the_third_rollout(method, fault, tmp_path):
    """Prompts, tokens and what SPO knows of them had changed by then, and random numbers had been drawn."""
    failing = []

    def judge(prompts, completions, trainer_state, **columns):
        scores = low_ids(prompts, completions, **columns)
        if not failing or trainer_state.global_step < 4:
            return scores
        return [float("nan"), *scores[1:]] if fault == "nan" else fail(KeyError("answer"))

    def breaks(trainer):
        failing.append(True)
        return failing.clear

    what = {"raises": "raised KeyError: 'answer'; for", "nan": "returned nan, not a finite number or None, for"}
    message = rf"step 5: reward judge {what[fault]} the completion '.*' of 'say \d+'"
    make = partial(online, method, reward=Reward(judge, "judge", 0.0, 1.0), rows=prompts(64))
    broken_then_resumed(make, tmp_path, breaks, message, 4, **ONLINE[method])


def test_completions_that_a_reward_fails_on_can_count_as_none(tmp_path, capsys):
    """Every fifth: they are counted, the others keep their rewards, and the run goes on."""
    seen = []

    def picky(prompts, completions, completion_ids, **columns):
        for ids in completion_ids:
            if sum(ids) % 5 == 0:
                seen.append(tuple(ids))
                raise ValueError("cannot judge this")
        return low_ids(prompts, completions, completion_ids)

    rewards = [Reward(picky, "picky", 0.0, 1.0), Reward(low_ids, "low_ids", 0.0, 1.0)]
    trainer = online("grpo", tmp_path, reward=rewards, reward_errors="none", logging_steps=1)
    trainer.train()
    counts = [log["num_reward_errors"] for log in trainer.state.log_history if "loss" in log]
    alone = len(seen) - 4  # a batch fails as a whole first, once in each of four rollouts
    assert counts == sorted(counts) and 0 < counts[0] < counts[-1] == alone < 4 * 16
    told = [line for line in capsys.readouterr().err.splitlines() if "--reward_errors none" in line]
    assert len(told) == 1 and "reward picky raised ValueError: cannot judge this; for the completion" in told[0]


def test_before_the_first_step_an_error_stays_what_it_is(tmp_path):
    trainer = sft(tmp_path)
    trainer.add_callback(At(1, lambda: fail(ZeroDivisionError("early"))))
    with pytest.raises(ZeroDivisionError):
        trainer.train()
    assert not checkpoints_in(tmp_path)
    with pytest.raises(InputError, match="reward fails raised KeyError"):
        online("grpo", tmp_path, reward=Reward(lambda **_: {}["x"], "fails", 0, 1)).train()


def test_nothing_is_saved_that_is_half_of_a_step(tmp_path):
    trainer = sft(tmp_path, save_strategy="steps", save_steps=2)

    def stops_halfway():
        step = trainer.optimizer.optimizer.step
        trainer.optimizer.optimizer.step = lambda *args, **kwargs: (step(), fail(ValueError("halfway")))

    trainer.add_callback(At(4, stops_halfway))
    with pytest.raises(
        TrainingError, match=r"halfway; the optimizer was at work, and nothing was saved; .*checkpoint-2"
    ):
        trainer.train()
    assert [path.name for path in checkpoints_in(tmp_path)] == ["checkpoint-2"]


def test_what_was_saved_before_is_kept_beside(tmp_path):
    """Also where there is room for one: what comes before an error may be the better one."""
    trainer = sft(tmp_path, save_strategy="steps", save_steps=2, save_total_limit=1)
    trainer.add_callback(At(4, lambda: fail(ValueError("late"))))
    with pytest.raises(TrainingError, match="checkpoint-3"):
        trainer.train()
    assert [path.name for path in checkpoints_in(tmp_path)] == ["checkpoint-2", "checkpoint-3"]


TWO_PROCESSES = """
import os, sys, torch
from minimind_trl.errors import TrainingError
from minimind_trl.rewards import Reward
from tests.trainers.online import low_ids, online, prompts
from tests.trainers.accidents import At, weights
from tests.trainers.test_graceful_shutdown import broken_collator, fail
from tests.trainers.tiny import sft
folder, steps = sys.argv[1], {"max_steps": 6, "save_strategy": "no"}
rank = int(os.environ["RANK"])
failing = [False]
def judge(prompts, completions, trainer_state, **columns):
    if failing[0] and rank == 1 and trainer_state.global_step == 3:
        raise KeyError("answer")
    return low_ids(prompts, completions, **columns)
def grpo(name):
    return online("grpo", folder + name, reward=Reward(judge, "judge", 0, 1), per_device_train_batch_size=8, **steps)
def collated(name):
    return sft(folder + name, **steps)
for name, make, saved in (("grpo", grpo, 3), ("sft", collated, 2)):
    whole = make(name + "-whole")
    whole.train()
    failing[0] = True
    broken = make(name)
    if make is collated and rank == 1:
        broken_collator(KeyError("colour"))(broken)
    try:
        broken.train()
    except TrainingError as error:
        print(f"{name} {rank}: {error}", flush=True)
    failing[0] = False
    resumed = make(name)
    resumed.train(resume_from_checkpoint=f"{folder}{name}/checkpoint-{saved}")
    same = all(torch.equal(one, other) for one, other in zip(weights(whole).values(), weights(resumed).values()))
    print(f"{name} {rank}: the same is {same}", flush=True)
alone = collated("alone")
if rank == 1:
    alone.add_callback(At(4, lambda: fail(torch.OutOfMemoryError("full"))))
alone.train()
"""


@pytest.mark.slow
def test_of_two_processes_one_that_fails_takes_the_other_along(tmp_path):
    """Both save where a reward or a collator of one fails; where it is out of memory both end, and nobody waits."""
    script, folder = tmp_path / "train.py", f"{tmp_path}/"
    script.write_text(TWO_PROCESSES)
    result = run(script, [folder], processes=2)
    assert result.returncode == 1
    for name, step, why in (("grpo", 3, "reward judge raised KeyError: 'answer'"), ("sft", 2, "the collator ")):
        assert f"{name} 1: step {step + 1} in process 1: {why}" in result.stdout, result.stdout + result.stderr
        other = "another process failed, and reports why; saved "
        assert f"{name} 0: step {step + 1} in process 0: {other}{folder}{name}/checkpoint-{step}" in result.stdout
        assert all(f"{name} {rank}: the same is True" in result.stdout for rank in (0, 1))
    assert "step 4 in process 1: OutOfMemoryError: full; the other processes cannot save with this one" in result.stderr
    assert not checkpoints_in(tmp_path / "alone")
