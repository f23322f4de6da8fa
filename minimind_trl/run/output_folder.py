"""The lock that keeps a second run out of the output folder."""

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
_held: dict[Path, FileLock | None] = {}  # by this process; None for a dry run, which takes no lock


def lock_output_folder(args: "RecipeArguments", config) -> None:
    """Make the output folder and lock it until `release_output_folders`.

    The first of several processes holds the lock; the operating system releases it when the process dies. A dry run
    writes nothing and locks nothing.

    Raises:
        InputError: another run holds the lock, or the folder cannot be written to.
    """
    folder = Path(config.output_dir)
    if folder.exists() and not folder.is_dir():
        raise InputError(f"--output_dir {folder} is a file; give a folder")
    if config.process_index == 0 and folder.resolve() not in _held:
        _held[folder.resolve()] = None if args.dry_run else _locked(folder)


def release_output_folders() -> None:
    """Release the locks of this process, and remove folders that stayed empty."""
    while _held:
        folder, lock = _held.popitem()
        if lock is not None:
            with suppress(OSError):
                (folder / RUN_LOCK).unlink()  # before the release, or it could be another run's
            lock.release()
        with suppress(OSError):  # a folder with files stays
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
            f"--output_dir {folder} is in use by another run{_holder(path)}; give another folder, or wait for its end"
        ) from None
    except OSError as error:
        raise InputError(f"--output_dir {folder} cannot be written to: {error.strerror or error}") from error
    if not isinstance(lock, SoftFileLock):  # which has written the same, on file systems without locks
        path.write_text(f"{os.getpid()}\n{socket.gethostname()}\n{time.strftime('%Y-%m-%d %H:%M:%S')}\n")
    return lock


def _holder(path: Path) -> str:
    """Who holds a lock, if known."""
    try:
        process, host, *since = path.read_text(encoding="utf-8").splitlines()
    except (OSError, ValueError):  # its holder has ended, or has not written yet
        return ""
    return f" (process {process} on {host}" + (f", since {since[0]})" if since else ")")
