"""How a recipe ends: the exit code, and one line with the reason."""

import signal
import sys
import traceback
from collections.abc import Callable
from pathlib import Path

from transformers import logging as transformers_logging

from ..errors import InputError, TrainingError, TrainingInterrupted, describe
from ..files import full_disk_message
from .output_folder import holds_output_folder, release_output_folders
from .processes import ending_on_signals


def run_recipe(main: Callable[[], None]) -> None:
    """Run a recipe's `main` and exit: 0 when done, 2 on bad input, 1 if training broke off, with a message.

    A signal exits with 128 + its number (130 for Ctrl-C), after the state is saved if there is one. Anything else,
    such as `sys.exit()` in a user's function, exits with 1 and reports where it came from.
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
        print(f"error: {describe(end)} in {caller}, before the run was done", file=sys.stderr)
        sys.exit(1)
    except Exception as error:
        if not (problem := full_disk_message(error)):  # for example in the cache of TRL's tokenized rows
            raise
        print(f"error: {problem}", file=sys.stderr)
        sys.exit(1)
    finally:
        release_output_folders()


def _caller_of_exit(end: SystemExit) -> str | None:
    """Where sys.exit() was called; None for `--help`, which exits in this way."""
    frames = traceback.extract_tb(end.__traceback__)
    *_, last = [frame for frame in frames if "_sitebuiltins" not in frame.filename]  # exit() itself
    return None if Path(last.filename).name == "argparse.py" else f"{last.name} ({last.filename}:{last.lineno})"
