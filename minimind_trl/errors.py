"""The one kind of error that is the user's to mend."""


class InputError(ValueError):
    """Bad input: the command line prints its message as one line and exits with code 2, without a traceback."""
