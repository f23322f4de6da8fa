"""Which checkpoints are complete, and which may be deleted."""

import json
import os
import re
import shutil
import sys
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError, safe_open
from transformers.trainer import TRAINER_STATE_NAME

from ..errors import SavingError
from ..files import write_json

CHECKSUMS = "checksums.json"
_NAME = re.compile(r"checkpoint-(\d+)")


def _print_to_stderr(line: str) -> None:
    print(line, file=sys.stderr)


def last_good_checkpoint(output_dir: str | Path, report: Callable[[str], None] = _print_to_stderr) -> Path | None:
    """The newest `checkpoint-N` of a folder that training can resume from, or None.

    Args:
        report: gets one line for every newer checkpoint that is damaged, with the reason.
    """
    for path in reversed(checkpoints_in(output_dir)):
        problem = checkpoint_problem(path)
        if problem is None:
            return path
        report(f"{path} is skipped: {problem}")
    return None


def checkpoints_in(output_dir: str | Path) -> list[Path]:
    """Every `checkpoint-N` of a folder, complete or not, from the first step to the last."""
    folder = Path(output_dir)
    found = [path for path in folder.iterdir() if path.is_dir()] if folder.is_dir() else []
    return sorted((path for path in found if _NAME.fullmatch(path.name)), key=_step_of)


def rotate(saved: Path, limit: int | None, best: str | None) -> None:
    """Delete checkpoints beyond a limit, but neither the one just `saved`, which is complete, nor the best one.

    Those of later steps are deleted first: training resumed before them because they were damaged. (transformers sorts
    by the folders' times, which a copy or a coarse clock changes, and then keeps the last step, complete or not.)
    """
    if limit is None or limit <= 0:
        return
    found = checkpoints_in(saved.parent)
    others = [path for path in found if path != saved and (best is None or path != Path(best))]
    others.sort(key=lambda path: (_step_of(path) < _step_of(saved), _step_of(path)))
    for path in others[: max(len(found) - limit, 0)]:
        doomed = path.with_name(f".{path.name}.old")  # if the run is killed here, no half of it has its name
        try:
            path.rename(doomed)
            shutil.rmtree(doomed)
        except OSError as error:
            _print_to_stderr(f"{path} is beyond save_total_limit and could not be deleted: {error}")


@contextmanager
def saving(what: str, output_dir: str | Path) -> Iterator[None]:
    """Report a full or broken disk in one line, with what is safe.

    Raises:
        SavingError: the block could not write.
    """
    try:
        yield
    except (OSError, RuntimeError, SafetensorError) as error:  # torch raises RuntimeError
        free = shutil.disk_usage(output_dir).free / 2**20
        reason = " ".join(str(error).split())
        raise SavingError(
            f"{what} could not be saved, with {free:,.0f} MiB free on the disk: {reason}; {what_is_safe(output_dir)}"
        ) from error


def what_is_safe(output_dir: str | Path) -> str:
    """The end of the message of a run that fails."""
    checkpoint = last_good_checkpoint(output_dir, report=lambda line: None)
    return f"the last good checkpoint is {checkpoint}" if checkpoint else "there is no good checkpoint"


def processes_of(folder: Path) -> int:
    """How many processes saved a checkpoint, by their random states; 0 if it has none."""
    return len(list(folder.glob("rng_state*.pth")))


def checkpoint_problem(folder: Path) -> str | None:
    """Why training cannot resume from a checkpoint, or None.

    Every file must have the size and checksum that `write_checksums` wrote. In a checkpoint of transformers alone,
    which has none, the state must parse, safetensors files must have the length that their headers say, and torch's
    files must be complete zip archives.
    """
    try:
        step = json.loads((folder / TRAINER_STATE_NAME).read_text(encoding="utf-8"))["global_step"]
        if _NAME.fullmatch(folder.name) and folder.name != f"checkpoint-{step}":
            return f"{TRAINER_STATE_NAME} is of step {step}"
        if missing := _missing_file(folder):
            return f"{missing} is missing"
        if (folder / CHECKSUMS).exists():
            return _checksum_problem(folder)
        return contents_problem(folder)
    except FileNotFoundError as error:
        return f"{Path(error.filename or '').name} is missing"
    except (AttributeError, KeyError, TypeError, ValueError):
        return f"{TRAINER_STATE_NAME} or {CHECKSUMS} cannot be read"
    except OSError as error:
        return str(error)


def contents_problem(folder: Path) -> str | None:
    """The first file that is not what its name says, or None; a disk may lose the end of a file without an error."""
    return next(filter(None, map(_file_problem, sorted(folder.rglob("*")))), None)


def write_checksums(folder: Path) -> None:
    """Write the size and CRC-32 of every file of a checkpoint to `checksums.json`, after they are on the disk."""
    files = sorted(path for path in folder.rglob("*") if path.is_file() and path.name != CHECKSUMS)
    for path in files:  # or a power cut could keep the folder's name and lose its content
        with path.open("rb" if os.name == "posix" else "rb+") as file:  # the copy of our code may be read-only
            os.fsync(file.fileno())
    write_json(folder / CHECKSUMS, {path.relative_to(folder).as_posix(): _size_and_crc(path) for path in files})


def _step_of(folder: Path) -> int:
    return int(_NAME.fullmatch(folder.name)[1])


def _missing_file(folder: Path) -> str | None:
    if any(path.is_dir() for path in folder.iterdir()) or (folder / "optimizer.bin").exists():
        return None  # the layouts of FSDP and DeepSpeed
    if not [*folder.glob("*.safetensors"), *folder.glob("*model*.bin")]:
        return "the model's weights"
    for index in folder.glob("*.safetensors.index.json"):
        for shard in set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()):
            if not (folder / shard).exists():
                return shard
    if not list(folder.glob("rng_state*.pth")):
        return "rng_state.pth"
    return next((name for name in ("optimizer.pt", "scheduler.pt") if not (folder / name).exists()), None)


def _checksum_problem(folder: Path) -> str | None:
    for name, (size, crc) in json.loads((folder / CHECKSUMS).read_text(encoding="utf-8")).items():
        actual = (folder / name).stat().st_size
        if actual != size:
            return f"{name} has {actual:,} bytes of {size:,}"
        if _size_and_crc(folder / name)[1] != crc:
            return f"{name} is corrupt, its checksum differs"
    return None


def _file_problem(path: Path) -> str | None:
    if path.suffix == ".safetensors":
        try:
            with safe_open(path, "pt"):
                return None
        except SafetensorError as error:
            return f"{path.name} is truncated or corrupt ({error})"
    if path.suffix in (".pt", ".pth", ".bin"):
        try:
            with zipfile.ZipFile(path) as archive:
                return None if archive.testzip() is None else f"{path.name} is corrupt"
        except zipfile.BadZipFile:
            return f"{path.name} is truncated or corrupt"
    return None


def _size_and_crc(path: Path) -> list[int]:
    size, crc = 0, 0
    with path.open("rb") as file:
        while chunk := file.read(1 << 20):
            size, crc = size + len(chunk), zlib.crc32(chunk, crc)
    return [size, crc]
