"""The errors that are the user's to mend."""

import difflib
from collections.abc import Iterable


class InputError(ValueError):
    """Bad input: the command line prints its message as one line and exits with code 2, without a traceback."""


class CheckpointError(InputError):
    """A checkpoint that cannot be read, does not fit its config, or has no counterpart in the wanted format."""


class MixtureError(InputError):
    """A mixture file, or the data that it names, cannot be used as it is."""


def nearest(name: str, known: Iterable[str], listed: bool = False) -> str:
    """`; did you mean 'x'?` where a known name is close; else nothing, or with `listed` the known names."""
    known = list(known)
    if close := difflib.get_close_matches(name, known, n=1):
        return f"; did you mean {close[0]!r}?"
    return f"; known: {', '.join(known)}" if listed else ""
