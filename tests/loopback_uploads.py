"""The loopback Hub with the API for uploads: models and data sets, small files in commits, large ones by Git LFS."""

import base64
import hashlib
import json
import re
from urllib.parse import unquote, urlsplit

import pytest
from huggingface_hub import constants
from transformers.utils.hub import hf_api

from .loopback_hub import HubError, LoopbackHub, Repo, _Handler, _oid

_KIND = r"(?P<kind>models|datasets)"
_NAME = r"(?P<repo>[^/]+/[^/]+)"
_ROUTES = (
    ("whoami", "GET", re.compile(r"/api/whoami-v2")),
    ("create", "POST", re.compile(r"/api/repos/create")),
    ("validate", "POST", re.compile(r"/api/validate-yaml")),
    ("preupload", "POST", re.compile(rf"/api/{_KIND}/{_NAME}/preupload/main")),
    ("batch", "POST", re.compile(rf"/(?P<kind>datasets/)?{_NAME}\.git/info/lfs/objects/batch")),
    ("put", "PUT", re.compile(r"/lfs/(?P<oid>[0-9a-f]{64})")),
    ("commit", "POST", re.compile(rf"/api/{_KIND}/{_NAME}/commit/main")),
)
_LARGE = (".safetensors", ".gguf", ".jsonl", ".parquet", ".png")


class UploadHub(LoopbackHub):
    """Takes uploads by `token`. A model is kept under the name "models/owner/name", a data set under its own."""

    def __init__(self):
        super().__init__()
        self.large: dict[str, bytes] = {}
        """Files of Git LFS by their SHA-256; they stay after a broken upload."""

    def _handler_class(self) -> type[_Handler]:
        return _UploadHandler

    def files(self, name: str) -> dict[str, bytes]:
        """The files of a repository's last commit."""
        repo = self.repos[name]
        return repo.commits[repo.refs["main"]]

    def use(self, patch: pytest.MonkeyPatch, token: str | None = None) -> None:
        """Make this the Hub of this process."""
        patch.setattr(constants, "ENDPOINT", self.url)
        patch.setattr(hf_api(), "endpoint", self.url)  # which transformers made for the whole process
        patch.setattr(constants, "HF_HUB_OFFLINE", False)
        patch.setattr(constants, "HF_HUB_DISABLE_XET", True)
        patch.setenv("HF_TOKEN", self.token if token is None else token)
        patch.setenv("NO_PROXY", "127.0.0.1")


class _UploadHandler(_Handler):
    hub: UploadHub

    def _route(self, body: bytes):
        path = urlsplit(self.path).path
        for name, method, pattern in _ROUTES:
            if self.command == method and (found := pattern.fullmatch(path)):
                if name != "put":  # the address of a file is its permission, as with the real one
                    self._check_token()
                parts = {key: unquote(value) for key, value in found.groupdict().items() if value}
                return getattr(self, f"_{name}")(body, **parts)
        return super()._route(body)

    def _check_token(self):
        if self.headers.get("Authorization") != f"Bearer {self.hub.token}":
            raise HubError(401, "Invalid username or password.")

    def _repo(self, kind: str, repo: str) -> Repo:
        found = self.hub.repos.get(repo if kind.startswith("datasets") else f"models/{repo}")
        if found is None:
            raise HubError(404, "Repository not found", "RepoNotFound")
        return found

    def _whoami(self, _):
        self._send_json({"type": "user", "name": "me", "orgs": []})

    def _validate(self, body: bytes):
        assert json.loads(body)["content"].startswith("---\n")
        self._send_json({"errors": [], "warnings": []})

    def _create(self, body: bytes):
        asked = {"type": "model", "organization": "me"} | json.loads(body)
        name = f"{asked['organization']}/{asked['name']}"
        url = f"{self.hub.url}/{'datasets/' if asked['type'] == 'dataset' else ''}{name}"
        key = name if asked["type"] == "dataset" else f"models/{name}"
        if asked["organization"] != "me":
            raise HubError(403, "You don't have the rights to create a model under this namespace")
        if key in self.hub.repos:
            content = json.dumps({"url": url, "error": "You already created this repo"}).encode()
            return self._send(409, content, {"Content-Type": "application/json"})
        self.hub.add(key, {}, private=asked.get("visibility") == "private")
        self._send_json({"url": url, "name": name})

    def _preupload(self, body: bytes, kind: str, repo: str):
        tree = self._tree(self._repo(kind, repo))
        files = []
        for file in json.loads(body)["files"]:
            mode = "lfs" if file["path"].endswith(_LARGE) else "regular"
            entry = {"path": file["path"], "uploadMode": mode, "shouldIgnore": False}
            if (known := tree.get(file["path"])) is not None:
                entry["oid"] = hashlib.sha256(known).hexdigest() if mode == "lfs" else _oid(known)
            files.append(entry)
        self._send_json({"files": files})

    def _batch(self, body: bytes, repo: str, kind: str = "models"):
        self._repo(kind, repo)
        objects = []
        for wanted in json.loads(body)["objects"]:
            upload = {"upload": {"href": f"{self.hub.url}/lfs/{wanted['oid']}"}}
            objects.append(wanted | ({} if wanted["oid"] in self.hub.large else {"actions": upload}))
        self._send_json({"transfer": "basic", "objects": objects})

    def _put(self, body: bytes, oid: str):
        assert hashlib.sha256(body).hexdigest() == oid
        self.hub.large[oid] = body
        self._send_json({})

    def _commit(self, body: bytes, kind: str, repo: str):
        entry = self._repo(kind, repo)
        tree = dict(self._tree(entry))
        for line in body.splitlines():
            change = json.loads(line)
            value = change["value"]
            if change["key"] == "file":
                tree[value["path"]] = base64.b64decode(value["content"])
            elif change["key"] == "lfsFile":
                tree[value["path"]] = self.hub.large[value["oid"]]
        name = repo if kind == "datasets" else f"models/{repo}"
        sha = self.hub.add(name, tree, private=entry.private)
        prefix = "datasets/" if kind == "datasets" else ""
        url = f"{self.hub.url}/{prefix}{repo}/commit/{sha}"
        self._send_json({"success": True, "commitOid": sha, "commitUrl": url})

    @staticmethod
    def _tree(repo: Repo) -> dict[str, bytes]:
        return repo.commits[repo.refs["main"]]
