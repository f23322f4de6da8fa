"""The benchmarks that say whether something works at all."""

import subprocess
import sys

import pytest

from tests.conftest import REPOSITORY


@pytest.mark.slow
@pytest.mark.timeout(2400)
def test_online_methods_gain_held_out_reward(demo):
    """The short form of the benchmark, which exits with 1 where one does not gain."""
    command = [sys.executable, "benchmarks/rl.py", "--quick", "--from_weight", str(demo / "pretrain")]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("+0.") >= 3


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
    assert all(method in done.stdout for method in ("transformers", "plain", "ours"))
