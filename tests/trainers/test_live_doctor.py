"""The doctor beside a training: what it prints, and when."""

from pathlib import Path
from types import SimpleNamespace

import pytest

from minimind_trl.rewards import Reward
from minimind_trl.trainers import Doctor
from tests.trainers.online import low_ids, online

FINE = {"loss": 0.0, "reward": 0.5, "reward_std": 0.5, "entropy": 1.0, "completions/mean_length": 9.0}


class MiniMindGRPOTrainer(SimpleNamespace):
    """What the doctor reads of one."""


def doctor_of(logs: list[dict], earlier: list[dict] | None = None) -> Doctor:
    """A doctor that has seen these logs, after a resume if there are earlier ones."""
    options = {"max_completion_length": 16}
    args = SimpleNamespace(output_dir="", to_dict=lambda: options)
    doctor = Doctor(MiniMindGRPOTrainer(args=args))
    state = SimpleNamespace(
        global_step=1, is_world_process_zero=True, log_history=[FINE | log for log in earlier or []]
    )
    doctor.on_train_begin(args, state, None)
    for log in logs:
        doctor.on_log(args, state, None, logs=FINE | log)
    return doctor


def test_a_finding_is_printed_once_and_after_two_logs_that_show_it(capsys):
    doctor_of([{"kl": 3.0}])
    assert capsys.readouterr().out == ""
    doctor_of([{"kl": 3.0}] * 4)
    [line] = capsys.readouterr().out.splitlines()
    assert line.startswith("doctor, step 1: KL blow-up: the policy is 3.00 nats per token from its reference")


def test_after_a_resume_it_knows_what_was_normal_and_what_was_said():
    collapsed = [{"entropy": 0.01}] * 4
    assert set(doctor_of(collapsed, earlier=[{}] * 5).said) == {"entropy collapse"}
    assert doctor_of(collapsed).said == {}, "without the logs before, this is normal"


def test_it_says_at_once_that_a_reward_is_hacked(capsys):
    doctor = doctor_of([{}] * 3)
    state = SimpleNamespace(global_step=9, is_world_process_zero=True, log_history=[])
    for reward, watched in ((0.3, 0.5), (0.5, 0.4)):
        figures = {"reward": reward, "watch/exact_match": watched, "watch/exact_match_std": 0.4, "prompts": 600}
        doctor.on_log(None, state, None, logs={f"eval_{name}": value for name, value in figures.items()})
    [line] = capsys.readouterr().out.splitlines()
    assert line.startswith("doctor, step 9: reward hacking: ") and "fell from 0.500 to 0.400" in line


def test_after_a_resume_it_does_not_repeat_itself(capsys):
    doctor_of([{"entropy": 0.01}] * 4, earlier=[{}] * 5 + [{"entropy": 0.01}] * 4)
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("method", ["grpo", "ppo", "spo"])
def test_it_knows_the_range_of_the_rewards_of_a_trainer_in_a_script(tmp_path, method):
    trainer = online(method, Path(tmp_path), reward=Reward(low_ids, "low", -1, 2))
    doctor = Doctor(trainer)
    trainer.add_callback(doctor)
    solved = FINE | {"reward": 1.95, "completions/clipped_ratio": 1.0}
    for _ in range(4):
        doctor.on_log(trainer.args, trainer.state, trainer.control, logs=solved)
    assert doctor.said == {}
    for _ in range(4):
        doctor.on_log(trainer.args, trainer.state, trainer.control, logs=solved | {"reward": 1.0})
    assert set(doctor.said) == {"truncation"}
