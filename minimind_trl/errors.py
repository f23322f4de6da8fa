"""Errors that the user can fix, errors that end a training run, and helpers for their messages."""

import difflib
from collections.abc import Iterable


class InputError(ValueError):
    """Bad input: the command line prints its message as one line and exits with code 2, without a traceback."""


class CheckpointError(InputError):
    """A checkpoint that cannot be read, does not fit its config, or has no counterpart in the wanted format."""


class MixtureError(InputError):
    """A mixture file, or data that it names, is unusable."""


class CertificateError(RuntimeError):
    """An export does not compute what its source does, so it is not written. The exit code is 1."""


class TrainingError(RuntimeError):
    """Training cannot go on (a loss that is not a number, a full disk). The input is fine, so the exit code is 1.

    Attributes:
        unexpected: the cause, if it is an unforeseen error whose traceback should be shown too.
    """

    unexpected: BaseException | None = None


class SavingError(TrainingError):
    """A checkpoint or a model could not be written."""


class TrainingInterrupted(SystemExit):
    """A signal stopped training, which saved a checkpoint first; the exit code is 128 + the signal's number."""


class Interrupted(KeyboardInterrupt):
    """A signal other than Ctrl-C arrived before there was anything to save; libraries clean up as for Ctrl-C."""

    def __init__(self, number: int):
        super().__init__()
        self.number = number


def describe(error: BaseException) -> str:
    """An error's type and message on one line."""
    message: object = error
    if isinstance(error, SystemExit):  # its message is only the code
        message = f"sys.exit({'' if error.code is None else repr(error.code)}) was called"
    return " ".join(f"{type(error).__name__}: {message}".split()).removesuffix(":")


def one_line(error: BaseException) -> str:
    """An error's message with its lines joined, or the error's type if the message is empty."""
    return " ".join(str(error).split()) or type(error).__name__


def first_line(error: BaseException) -> str:
    """The first line of an error's message that is not blank, or the error's type if there is none."""
    lines = (line.strip() for line in str(error).splitlines())
    return next(filter(None, lines), type(error).__name__)


def raise_all(problems: Iterable[str]) -> None:
    """Raise `InputError` with one line per problem, if there are any."""
    if lines := list(problems):
        raise InputError("\n".join(lines))


def check_seed(seed: int | None) -> None:
    """Raise `InputError` for a seed that NumPy does not take."""
    if seed is not None and not 0 <= seed < 2**32:
        raise InputError(f"--seed {seed}: must be from 0 to {2**32 - 1}")


def nearest(name: str, known: Iterable[str], listed: bool = False) -> str:
    """`; did you mean 'x'?` if a known name is close. Otherwise an empty string, or with `listed` the known names."""
    known = list(known)
    if close := difflib.get_close_matches(name, known, n=1):
        return f"; did you mean {close[0]!r}?"
    return f"; known: {', '.join(known)}" if listed else ""
