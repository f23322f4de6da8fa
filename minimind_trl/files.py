"""Atomic writes, digests and full disks."""

import errno
import glob
import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any


@contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """Yield a temporary path for a file or folder, and move it to `path` if the block succeeds.

    An existing folder is replaced as a whole. If the block fails, `path` is unchanged.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        yield temporary
        if temporary.is_dir() and path.is_dir():
            _replace_folder(temporary, path)
        else:
            os.replace(temporary, path)
    finally:
        if temporary.is_dir():
            shutil.rmtree(temporary)
        else:
            temporary.unlink(missing_ok=True)


def leftovers(path: Path) -> Iterator[Path]:
    """Temporary paths that processes killed inside `atomic_path` left beside a path."""
    for kind in ("tmp", "old"):
        yield from path.parent.glob(f".{glob.escape(path.name)}.*.{kind}")


def write_json(path: Path, content: Any) -> None:
    """Write indented JSON atomically."""
    with atomic_path(path) as temporary:
        temporary.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def file_digest(path: Path) -> str:
    """SHA-256 of a file, or of the names and digests of a folder's files."""
    if path.is_dir():
        parts = (f"{file.name} {file_digest(file)}" for file in sorted(path.iterdir()) if file.is_file())
        return hashlib.sha256("\n".join(parts).encode()).hexdigest()
    found = path.stat()
    return _digest_of(path, found.st_ino, found.st_size, found.st_mtime_ns)


@cache
def _digest_of(path: Path, *_version: int) -> str:
    """SHA-256 of a file, computed once while nothing of it changes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def full_disk_message(error: BaseException | None) -> str | None:
    """The message for an error that was caused by a full disk; None for any other error."""
    while error is not None:
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            where = f"{error.filename}: " if error.filename else ""
            return f"{where}{os.strerror(error.errno)}; make room, or set TMPDIR and HF_HOME to a larger disk"
        error = error.__cause__ or error.__context__
    return None


def _replace_folder(new: Path, old: Path) -> None:
    aside = old.with_name(f".{old.name}.{os.getpid()}.old")
    os.rename(old, aside)
    try:
        os.rename(new, old)
    except OSError:
        os.rename(aside, old)
        raise
    shutil.rmtree(aside)
