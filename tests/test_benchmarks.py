"""The benchmarks that say whether something works at all."""

import json
import subprocess
import sys

import pytest

from tests.conftest import REPOSITORY


@pytest.mark.slow
@pytest.mark.timeout(2400)
def test_online_methods_are_compared_after_equal_steps_and_tokens(demo, tmp_path):
    """In the shortest form; that they learn is seen in the demo."""
    command = [sys.executable, "benchmarks/rl.py", "--start", str(demo / "sft"), "--methods", "PPO", "RLOO"]
    options = ["--seeds", "1", "--rollouts", "2", "--evaluations", "1", "--output", str(tmp_path / "runs.json")]
    done = subprocess.run([*command, *options], cwd=REPOSITORY, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    runs = json.loads((tmp_path / "runs.json").read_text())
    assert [[point["step"] for point in run["curve"]] for run in runs] == [[0, 2], [0, 2]]
    assert runs[0]["before"] == runs[1]["before"]  # TRL's policy, measured by our evaluation
    assert all(run["tokens"] > 0 and run["seconds"] > 0 for run in runs)
    assert "| RLOO |" in done.stdout and "tokens to 0.40" in done.stdout


@pytest.mark.exhaustive
def test_seconds_a_step_are_those_of_trl_and_ours(demo):
    command = [sys.executable, "benchmarks/rl_step.py", "--from_weight", str(demo / "sft"), "--steps", "1"]
    done = subprocess.run([*command, "--repeats", "1"], cwd=REPOSITORY, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert all(f"| {method} |" in done.stdout for method in ("TRL GRPO", "GRPO", "PPO", "SPO"))


@pytest.mark.slow
def test_the_doctor_names_planted_faults_and_leaves_a_healthy_run_alone():
    """The short form of the benchmark, which exits with 1 where the doctor is wrong."""
    command = [sys.executable, "benchmarks/doctor.py", "--quick", "--jobs", "1"]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "2 of 2 planted faults named in the first line; 0 of 1 healthy runs with an alarm" in done.stdout


@pytest.mark.slow
def test_rollouts_are_compared():
    command = [sys.executable, "benchmarks/rollouts.py", "--shapes", "tiny", "--batches", "4", "--dtypes", "float32"]
    done = subprocess.run([*command, "--repeats", "1"], cwd=REPOSITORY, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert all(method in done.stdout for method in ("transformers", "at once", "ours"))
