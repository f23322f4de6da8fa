"""The errors that are the user's to mend, and those that end a training."""

import difflib
from collections.abc import Iterable


class InputError(ValueError):
    """Bad input: the command line prints its message as one line and exits with code 2, without a traceback."""


class CheckpointError(InputError):
    """A checkpoint that cannot be read, does not fit its config, or has no counterpart in the wanted format."""


class MixtureError(InputError):
    """A mixture file, or the data that it names, cannot be used as it is."""


class TrainingError(RuntimeError):
    """Training cannot go on (a loss that is not a number, a disk that is full); no bad input, so exit code 1."""


class TrainingInterrupted(SystemExit):
    """Training was stopped by a signal and has saved itself; ends the program with 128 + the signal's number."""


def nearest(name: str, known: Iterable[str], listed: bool = False) -> str:
    """`; did you mean 'x'?` where a known name is close; else nothing, or with `listed` the known names."""
    known = list(known)
    if close := difflib.get_close_matches(name, known, n=1):
        return f"; did you mean {close[0]!r}?"
    return f"; known: {', '.join(known)}" if listed else ""
