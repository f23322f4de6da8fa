"""`minimind-trl doctor`: what it prints of a run, and its exit codes."""

import json

import pytest

from minimind_trl.cli import main

RECORD = {"trainer": "MiniMindGRPOTrainer", "options": {"max_completion_length": 16}}
LOG = {"loss": 0.0, "reward": 0.5, "reward_std": 0.5, "completions/clipped_ratio": 0.0}


@pytest.fixture
def run(tmp_path):
    """A folder of a GRPO run that cuts its answers off."""
    (tmp_path / "recipe.json").write_text(json.dumps(RECORD))
    logs = [{"step": step, **LOG, "completions/clipped_ratio": 0.9} for step in range(5)]
    (tmp_path / "history.json").write_text(json.dumps(logs))
    return tmp_path


def test_it_names_the_fault_its_figures_and_what_to_do(run, capsys):
    assert main(["doctor", str(run)]) == 0
    assert capsys.readouterr().out == (
        "fault: truncation: 90% of the completions are cut off at 16 tokens: raise --max_completion_length, or reward "
        "those that end\n"
    )


def test_a_program_reads_the_findings(run, capsys):
    assert main(["doctor", str(run), "--json"]) == 0
    [finding] = json.loads(capsys.readouterr().out)
    assert finding["name"] == "truncation" and finding["severity"] == "fault" and "90%" in finding["sentence"]


def test_it_says_that_there_is_no_fault(run, capsys):
    (run / "history.json").write_text(json.dumps([LOG] * 5))
    assert main(["doctor", str(run)]) == 0
    assert capsys.readouterr().out == "no fault found in 5 logs of grpo\n"


def test_a_checkpoint_of_a_run_that_goes_on_is_enough(run, capsys):
    """Until a run ends there is no history.json."""
    checkpoint = run / "checkpoint-5"
    checkpoint.mkdir()
    (run / "recipe.json").rename(checkpoint / "recipe.json")
    logs = json.loads((run / "history.json").read_text())
    (checkpoint / "trainer_state.json").write_text(json.dumps({"log_history": logs}))
    (run / "history.json").unlink()
    assert main(["doctor", str(run)]) == 0
    assert capsys.readouterr().out.startswith("fault: truncation")


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda run: (run / "recipe.json").unlink(), "no recipe.json in it"),
        (lambda run: (run / "history.json").write_text("[{"), "history.json cannot be read"),
        (lambda run: (run / "recipe.json").write_text('{"name": "of another program"}'), "no recipe.json in it"),
    ],
)
def test_a_folder_that_is_no_run_is_refused_in_one_line(run, capsys, spoil, message):
    spoil(run)
    assert main(["doctor", str(run)]) == 2
    [line] = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ") and message in line


def test_a_folder_that_does_not_exist_is_refused(tmp_path, capsys):
    assert main(["doctor", str(tmp_path / "nowhere")]) == 2
    assert "no such folder; name the --output_dir of a run" in capsys.readouterr().err
