"""Prepared mixtures: a JSONL file for each split, and a lock file with their provenance."""

import hashlib
import json
import os
import shutil
import sys
from collections.abc import Iterator
from contextlib import suppress
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow as pa
from datasets import Dataset, DatasetDict, Features, Json, Value
from datasets.fingerprint import Hasher
from filelock import FileLock
from transformers import PreTrainedTokenizerBase

from ..errors import MixtureError
from ..files import atomic_path, file_digest, leftovers, write_json
from .converted_parts import Piece, in_tables, pieces_of_files
from .mixer import DatasetMixer
from .object_storage import Place, cache_folder, check_url, fetch_folder, is_url, read_text, upload_folder
from .reader import converter_code, tokenizer_digest
from .report import MixtureReport
from .row_renderer import TOKEN_COLUMNS, RowRenderer
from .schemas import COLUMNS, PHASES, Row
from .sources import DataFile, local_file
from .tables import cached_rows, empty_columns, write_split
from .workers import default_processes

_BATCH = 500  # rows that are tokenized together
LOCK = "mixture.lock.json"
_DIGEST = "lock_sha256"  # of the rest of the lock


def prepare(
    mixer: DatasetMixer, folder: Path, tokenizer: PreTrainedTokenizerBase | None = None, keep_tokens: bool = False
) -> DatasetDict:
    """Build a mixture and write it into a folder, completely or not at all.

    The folder holds `{phase}_{config}_train.jsonl`, `{phase}_{config}_validation.jsonl` and `mixture.lock.json`.
    Arguments as of `DatasetMixer.build`; the files have no tokens.

    Raises:
        MixtureError: the mixture cannot be built or is a stream, the folder holds something else, or cannot be written.
    """
    if mixer.mixture.streaming:
        raise MixtureError(f"{mixer.path}: a streaming mixture is read while it is trained on; it cannot be prepared")
    folder = Path(os.path.abspath(folder))
    _refuse_foreign(folder, mixer)
    data = mixer.build(tokenizer, keep_tokens)
    kept = [name for name in data["train"].column_names if name in TOKEN_COLUMNS]
    plain = data.remove_columns(kept)
    try:
        with atomic_path(folder) as temporary:
            temporary.mkdir()
            files = {name: write_split(rows, temporary / f"{mixer.name}_{name}.jsonl") for name, rows in plain.items()}
            lock = mixer.lock() | {"columns": plain["train"].column_names, "prepared": files}
            write_json(temporary / LOCK, lock | {_DIGEST: _digest(lock)})
    except OSError as error:
        raise MixtureError(f"{folder}: cannot be written: {error.strerror or error}") from error
    return data


def load_or_prepare(
    mixer: DatasetMixer, folder: Place, tokenizer: PreTrainedTokenizerBase | None = None, keep_tokens: bool = False
) -> DatasetDict:
    """Load the prepared mixture if it is up to date; otherwise print what changed, and prepare it.

    One of several processes prepares it while the others wait for its file lock.

    Args:
        folder: a local folder, or a URL such as s3://bucket/folder. From there the files are copied to the cache of
            `datasets`, and what is prepared anew is uploaded.

    Raises:
        MixtureError: as for `prepare`; or the storage cannot be read or written.
    """
    if is_url(folder):
        return _load_or_upload(mixer, str(folder).rstrip("/"), tokenizer, keep_tokens)
    folder = Path(os.path.abspath(folder))
    lock = folder.with_name(f".{folder.name}.lock")
    missing = [parent for parent in (folder.parent, *folder.parent.parents) if not parent.exists()]
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        lock.touch()  # FileLock would retry for ever where this fails
        with FileLock(lock):
            return _load_or_prepare(mixer, folder, tokenizer, keep_tokens)
    except (OSError, MixtureError) as error:
        _clean_up(lock, missing)
        if isinstance(error, MixtureError):
            raise
        raise MixtureError(f"{folder}: cannot be used: {error.strerror or error}") from error


def _load_or_prepare(mixer: DatasetMixer, folder: Path, tokenizer, keep_tokens: bool) -> DatasetDict:
    for leftover in leftovers(folder):  # of a killed job; only the holder of the lock writes here
        shutil.rmtree(leftover, ignore_errors=True)
    _refuse_foreign(folder, mixer)
    if not folder.exists() or not any(folder.iterdir()):
        return prepare(mixer, folder, tokenizer, keep_tokens)
    if changes := what_changed(mixer, folder, tokenizer):
        print(f"prepared data: {folder} is rebuilt: {'; '.join(changes)}", file=sys.stderr)
        return prepare(mixer, folder, tokenizer, keep_tokens)
    lock = read_lock(folder)
    mixer.adopt(lock["made_from"], MixtureReport.model_validate(lock))
    return load_prepared(folder, tokenizer if keep_tokens else None, mixer.processes)


def _load_or_upload(mixer: DatasetMixer, url: str, tokenizer, keep_tokens: bool) -> DatasetDict:
    """`load_or_prepare` on a copy in the cache, which is the same as what is in the storage before and afterwards."""
    check_url(url)
    copy = cache_folder() / "prepared" / Hasher.hash(url) / mixer.name
    copy.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{copy.parent}.lock"):
        stored = read_text(f"{url}/{LOCK}")
        if stored is None:
            shutil.rmtree(copy, ignore_errors=True)
        elif stored != _text(copy / LOCK):
            fetch_folder(url, [*_file_names(stored, url), LOCK], copy)
        data = load_or_prepare(mixer, copy, tokenizer, keep_tokens)
        if stored != _text(copy / LOCK):
            upload_folder(copy, url, last=LOCK)
    return data


def _text(path: Path) -> str | None:
    return path.read_text(encoding="utf-8") if path.exists() else None


def _file_names(lock: str, url: str) -> list[str]:
    try:
        names = [file["name"] for file in json.loads(lock)["prepared"].values()]
    except (ValueError, TypeError, KeyError, AttributeError):
        raise MixtureError(f"{url}/{LOCK}: not the lock of a prepared mixture") from None
    if strange := [name for name in names if name != os.path.basename(name)]:
        raise MixtureError(f"{url}/{LOCK}: names a file outside its folder: {strange[0]!r}")
    return names


def _clean_up(lock: Path, made: list[Path]) -> None:
    """Remove what a failed attempt has made, except folders with content."""
    with suppress(OSError):
        lock.unlink()
        for folder in made:
            folder.rmdir()


def load_prepared(
    folder: Path, tokenizer: PreTrainedTokenizerBase | None = None, processes: int | None = None
) -> DatasetDict:
    """Read a prepared mixture.

    Args:
        tokenizer: the one that it was prepared with, to add the tokens of the rows as `DatasetMixer.build` with
            `keep_tokens`; they are cached.
        processes: how many read at once, at most; None for all cores that this process may use.

    Raises:
        MixtureError: there is none, or a file was changed or truncated.
    """
    lock = read_lock(folder)
    if damage := _damage(folder, lock):
        raise MixtureError(f"{folder}: {'; '.join(damage)}; build it again")
    columns = PHASES[lock["phase"]][0]
    own = COLUMNS[columns] | {"source": Value("string")}
    features = {name: own.get(name, Json()) for name in lock["columns"]}
    encoded = set(lock["columns"]) - set(own)
    renderer = tokenizer and RowRenderer(tokenizer, lock["phase"], columns == "text", keep_tokens=True)
    if renderer is not None:
        features |= renderer.features
    made_with = [tokenizer_digest(tokenizer), converter_code()] if tokenizer else []
    processes = processes or default_processes()

    def read(file: dict[str, Any]) -> Dataset:
        pieces = partial(_pieces, folder / file["name"], Features(features), encoded, renderer)
        key = Hasher.hash([file, *made_with])
        return cached_rows(pieces, Features(features), key, f"reading {file['name']}", processes)

    data = DatasetDict({name: read(file) for name, file in lock["prepared"].items()})
    return data.remove_columns(empty_columns(data.values(), ("assistant_masks",)))


def what_changed(mixer: DatasetMixer, folder: Path, tokenizer: PreTrainedTokenizerBase | None = None) -> list[str]:
    """Reasons why a prepared folder cannot be reused; empty if it can."""
    try:
        lock = read_lock(folder)
    except MixtureError as error:
        return [str(error)]
    now, then = mixer.made_from(tokenizer), lock.get("made_from", {})
    changed = [f"{name} changed{_values(then.get(name), now[name])}" for name in now if then.get(name) != now[name]]
    return changed + _damage(folder, lock)


def read_lock(folder: Path) -> dict[str, Any]:
    """The lock of a prepared folder.

    Raises:
        MixtureError: it is missing, not readable, or was edited.
    """
    path = folder / LOCK
    try:
        lock = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise MixtureError(f"{folder}: no {LOCK}: not a prepared mixture, or one that was cut off") from None
    except (OSError, ValueError) as error:
        raise MixtureError(f"{path}: not readable ({error})") from error
    if not isinstance(lock, dict) or not {"phase", "columns", "prepared", "made_from"} <= set(lock):
        raise MixtureError(f"{path}: not the lock of a prepared mixture")
    if lock.pop(_DIGEST, None) != _digest(lock):
        raise MixtureError(f"{path}: not as it was written (edited?); undo that, or remove {folder}")
    return lock


def _pieces(path: Path, features: Features, encoded: set[str], renderer: RowRenderer | None) -> list[Piece]:
    return pieces_of_files([local_file("jsonl", path)], partial(_tables, features, encoded, renderer))


def _tables(features: Features, *arguments) -> Iterator[pa.Table]:
    yield from in_tables(_read(*arguments), features)


def _read(encoded: set[str], renderer: RowRenderer | None, parts: list[tuple[int, DataFile]]) -> Iterator[Row]:
    rows = (row for _, part in parts for _, row in part.read())
    while batch := list(islice(rows, _BATCH)):
        tokens = renderer.tokens_of(batch) if renderer else [{}] * len(batch)
        for row, its in zip(batch, tokens, strict=True):
            yield row | {name: json.dumps(row[name], ensure_ascii=False) for name in encoded} | its


def _refuse_foreign(folder: Path, mixer: DatasetMixer) -> None:
    if folder.is_file():
        raise MixtureError(f"{folder} is a file; give a folder")
    if not folder.is_dir() or not any(folder.iterdir()):
        return
    lock = read_lock(folder)
    if (found := f"{lock['phase']}_{lock.get('config')}") != mixer.name:
        raise MixtureError(f"{folder} holds another mixture, {found}; give another folder for {mixer.name}")


def _damage(folder: Path, lock: dict[str, Any]) -> list[str]:
    found = []
    for file in lock["prepared"].values():
        path = folder / file["name"]
        if not path.is_file():
            found.append(f"{file['name']} is missing")
        elif file_digest(path) != file["sha256"]:
            found.append(f"{file['name']} is not as it was written (cut off, or changed)")
    return found


def _digest(lock: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(lock, sort_keys=True).encode()).hexdigest()


def _values(then: Any, now: Any) -> str:
    simple = isinstance(then, int | str | float) and isinstance(now, int | str | float)
    return f" ({then} -> {now})" if simple and len(f"{then}{now}") < 80 else ""
