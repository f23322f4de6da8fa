"""The lock on the output folder, against a second run at the same time."""

import os
import socket
import time
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from filelock import FileLock, SoftFileLock, Timeout

from ..errors import InputError

if TYPE_CHECKING:
    from .arguments import RecipeArguments

RUN_LOCK = "_run.lock"  # what begins with _ is not pushed to the Hub
_held: dict[Path, FileLock | None] = {}  # by this process; None: unlocked, for a dry run


def lock_output_folder(args: "RecipeArguments", config) -> None:
    """Make the output folder and lock it until `release_output_folders`.

    Of several processes the first one holds the lock; where it dies, in whatever way, the system lets go of it. A dry
    run writes nothing and locks nothing.

    Raises:
        InputError: another run holds the lock, or the folder cannot be written to.
    """
    folder = Path(config.output_dir)
    if folder.exists() and not folder.is_dir():
        raise InputError(f"--output_dir {folder} is a file; give a folder")
    if config.process_index == 0 and folder.resolve() not in _held:
        _held[folder.resolve()] = None if args.dry_run else _locked(folder)


def release_output_folders() -> None:
    """Let go of what this process holds; of a folder that nothing came into, leave nothing."""
    while _held:
        folder, lock = _held.popitem()
        if lock is not None:
            with suppress(OSError):
                (folder / RUN_LOCK).unlink()  # first, or it could be another run's by then
            lock.release()
        with suppress(OSError):  # one that holds something stays
            folder.rmdir()


def holds_output_folder() -> bool:
    return bool(_held)


def _locked(folder: Path) -> FileLock:
    path = folder / RUN_LOCK
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = FileLock(path)
        lock.acquire(blocking=False)
    except Timeout:
        raise InputError(
            f"--output_dir {folder} is in use by another run{_told(path)}; give another folder, or wait for its end"
        ) from None
    except OSError as error:
        raise InputError(f"--output_dir {folder} cannot be written to: {error.strerror or error}") from error
    if not isinstance(lock, SoftFileLock):  # of file systems without locks, which has written the same
        path.write_text(f"{os.getpid()}\n{socket.gethostname()}\n{time.strftime('%Y-%m-%d %H:%M:%S')}\n")
    return lock


def _told(path: Path) -> str:
    """Who holds a lock, as far as it is known."""
    try:
        process, host, *since = path.read_text(encoding="utf-8").splitlines()
    except (OSError, ValueError):  # it has ended, or has not written yet
        return ""
    return f" (process {process} on {host}" + (f", since {since[0]})" if since else ")")
