"""What the other tests build on: forked scripts behave as scripts do, and a change finds its tests."""

import pytest

from tests.changed import room, touched_tests
from tests.conftest import REPOSITORY
from tests.forking import accelerate_environment, run

SCRIPT = """
import atexit, os, sys
import torch
atexit.register(print, "the end")
print(sys.argv[1:], os.getcwd(), os.environ["COLOUR"], torch.get_num_threads())
print("careful", file=sys.stderr)
sys.exit(7)
"""
# Rank 1 fails while rank 0 waits for it.
RANKS = """
import sys
import torch.distributed as dist
dist.init_process_group("gloo")
if sys.argv[1] == "one fails" and dist.get_rank() == 1:
    sys.exit(3)
dist.barrier()
print("rank", dist.get_rank(), "of", dist.get_world_size())
dist.destroy_process_group()
"""


def write(folder, code: str):
    (folder / "script.py").write_text(code)
    return folder / "script.py"


def test_a_forked_script_has_its_own_arguments_folder_environment_streams_and_exit_code(tmp_path):
    done = run(write(tmp_path, SCRIPT), ["a", 1], environment={"COLOUR": "red"}, folder=tmp_path)
    assert done.returncode == 7
    assert done.stdout == f"['a', '1'] {tmp_path} red 1\nthe end\n"  # one thread, as in every child of the tests
    assert done.stderr == "careful\n"


def test_several_processes_meet_and_end_together(tmp_path):
    done = run(write(tmp_path, RANKS), ["all work"], processes=2)
    assert done.returncode == 0 and done.stdout == "rank 0 of 2\nrank 1 of 2\n"
    assert run(write(tmp_path, RANKS), ["one fails"], processes=2).returncode == 3


def test_what_hangs_is_ended(tmp_path):
    with pytest.raises(TimeoutError, match="it printed\nhanging"):
        run(write(tmp_path, "import time\nprint('hanging', flush=True)\ntime.sleep(60)\n"), limit=0.5)


def test_the_environment_is_the_launchers():
    zero2 = accelerate_environment(REPOSITORY / "accelerate_configs/cpu/zero2.yaml")
    assert zero2["ACCELERATE_USE_DEEPSPEED"] == "true" and zero2["ACCELERATE_DEEPSPEED_ZERO_STAGE"] == "2"
    assert accelerate_environment(REPOSITORY / "accelerate_configs/cpu.yaml")["ACCELERATE_USE_CPU"] == "True"


def test_a_change_finds_its_tests():
    assert room("minimind_trl/trainers/curves.py") == "minimind_trl.trainers"
    assert room("data_configs/tiny/sft.yaml") == "data_configs/" and room("LICENSE") is None
    touched = touched_tests({"minimind_trl/hardware.py", "tests/data/test_hub.py"})
    assert {"tests/test_hardware.py", "tests/data/test_hub.py"} <= set(touched)
    assert "tests/tokenization/test_templates.py" not in touched
