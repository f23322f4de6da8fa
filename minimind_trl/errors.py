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
    """Training cannot go on (a loss that is not a number, a disk that is full); no bad input, so exit code 1.

    Attributes:
        unexpected: the error behind it where nobody foresaw it, so that its traceback should be shown too.
    """

    unexpected: BaseException | None = None


class SavingError(TrainingError):
    """A checkpoint or a model could not be written."""


class TrainingInterrupted(SystemExit):
    """Training was stopped by a signal and has saved itself; ends the program with 128 + the signal's number."""


class Interrupted(KeyboardInterrupt):
    """A signal other than Ctrl-C came where there was nothing to save yet; libraries clean up as for a Ctrl-C."""

    def __init__(self, number: int):
        super().__init__()
        self.number = number


def described(error: BaseException) -> str:
    """An error's type and what it says, on one line."""
    called = isinstance(error, SystemExit)  # which says no more than its code
    says = f"sys.exit({'' if error.code is None else repr(error.code)}) was called" if called else error
    return " ".join(f"{type(error).__name__}: {says}".split()).removesuffix(":")


def one_line(error: BaseException) -> str:
    """The message of somebody else's error, its lines joined; its type where it has none."""
    return " ".join(str(error).split()) or type(error).__name__


def first_line(error: BaseException) -> str:
    """The first line of an error's message that says something, else the error's type; for messages of one line."""
    lines = (line.strip() for line in str(error).splitlines())
    return next(filter(None, lines), type(error).__name__)


def raise_all(problems: Iterable[str]) -> None:
    """Raise `InputError` with all problems, one line each, if there are any."""
    if lines := list(problems):
        raise InputError("\n".join(lines))


def nearest(name: str, known: Iterable[str], listed: bool = False) -> str:
    """`; did you mean 'x'?` where a known name is close; else nothing, or with `listed` the known names."""
    known = list(known)
    if close := difflib.get_close_matches(name, known, n=1):
        return f"; did you mean {close[0]!r}?"
    return f"; known: {', '.join(known)}" if listed else ""
