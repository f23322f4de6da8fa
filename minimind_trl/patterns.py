"""Regular expressions of the user's, in the syntax of Python's `re`, with an end to their backtracking."""

import functools
import re

import regex

SECONDS = 5.0
"""Of computing, after which a search that backtracks is given up."""


@functools.cache
def compiled(pattern: str, flags: int = 0) -> regex.Pattern:
    """A pattern whose `search` and `fullmatch` take a `timeout` in seconds and raise a TimeoutError.

    Args:
        flags: of `re`.

    Raises:
        ValueError: it is none that `re` takes.
    """
    try:
        re.compile(pattern, flags)  # `regex` knows more, which no documentation here names
        return regex.compile(pattern, int(flags))
    except (re.error, regex.error, OverflowError, RecursionError) as error:
        raise ValueError(f"not a regular expression: {error}") from error
