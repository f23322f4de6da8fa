"""Output folders that cannot be written to, and disks that are full at the end: one line, and the exit code."""

import errno
import os
import sys

import pytest

from minimind_trl.run import run_recipe
from tests.recipes.launching import as_options, launch_program

RUN = {"preset": "nano", "data_config": "data_configs/tiny/sft.yaml", "max_steps": 2, "eval_interval": 0}


def test_a_read_only_output_folder_is_refused_before_training(mounting, tmp_path):
    command = [*mounting("ro", tmp_path), sys.executable]
    done = launch_program("sft", *as_options(**RUN, output_dir=tmp_path / "run"), command=command)
    assert done.returncode == 2 and "step 1" not in done.stdout
    expected = f"error: --output_dir {tmp_path / 'run'}: {tmp_path} cannot be written to; give another folder"
    assert done.stderr.splitlines()[-1] == expected and "Traceback" not in done.stderr


@pytest.mark.slow
def test_a_disk_that_is_full_at_the_end_is_told_with_what_is_safe(mounting, tmp_path):
    """Room for the one checkpoint, and for half of the model."""
    command = [*mounting("size=3200k", tmp_path), sys.executable]
    saving = {"save_strategy": "steps", "save_steps": 2}
    done = launch_program("sft", *as_options(**RUN, **saving, output_dir=tmp_path / "run"), command=command)
    assert done.returncode == 1 and "Traceback" not in done.stderr
    [line] = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert line.startswith("error: the model could not be saved, with ") and "No space left" in line
    assert line.endswith(f"; the last good checkpoint is {tmp_path / 'run' / 'checkpoint-2'}")


def test_a_disk_that_is_full_anywhere_is_one_line(capsys):
    """Such as of the cache in which TRL keeps what it has tokenized; here raised by what was at work."""

    def at_work():
        try:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "/cache/tokens.arrow")
        except OSError as error:
            raise RuntimeError("tokenizing failed") from error

    with pytest.raises(SystemExit) as ended:
        run_recipe(at_work)
    assert ended.value.code == 1
    message = capsys.readouterr().err
    assert message == (
        "error: /cache/tokens.arrow: No space left on device; make room, or set TMPDIR and HF_HOME to a larger disk\n"
    )


def test_any_other_error_stays_what_it_is():
    def at_work():
        raise FileNotFoundError(errno.ENOENT, "no such file", "x")

    with pytest.raises(FileNotFoundError):
        run_recipe(at_work)
