"""Which checkpoints are whole."""

import json
import re
import sys
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path

from safetensors import SafetensorError, safe_open
from transformers.trainer import TRAINER_STATE_NAME

from ..files import write_json

CHECKSUMS = "checksums.json"
_NAME = re.compile(r"checkpoint-(\d+)")


def _print_to_stderr(line: str) -> None:
    print(line, file=sys.stderr)


def last_good_checkpoint(output_dir: str | Path, tell: Callable[[str], None] = _print_to_stderr) -> Path | None:
    """The newest `checkpoint-N` in a folder that training can go on from, or None.

    Args:
        tell: gets one line for every newer one that is passed over, with what is wrong with it.
    """
    folder = Path(output_dir)
    found = [path for path in folder.iterdir() if path.is_dir()] if folder.is_dir() else []
    checkpoints = [(int(match[1]), path) for path in found if (match := _NAME.fullmatch(path.name))]
    for _, path in sorted(checkpoints, reverse=True):
        problem = checkpoint_problem(path)
        if problem is None:
            return path
        tell(f"{path} is passed over: {problem}")
    return None


def checkpoint_problem(folder: Path) -> str | None:
    """Why training cannot go on from a checkpoint, or None where it can.

    Every file must have the size and checksum that `write_checksums` noted. In a checkpoint without these (made by
    transformers alone) the state must parse, safetensors files must have the length that their headers ask for, and
    torch's files must be whole zip archives.
    """
    try:
        step = json.loads((folder / TRAINER_STATE_NAME).read_text(encoding="utf-8"))["global_step"]
        if _NAME.fullmatch(folder.name) and folder.name != f"checkpoint-{step}":
            return f"{TRAINER_STATE_NAME} is of step {step}"
        if missing := _missing_file(folder):
            return f"{missing} is missing"
        if (folder / CHECKSUMS).exists():
            return _checksum_problem(folder)
        return next(filter(None, map(_file_problem, sorted(folder.iterdir()))), None)
    except FileNotFoundError as error:
        return f"{Path(error.filename or '').name} is missing"
    except (KeyError, TypeError, UnicodeDecodeError, json.JSONDecodeError):
        return f"{TRAINER_STATE_NAME} or {CHECKSUMS} cannot be read"
    except OSError as error:
        return str(error)


def write_checksums(folder: Path) -> None:
    """Note size and CRC-32 of every file of a checkpoint in `checksums.json`."""
    files = sorted(path for path in folder.rglob("*") if path.is_file() and path.name != CHECKSUMS)
    write_json(folder / CHECKSUMS, {path.relative_to(folder).as_posix(): _size_and_crc(path) for path in files})


def _missing_file(folder: Path) -> str | None:
    if any(path.is_dir() for path in folder.iterdir()) or (folder / "optimizer.bin").exists():
        return None  # FSDP and DeepSpeed have layouts of their own
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
