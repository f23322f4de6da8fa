"""The errors that are the user's to mend."""


class InputError(ValueError):
    """Bad input: the command line prints its message as one line and exits with code 2, without a traceback."""


class CheckpointError(InputError):
    """A checkpoint that cannot be read, does not fit its config, or has no counterpart in the wanted format."""
