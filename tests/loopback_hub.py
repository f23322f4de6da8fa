"""A small Hub on 127.0.0.1, from which `datasets` and `huggingface_hub` read data sets as they do from the real one.

Models, which `loopback_uploads.py` makes, are read the same way.

    with LoopbackHub() as hub:
        hub.add("openai/gsm8k", configs={"main": {"train": rows, "test": rows}})
        hub.add("owner/files", {"helpful/train.jsonl.gz": rows, "notes.txt": "text"}, private=True)
        subprocess.run([sys.executable, "-c", "..."], env=hub.environment(tmp_path, token=hub.token))

The endpoint is fixed when those libraries are imported, hence the subprocess. For uploads see `loopback_uploads.py`.
"""

import csv
import gzip
import hashlib
import io
import json
import os
import re
import socket
import struct
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, unquote, urlsplit

import pyarrow as pa
import pyarrow.parquet as pq
import yaml

Rows = list[dict]
_KIND = r"/api/(?P<kind>models|datasets)"
_NAME = r"/(?P<repo>[^/]+/[^/]+)"
_ROUTES = (
    ("info", re.compile(rf"{_KIND}{_NAME}(/revision/(?P<revision>[^/]+))?")),
    ("tree", re.compile(rf"{_KIND}{_NAME}/tree/(?P<revision>[^/]+)(/(?P<path>.*))?")),
    ("paths", re.compile(rf"{_KIND}{_NAME}/paths-info/(?P<revision>[^/]+)")),
    ("file", re.compile(rf"(?P<kind>/datasets)?{_NAME}/resolve/(?P<revision>[^/]+)/(?P<path>.+)")),
)


@dataclass
class Repo:
    private: bool = False
    gated: bool = False
    refs: dict[str, str] = field(default_factory=dict)
    """Branches and tags; every sha that there ever was stays readable."""
    commits: dict[str, dict[str, bytes]] = field(default_factory=dict)

    def commit(self, revision: str) -> str | None:
        sha = self.refs.get(revision, revision)
        return sha if sha in self.commits else None


@dataclass
class Fault:
    pattern: str
    times: float
    status: int | None = None
    retry_after: int | None = None
    after: int = 0
    reset: bool = False


@dataclass
class Request:
    method: str
    path: str
    """With the query, still quoted."""
    byte_range: str | None
    authorized: bool
    status: int | None = None


class HubError(Exception):
    """An answer other than the wanted one."""

    def __init__(self, status: int, message: str, code: str | None = None, headers: dict | None = None):
        super().__init__(message)
        self.status = status
        self.headers = {"X-Error-Message": message} | ({"X-Error-Code": code} if code else {}) | (headers or {})


class LoopbackHub:
    """Serves data sets while it is entered as a context manager.

    `token` belongs to someone who may read everything; `outsider_token` is valid but opens nothing private or gated.
    Every other token is refused, as the Hub does.
    """

    def __init__(self, token: str = "hf_loopbackOwner", outsider_token: str = "hf_loopbackOutsider"):
        self.token = token
        self.outsider_token = outsider_token
        self.repos: dict[str, Repo] = {}
        self.faults: list[Fault] = []
        self.requests: list[Request] = []
        self._lock = threading.Lock()

    def __enter__(self) -> "LoopbackHub":
        self._server = _Server(("127.0.0.1", 0), type("Handler", (self._handler_class(),), {"hub": self}))
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_):
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def _handler_class(self) -> type["_Handler"]:
        return _Handler

    def add(
        self,
        repo: str,
        files: dict[str, Rows | str | bytes] | Path | None = None,
        *,
        configs: dict[str, dict[str, Rows]] | None = None,
        extension: str = "parquet",
        default_config: str | None = None,
        private: bool = False,
        gated: bool = False,
        revision: str = "main",
        tags: tuple[str, ...] = (),
    ) -> str:
        """Make a data set, or give one that is there a new commit with these files only.

        Args:
            repo: "owner/name".
            files: content by path (rows are written by extension: `.jsonl`, `.json`, `.csv`, each also with `.gz`, and
                `.parquet`), or a folder whose files are served.
            configs: rows by config and split; adds a file for each and a README that declares them. The config
                "default" lies in `data/`, others in a folder of their name.
            extension: of the files that `configs` makes.
            default_config: the config to mark as the default one.
            private: only `token` can read it.
            gated: everybody sees that it is there, only `token` can read the files.
            revision: the branch that moves to the new commit.
            tags: names for the new commit.

        Returns:
            The new commit's sha.
        """
        if isinstance(files, Path):
            files = {p.relative_to(files).as_posix(): p.read_bytes() for p in sorted(files.rglob("*")) if p.is_file()}
        contents = dict(files or {})
        for config, splits in (configs or {}).items():
            for split, rows in splits.items():
                contents[f"{_folder(config)}/{split}-00000-of-00001.{extension}"] = rows
        if configs:
            contents.setdefault("README.md", _readme(configs, default_config))
        tree = {path: encode(path, content) for path, content in contents.items()}
        entry = self.repos.setdefault(repo, Repo())
        entry.private, entry.gated = private, gated
        history = f"{repo} {len(entry.commits)} " + " ".join(f"{path}:{_oid(data)}" for path, data in tree.items())
        sha = hashlib.sha1(history.encode()).hexdigest()
        entry.commits[sha] = tree
        entry.refs |= dict.fromkeys((revision, *tags), sha)
        return sha

    def fail(self, pattern: str, status: int = 503, times: float = 1, retry_after: int | None = None):
        """Answer `status` to the next `times` (or `math.inf`) requests that have `pattern` in "METHOD /path?query"."""
        self.faults.append(Fault(pattern, times, status, retry_after))

    def drop(self, pattern: str, after: int, times: float = 1, reset: bool = False):
        """Close the connection (by a TCP reset with `reset`) after so many bytes of the body, for matching GETs."""
        self.faults.append(Fault(pattern, times, after=after, reset=reset))

    def heal(self):
        """No more faults."""
        self.faults.clear()

    def environment(self, home: Path, token: str | None = None, offline: bool = False) -> dict[str, str]:
        """The variables of a process that takes this for the Hub, with its caches (and nothing else) in `home`."""
        kept = {
            name: value
            for name, value in os.environ.items()
            if not name.startswith(("HF_", "HUGGING", "TRANSFORMERS_"))
        }
        ours = {
            "HF_ENDPOINT": self.url,
            "HF_HOME": str(home),
            "HF_HUB_DISABLE_XET": "1",
            "HF_HUB_DISABLE_PROGRESS_BARS": "1",
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "NO_PROXY": "127.0.0.1",
            "no_proxy": "127.0.0.1",
        }
        optional = {"HF_TOKEN": token, "HF_HUB_OFFLINE": "1" if offline else None}
        return kept | ours | {name: value for name, value in optional.items() if value}

    def fault_for(self, method: str, path: str) -> Fault | None:
        """The fault that hits this request, which then has one time less to go."""
        with self._lock:
            for fault in self.faults:
                wanted = fault.status is not None or method == "GET"
                if wanted and fault.times > 0 and re.search(fault.pattern, f"{method} {path}"):
                    fault.times -= 1
                    return fault
        return None

    def open_repo(self, name: str, authorization: str | None, for_files: bool) -> Repo:
        """The repo, if whoever asks may read it.

        Raises:
            HubError: with the status and the code of the real Hub.
        """
        token = authorization.removeprefix("Bearer ") if authorization else None
        if token not in (None, self.token, self.outsider_token):
            raise HubError(401, "Invalid credentials in Authorization header")
        repo = self.repos.get(name)
        if repo is None or (repo.private and token != self.token):
            # The Hub does not tell strangers what is private and what is not there.
            raise HubError(404 if token else 401, "Repository not found", "RepoNotFound")
        if repo.gated and for_files and token != self.token:
            raise HubError(403 if token else 401, f"Access to {name} is restricted", "GatedRepo")
        return repo


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def shutdown_request(self, request: socket.socket):
        # A socket that lingers for no time is reset when closed, unless it is shut down in an orderly way before.
        if request.fileno() >= 0 and request.getsockopt(socket.SOL_SOCKET, socket.SO_LINGER, 8)[0]:
            return self.close_request(request)
        super().shutdown_request(request)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    hub: LoopbackHub

    def handle_one_request(self):
        try:
            super().handle_one_request()
        except ConnectionError:  # the client went away
            self.close_connection = True

    def _answer(self):
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        self._fault = self.hub.fault_for(self.command, self.path)
        self._request = Request(self.command, self.path, self.headers.get("Range"), "Authorization" in self.headers)
        self.hub.requests.append(self._request)
        try:
            if self._fault and self._fault.status:
                wait = self._fault.retry_after
                headers = {} if wait is None else {"Retry-After": str(wait)}
                raise HubError(self._fault.status, "Made to fail", headers=headers)
            self._route(body)
        except HubError as error:
            self._send(error.status, json.dumps({"error": str(error)}).encode(), error.headers)

    do_GET = do_HEAD = do_POST = do_PUT = do_DELETE = _answer

    def _route(self, body: bytes):
        path = urlsplit(self.path).path
        name, match = next(((name, m) for name, pattern in _ROUTES if (m := pattern.fullmatch(path))), (None, None))
        if match is None:
            raise HubError(404, "Not found")
        if self.command not in (("POST",) if name == "paths" else ("GET", "HEAD")):
            raise HubError(405, "This Hub is for reading only")
        found = {key: unquote(value) for key, value in match.groupdict().items() if value is not None}
        stored_as = found["repo"] if found.get("kind", "").endswith("datasets") else f"models/{found['repo']}"
        repo = self.hub.open_repo(stored_as, self.headers.get("Authorization"), for_files=name == "file")
        sha = repo.commit(found.get("revision", "main"))
        if sha is None:
            raise HubError(404, f"Invalid rev id: {found.get('revision')}", "RevisionNotFound")
        tree, path = repo.commits[sha], found.get("path", "").strip("/")
        if name == "info":
            self._send_json(_info(found["repo"], repo, sha))
        elif name == "tree":
            recursive = parse_qs(urlsplit(self.path).query).get("recursive", ["false"])[0].lower() in ("true", "1")
            self._send_json(_listing(tree, path, recursive, sha))
        elif name == "paths":
            paths = parse_qs(body.decode()).get("paths", [])
            every = {entry["path"]: entry for entry in _listing(tree, "", True, sha)}
            self._send_json([every[path] for path in paths if path in every])
        else:
            self._send_file(tree, path, sha)

    def _send_file(self, tree: dict[str, bytes], path: str, sha: str):
        if path not in tree:
            raise HubError(404, "Entry not found", "EntryNotFound", {"X-Repo-Commit": sha})
        data, headers = tree[path], {"X-Repo-Commit": sha, "Accept-Ranges": "bytes", "ETag": f'"{_oid(tree[path])}"'}
        if _is_lfs(path):
            headers |= {"X-Linked-Size": str(len(data)), "X-Linked-Etag": f'"{hashlib.sha256(data).hexdigest()}"'}
        if wanted := re.fullmatch(r"bytes=(\d*)-(\d*)", self.headers.get("Range") or ""):
            first, last = wanted.groups()
            start = int(first) if first else max(len(data) - int(last), 0)
            stop = min(int(last) + 1, len(data)) if first and last else len(data)
            if start >= len(data):
                raise HubError(416, "Range not satisfiable", headers={"Content-Range": f"bytes */{len(data)}"})
            headers["Content-Range"] = f"bytes {start}-{stop - 1}/{len(data)}"
            return self._send(206, data[start:stop], headers)
        self._send(200, data, headers)

    def _send_json(self, content):
        self._send(200, json.dumps(content).encode(), {"Content-Type": "application/json"})

    def _send(self, status: int, body: bytes, headers: dict[str, str]):
        self._request.status = status
        self.send_response(status)
        for name, value in ({"Content-Type": "application/octet-stream"} | headers).items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command == "HEAD":
            return
        if self._fault and not self._fault.status and len(body) > self._fault.after:
            body = body[: self._fault.after]
            self.close_connection = True
            if self._fault.reset:
                self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.wfile.write(body)

    def log_message(self, *_):
        pass  # the log is `hub.requests`


def encode(path: str, content: Rows | str | bytes) -> bytes:
    """The bytes of a file: rows in the format that the path's extension names, text and bytes as they are."""
    if isinstance(content, bytes):
        return content
    if path.endswith(".gz"):
        return gzip.compress(encode(path.removesuffix(".gz"), content), mtime=0)
    if isinstance(content, str):
        return content.encode()
    if path.endswith(".parquet"):
        sink = io.BytesIO()
        pq.write_table(pa.Table.from_pylist(content), sink)
        return sink.getvalue()
    if path.endswith(".jsonl"):
        return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in content).encode()
    if path.endswith(".json"):
        return json.dumps(content, ensure_ascii=False).encode()
    if path.endswith(".csv"):
        text = io.StringIO()
        writer = csv.DictWriter(text, fieldnames=list(content[0]))
        writer.writeheader()
        writer.writerows(content)
        return text.getvalue().encode()
    raise ValueError(f"{path}: rows cannot be written in this format")


def _folder(config: str) -> str:
    return "data" if config == "default" else config


def _readme(configs: dict[str, dict[str, Rows]], default_config: str | None) -> str:
    entries = []
    for config, splits in configs.items():
        files = [{"split": split, "path": f"{_folder(config)}/{split}-*"} for split in splits]
        entry = {"config_name": config, "data_files": files}
        entries.append(entry | ({"default": True} if config == default_config else {}))
    return f"---\n{yaml.safe_dump({'configs': entries}, sort_keys=False)}---\n"


def _info(name: str, repo: Repo, sha: str) -> dict:
    siblings = [{"rfilename": path} for path in repo.commits[sha]]
    about = {"id": name, "author": name.split("/")[0], "sha": sha, "private": repo.private, "tags": [], "downloads": 0}
    return about | {"gated": "manual" if repo.gated else False, "disabled": False, "siblings": siblings}


def _listing(tree: dict[str, bytes], folder: str, recursive: bool, sha: str) -> list[dict]:
    prefix = f"{folder}/" if folder else ""
    entries = {}
    for path, data in tree.items():
        if not path.startswith(prefix):
            continue
        parts = path.removeprefix(prefix).split("/")
        for depth in range(1, len(parts)):
            entries.setdefault(prefix + "/".join(parts[:depth]), _directory(prefix + "/".join(parts[:depth])))
        entries[path] = _file(path, data)
    if folder and not entries:
        raise HubError(404, f"{folder} does not exist on this revision", "EntryNotFound", {"X-Repo-Commit": sha})
    return [entry for path, entry in entries.items() if recursive or "/" not in path.removeprefix(prefix)]


def _directory(path: str) -> dict:
    return {"type": "directory", "oid": _oid(path.encode()), "size": 0, "path": path}


def _file(path: str, data: bytes) -> dict:
    entry = {"type": "file", "oid": _oid(data), "size": len(data), "path": path}
    lfs = {"oid": hashlib.sha256(data).hexdigest(), "size": len(data), "pointerSize": 134}
    return entry | ({"lfs": lfs} if _is_lfs(path) else {})


def _is_lfs(path: str) -> bool:
    return path.endswith((".parquet", ".gz", ".safetensors"))


def _oid(data: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()
