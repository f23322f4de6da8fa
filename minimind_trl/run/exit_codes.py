"""How a recipe ends: its exit code, and one line that says why."""

import signal
import sys
import traceback
from collections.abc import Callable
from pathlib import Path

from transformers import logging as transformers_logging

from ..errors import InputError, TrainingError, TrainingInterrupted, described
from ..files import full_disk
from .output_folder import holds_output_folder, release_output_folders
from .processes import ending_on_signals


def run_recipe(main: Callable[[], None]) -> None:
    """Run a recipe's `main` and exit: 0 when done, 2 on bad input and 1 where training broke off, both with a message.

    A signal ends it with 128 + its number (130 for Ctrl-C), once the state is saved where there is one. All else,
    `sys.exit()` in a function of the user's included, ends with 1 and says where it came from.
    """
    transformers_logging.disable_progress_bar()
    try:
        with ending_on_signals():
            main()
    except (InputError, TrainingError) as error:
        if unexpected := getattr(error, "unexpected", None):
            traceback.print_exception(unexpected)
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2 if isinstance(error, InputError) else 1)
    except KeyboardInterrupt as stop:
        number = getattr(stop, "number", signal.SIGINT)
        when = " before the first step; there was nothing to save" if holds_output_folder() else ""
        print(f"stopped by {signal.Signals(number).name}{when}", file=sys.stderr)
        sys.exit(128 + number)
    except SystemExit as end:
        if isinstance(end, TrainingInterrupted) or not (caller := _caller_of_exit(end)):
            raise
        print(f"error: {described(end)} in {caller}, before the run was done", file=sys.stderr)
        sys.exit(1)
    except Exception as error:
        if not (told := full_disk(error)):  # such as of the cache in which TRL keeps its tokens
            raise
        print(f"error: {told}", file=sys.stderr)
        sys.exit(1)
    finally:
        release_output_folders()


def _caller_of_exit(end: SystemExit) -> str | None:
    """Where sys.exit() was called; None for `--help`, which ends so."""
    frames = traceback.extract_tb(end.__traceback__)
    *_, last = [frame for frame in frames if "_sitebuiltins" not in frame.filename]  # exit() itself
    return None if Path(last.filename).name == "argparse.py" else f"{last.name} ({last.filename}:{last.lineno})"
