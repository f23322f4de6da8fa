"""Files at fsspec URLs, such as s3:// and gs://: listed, read in place, and copied.

Credentials are those that the storage's own tools take: environment, profile, or role of the machine.
"""

import io
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import datasets
import fsspec
from datasets.fingerprint import Hasher
from filelock import FileLock
from fsspec.utils import infer_compression

from ..errors import MixtureError, nearest, one_line
from ..files import atomic_path
from ..progress import progress

Place = Path | str
_BLOCK = 2**22  # bytes that one request reads
# What tells one content of a file from another, by the names that storages give it; the first that there is.
_VERSIONS = ("ETag", "etag", "md5Hash", "content_md5", "crc32c", "mtime", "LastModified", "last_modified", "created")
_PACKAGES = {"s3": "'minimind-trl[s3]'", "s3a": "'minimind-trl[s3]'", "gs": "gcsfs", "gcs": "gcsfs", "abfs": "adlfs"}


def is_url(place: Place) -> bool:
    """Whether this is the URL of a file in a storage, not a path."""
    return "://" in str(place)


def check_url(url: str) -> None:
    """Raise MixtureError for a URL that brings credentials: they would be written into the lock of every checkpoint."""
    where, _, rest = url.partition("://")
    if "@" in rest.partition("/")[0] or (where.startswith("http") and "?" in rest):
        raise MixtureError(
            f"{where}://...: the URL brings credentials, which would be written into the lock of every checkpoint: set "
            "them in the environment"
        )


def open_bytes(place: Place) -> AbstractContextManager[io.BufferedIOBase]:
    """A file to read, decompressed as its name says."""
    if not is_url(place):
        return fsspec.open(str(place), "rb", compression="infer")
    storage, path = fsspec.url_to_fs(str(place))
    content = storage.open(path, "rb", compression=infer_compression(path), block_size=_BLOCK)
    return io.BufferedReader(content)  # whose lines are read faster


def list_files(url: str) -> list[str]:
    """The URLs of a file, or of all files that a pattern with `*` fits, sorted.

    Raises:
        MixtureError: there is none, or the storage cannot be read.
    """
    check_url(url)
    with storage_errors(url):
        storage, path = fsspec.url_to_fs(url)
        found = sorted(storage.glob(path)) if any(sign in path for sign in "*?[") else [path]
        if not found or not (len(found) > 1 or storage.exists(found[0])):
            folder, _, name = path.rpartition("/")
            beside = [other.rpartition("/")[2] for other in storage.ls(folder, detail=False)] if folder else []
            raise MixtureError(f"{url}: no such file{nearest(name, beside)}")
    return [storage.unstrip_protocol(one) for one in found]


def version_of(url: str) -> str:
    """What tells this content of a file from another, without reading it; such as its ETag, with its size.

    Raises:
        MixtureError: the file cannot be found, or its storage tells no such thing.
    """
    with storage_errors(url):
        storage, path = fsspec.url_to_fs(url)
        found = storage.info(path)
    name = next((name for name in _VERSIONS if found.get(name)), None)
    if name is None:
        raise MixtureError(f"{url}: its storage does not tell when a file has changed: copy it to a disk")
    value = found[name].strip('"') if isinstance(found[name], str) else found[name]
    return f"{name.lower()} {value}, {found.get('size')} bytes"


def local_copy(url: str, version: str) -> Path:
    """The file in the cache of `datasets`, copied unless it is there; one of several processes copies it.

    Raises:
        MixtureError: it cannot be read, has changed since `version`, or the cache cannot be written.
    """
    cache = cache_folder() / "copies"
    copy = cache / Hasher.hash([url, version]) / url.rpartition("/")[2]
    if copy.exists():
        return copy
    try:
        copy.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{copy.parent}.lock"):
            if not copy.exists():
                _download(url, copy)
                if version_of(url) != version:
                    copy.unlink()
                    raise MixtureError(f"{url}: was changed while it was read: start again")
    except OSError as error:
        raise MixtureError(f"{cache}: a copy of {url} cannot be written: {error.strerror or error}") from error
    return copy


def cache_folder() -> Path:
    """This package's folder in the cache of `datasets`."""
    return Path(datasets.config.HF_DATASETS_CACHE).expanduser() / "minimind-trl"


def _download(url: str, copy: Path) -> None:
    with storage_errors(url):
        storage, path = fsspec.url_to_fs(url)
        size, content = storage.size(path), storage.open(path, "rb", block_size=_BLOCK)

    def read() -> bytes:
        with storage_errors(url):
            return content.read(_BLOCK)

    bar = progress(f"copying {url}", size, "bytes")
    with content, bar, atomic_path(copy) as temporary, temporary.open("wb") as file:
        for part in iter(read, b""):
            file.write(part)
            bar.update(len(part))


@contextmanager
def storage_errors(url: str) -> Iterator[None]:
    """Turn whatever a storage raises into a MixtureError of one line."""
    try:
        yield
    except MixtureError:
        raise
    except Exception as error:  # every storage has its own
        raise storage_problem(url, error) from error


def storage_problem(url: str, error: Exception) -> MixtureError:
    """What an error of a storage means for who uses it."""
    protocol = url.partition("://")[0]
    kind = type(error).__name__
    if isinstance(error, ImportError):
        package = _PACKAGES.get(protocol)
        return MixtureError(f"{url}: {f'{protocol}:// needs: pip install {package}' if package else one_line(error)}")
    if isinstance(error, ValueError) and "Protocol not known" in str(error):
        return MixtureError(f"{url}: unknown protocol{nearest(protocol, fsspec.available_protocols())}")
    if isinstance(error, FileNotFoundError):
        return MixtureError(f"{url}: no such file or bucket")
    if isinstance(error, PermissionError) or "Forbidden" in str(error) or "InvalidAccessKeyId" in str(error):
        return MixtureError(f"{url}: access denied: the credentials that were found may not read it")
    if "Credentials" in kind or "Credentials" in str(error):
        return MixtureError(
            f"{url}: no credentials: set those of the storage, such as AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or "
            "AWS_PROFILE; for public files of S3, FSSPEC_S3_ANON=true"
        )
    return MixtureError(f"{url}: cannot be read ({kind}: {one_line(error)})")


def fetch_folder(url: str, names: list[str], folder: Path) -> None:
    """Copy files of a folder in a storage into a local folder, which is replaced as a whole."""
    with atomic_path(folder) as temporary:
        temporary.mkdir(parents=True)
        for name in names:
            _download(f"{url}/{name}", temporary / name)


def upload_folder(folder: Path, url: str, last: str) -> None:
    """Copy a folder's files into a folder of a storage, the one named `last` at the end.

    Raises:
        MixtureError: the storage cannot be written.
    """
    names = sorted(file.name for file in folder.iterdir())
    for name in (*(name for name in names if name != last), last):
        with storage_errors(f"{url}/{name}"):
            storage, path = fsspec.url_to_fs(f"{url}/{name}")
            storage.put_file(str(folder / name), path)


def read_text(url: str) -> str | None:
    """The text of a file; None if there is no such file.

    Raises:
        MixtureError: the storage cannot be read.
    """
    with storage_errors(url):
        storage, path = fsspec.url_to_fs(url)
        storage.invalidate_cache()
        return storage.cat_file(path).decode() if storage.exists(path) else None
