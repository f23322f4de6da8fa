"""The signals that end a run, and terminals that are gone."""

import os
import select
import signal

# SIGHUP comes when the terminal closes, as with a dropped ssh connection; Windows has none.
SIGNALS = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name))


def leave_dead_terminal() -> None:
    """Discard stdout and stderr from here on if their reader is gone: writing would raise an error."""
    with open(os.devnull, "w") as nowhere:
        for stream in (1, 2):
            poll = select.poll()
            poll.register(stream, 0)
            if any(event & (select.POLLHUP | select.POLLERR) for _, event in poll.poll(0)):
                os.dup2(nowhere.fileno(), stream)
