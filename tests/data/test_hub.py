"""Loading from a Hub on 127.0.0.1, in two processes (online and offline) that share their caches."""

import json
import math
import subprocess
import sys

import pytest

from minimind_trl.errors import MixtureError

from ..conftest import REPOSITORY
from ..loopback_hub import LoopbackHub

# Reads calls from its input, one JSON object a line, and answers each by a line.
_WORKER = """
import json, os, sys
from minimind_trl.data import hub
from minimind_trl.errors import MixtureError

hub.BASE_DELAY = 0.05
for line in sys.stdin:
    function, token, arguments = json.loads(line)
    os.environ.pop("HF_TOKEN", None)
    if token:
        os.environ["HF_TOKEN"] = token
    try:
        with hub.hub_errors(arguments["repo"]):
            found = getattr(hub, function)(**arguments)
            answer = {"value": found if isinstance(found, str) else list(found)}
    except MixtureError as error:
        answer = {"error": str(error)}
    print(json.dumps(answer), flush=True)
"""


class Worker:
    """The functions of `minimind_trl.data.hub`, in a process that took its environment on import."""

    def __init__(self, environment, log):
        command = [sys.executable, "-c", _WORKER]
        self.process = subprocess.Popen(
            command,
            env=environment | {"OMP_NUM_THREADS": "1"},
            cwd=REPOSITORY,
            text=True,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log,
        )

    def load(self, repo, split="train", token=None, **arguments):
        return self._call("load_hub_split", token, {"repo": repo, "split": split, **arguments})

    def revision(self, repo, revision=None):
        return self._call("resolve_revision", None, {"repo": repo, "revision": revision})

    def _call(self, function, token, arguments):
        self.process.stdin.write(json.dumps([function, token, arguments]) + "\n")
        self.process.stdin.flush()
        answer = json.loads(self.process.stdout.readline())
        if "error" in answer:
            raise MixtureError(answer["error"])
        return answer["value"]


@pytest.fixture(scope="module")
def server():
    with LoopbackHub() as hub:
        yield hub


@pytest.fixture
def hub(server):
    yield server
    server.heal()
    server.requests.clear()


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    return tmp_path_factory.mktemp("hub")


def _worker(server, home, offline):
    with (home / f"log-{offline}").open("w") as log:
        worker = Worker(server.environment(home, offline=offline), log)
        yield worker
        worker.process.stdin.close()
        worker.process.stdout.close()
        worker.process.wait()
    assert "Traceback" not in (home / f"log-{offline}").read_text()
    assert server.token not in (home / f"log-{offline}").read_text()


@pytest.fixture(scope="module")
def online(server, home):
    yield from _worker(server, home, offline=False)


@pytest.fixture(scope="module")
def offline(server, home):
    yield from _worker(server, home, offline=True)


def rows(word, count=3):
    return [{"text": f"{word} {number}"} for number in range(count)]


LONG = [{"text": f"row {number} " + "x" * 100} for number in range(5000)]


def error_of(call, *arguments, **named):
    with pytest.raises(MixtureError) as caught:
        call(*arguments, **named)
    assert "\n" not in str(caught.value)
    return str(caught.value)


class TestWhatIsLoaded:
    def test_a_config_and_a_split(self, hub, online):
        hub.add(
            "openai/gsm8k",
            configs={
                name: {split: rows(f"{name} {split}") for split in ("train", "test")} for name in ("main", "hard")
            },
            default_config="main",
        )
        assert online.load("openai/gsm8k") == rows("main train")
        assert online.load("openai/gsm8k", config_name="hard", split="test") == rows("hard test")
        assert online.load("openai/gsm8k", split="train[1:]+test[:1]") == rows("main train")[1:] + rows("main test")[:1]

    def test_a_folder_of_compressed_files(self, hub, online):
        files = {
            f"{part}/{split}.jsonl.gz": rows(part + split) for part in ("good", "bad") for split in ("train", "test")
        }
        hub.add("Anthropic/hh", files)
        assert online.load("Anthropic/hh", data_dir="bad") == rows("badtrain")
        assert online.load("Anthropic/hh", data_dir="good", split="test") == rows("goodtest")
        assert online.load("Anthropic/hh", data_dir="good", data_files={"late": "test*"}, split="late") == rows(
            "goodtest"
        )
        assert online.load("Anthropic/hh", data_dir="good", streaming=True) == rows("goodtrain")

    def test_single_files_and_patterns(self, hub, online):
        hub.add(
            "some/files", {"a.jsonl": rows("a"), "b/c.jsonl": rows("c"), "b/d.jsonl": rows("d"), "e.csv": rows("e")}
        )
        assert online.load("some/files", data_files="a.jsonl") == rows("a")
        assert online.load("some/files", data_files=["b/*.jsonl"]) == rows("c") + rows("d")
        assert online.load("some/files", data_files={"train": "a.jsonl", "test": "b/d.jsonl"}, split="test") == rows(
            "d"
        )
        assert online.load("some/files", data_files="e.csv") == rows("e")

    def test_streaming(self, hub, online):
        hub.add("some/stream", configs={"default": {"train": rows("a"), "test": rows("b")}})
        assert online.load("some/stream", streaming=True, split="test") == rows("b")

    def test_revisions(self, hub, online):
        old = hub.add("some/moving", {"train.jsonl": rows("old")}, tags=("v1",))
        assert online.load("some/moving") == rows("old")
        new = hub.add("some/moving", {"train.jsonl": rows("new")})
        assert [online.revision("some/moving", name) for name in (None, "main", "v1", old)] == [new, new, old, old]
        assert online.load("some/moving") == rows("new")
        assert online.load("some/moving", revision="v1") == online.load("some/moving", revision=old) == rows("old")
        assert online.load("some/moving", revision=old, streaming=True) == rows("old")

    def test_private_and_gated_ones_with_a_token(self, hub, online):
        hub.add("some/private", configs={"default": {"train": rows("a")}}, private=True)
        hub.add("some/gated", {"train.jsonl": rows("b")}, gated=True)
        assert online.load("some/private", token=hub.token) == rows("a")
        assert online.load("some/gated", token=hub.token, streaming=True) == rows("b")

    def test_nothing_is_sent_but_questions(self, hub, online):
        hub.add("some/reading", {"train.jsonl": rows("a")})
        online.load("some/reading")
        assert {request.method for request in hub.requests} == {"GET", "HEAD"}


class TestWhatIsRefused:
    def test_no_access(self, hub, online):
        hub.add("closed/private", {"train.jsonl": rows("a")}, private=True)
        hub.add("closed/gated", {"train.jsonl": rows("a")}, gated=True)
        for repo in ("closed/private", "closed/missing"):
            assert "no such data set" in error_of(online.load, repo)
            assert "private and needs a token: log in with `hf auth login` or set HF_TOKEN" in error_of(
                online.load, repo
            )
            message = error_of(online.load, repo, token=hub.outsider_token)
            assert "no such data set" in message and "private and your token may not read it" in message
        for token in (None, hub.outsider_token):
            assert "closed/gated: a gated data set: ask for access" in error_of(
                online.load, "closed/gated", token=token
            )
        message = error_of(online.load, "closed/private", token="hf_wrongToken")
        assert "refuses the token that was sent (401)" in message and "hf_wrongToken" not in message
        assert "owner/name" in error_of(online.load, "gsm8k")
        assert "cannot be loaded: Repo id must" in error_of(online.load, "closed/what?")

    def test_what_the_data_set_does_not_have(self, hub, online):
        configs = {"main": {"train": rows("a"), "test": rows("b")}, "socratic": {"train": rows("c")}}
        hub.add("some/full", configs=configs)
        assert error_of(online.load, "some/full", config_name="Main").endswith(
            "no config 'Main'; did you mean 'main'?; there are: main, socratic"
        )
        assert "config_name is needed, one of: main, socratic" in error_of(online.load, "some/full")
        for streaming in (False, True):
            message = error_of(online.load, "some/full", config_name="main", split="tests", streaming=streaming)
            assert message == "some/full: no split 'tests'; did you mean 'test'?; there are: test, train"
        message = error_of(online.load, "some/full", data_files="main/trian-00000-of-00001.parquet")
        assert "did you mean 'main/train-00000-of-00001.parquet'?; there are: README.md, main/test-" in message
        assert "no file matches 'socratic/test.json'" in error_of(
            online.load, "some/full", data_dir="socratic", data_files="test.json"
        )
        assert "no file matches 'min/**'" in error_of(online.load, "some/full", data_dir="min")
        assert "some/full: no revision 'v9' on the Hub" in error_of(online.load, "some/full", revision="v9")

    def test_a_data_set_without_data(self, hub, online):
        hub.add("some/words", {"README.md": "Nothing yet."})
        assert "cannot be loaded" in error_of(online.load, "some/words")
        hub.add("some/script", {"script.py": "raise SystemExit"})
        assert "scripts are no longer supported" in error_of(online.load, "some/script")

    def test_a_broken_file(self, hub, online):
        hub.add("some/broken", {"train.jsonl": '{"text": "a"}\n{"text": \n'})
        assert "some/broken: cannot be loaded" in error_of(online.load, "some/broken")


class TestFailingHub:
    @pytest.mark.parametrize(("status", "retry_after"), [(429, 0), (503, None)])
    def test_a_short_failure_is_waited_out(self, hub, online, status, retry_after):
        repo = f"slow/status{status}"
        hub.add(repo, configs={"default": {"train": rows("a")}})
        hub.fail(rf"GET /api/datasets/{repo}$", status, times=2, retry_after=retry_after)
        hub.fail(rf"GET /api/datasets/{repo}/revision", status, times=1, retry_after=retry_after)
        hub.fail(rf"HEAD /datasets/{repo}/resolve/.*README", status, times=1, retry_after=retry_after)
        hub.fail(rf"/datasets/{repo}/resolve/.*parquet", status, times=1, retry_after=retry_after)
        assert online.load(repo) == rows("a")
        assert sum(request.status == status for request in hub.requests) == 5

    def test_a_lasting_failure_is_told(self, hub, online):
        hub.add("slow/dead", {"train.jsonl": rows("a")})
        hub.fail("/slow/dead", 503, times=math.inf)
        assert "answers 503, tried at least 5 times; HF_HUB_OFFLINE=1 uses the cache" in error_of(
            online.load, "slow/dead"
        )
        assert len(hub.requests) == 5

    def test_another_revision_in_the_cache_is_no_answer(self, hub, online):
        hub.add("slow/moved", {"train.jsonl": rows("old")})
        assert online.load("slow/moved") == rows("old")
        hub.add("slow/moved", {"train.jsonl": rows("new")})
        hub.fail(r"/api/datasets/slow/moved/revision", 500, times=2)
        assert online.load("slow/moved") == rows("new")

    @pytest.mark.parametrize("reset", [False, True])
    @pytest.mark.parametrize("path", ["train.jsonl", "train.parquet"])
    @pytest.mark.parametrize("streaming", [False, True])
    def test_a_connection_lost_in_mid_file(self, hub, online, path, reset, streaming):
        repo = f"lost/{path}{reset}{streaming}".replace(".", "-")
        hub.add(repo, {path: LONG})
        hub.drop(rf"/datasets/{repo}/resolve/.*{path}", after=20_000, reset=reset)
        assert online.load(repo, streaming=streaming) == LONG
        assert hub.faults[0].times == 0

    def test_a_connection_lost_in_an_answer_of_the_api(self, hub, online):
        hub.add("lost/api", {"train.jsonl": rows("a")})
        hub.drop("/api/datasets/lost/api", after=10, times=2)
        assert online.load("lost/api") == rows("a")


class TestOffline:
    def test_what_was_loaded_is_there_again(self, hub, online, offline):
        configs = {"main": {"train": rows("a"), "test": rows("b")}, "hard": {"train": rows("c")}}
        sha = hub.add("warm/configs", configs=configs, default_config="main", tags=("v1",))
        hub.add("warm/folders", {f"{part}/train.jsonl": rows(part) for part in ("good", "bad", "third")})
        calls = [
            {"repo": "warm/configs"},
            {"repo": "warm/configs", "config_name": "hard"},
            {"repo": "warm/configs", "config_name": "main", "split": "test", "revision": "v1"},
            {"repo": "warm/configs", "config_name": "main", "revision": sha},
            {"repo": "warm/folders", "data_dir": "good"},
            {"repo": "warm/folders", "data_dir": "bad"},
            {"repo": "warm/folders", "data_files": {"train": ["good/*", "bad/*"]}},
        ]
        loaded = [online.load(**call) for call in calls]
        hub.requests.clear()
        assert [offline.load(**call) for call in calls] == loaded
        assert offline.load("warm/configs", streaming=True) == rows("a")
        assert [offline.revision("warm/configs", name) for name in (None, "v1", sha)] == [sha] * 3
        assert not hub.requests

        assert "this config (or data_dir, data_files) is not cached" in error_of(
            offline.load, "warm/folders", data_dir="third"
        )
        assert "no split 'tests'; did you mean 'test'?" in error_of(offline.load, "warm/configs", split="tests")
        message = error_of(offline.load, "warm/configs", revision="v2")
        assert f"offline, and revision 'v2' is not cached (only {sha} is); load it online once" in message

    def test_revisions_are_told_apart(self, hub, online, offline):
        old = hub.add("warm/moving", {"train.jsonl": rows("old")})
        new = hub.add("warm/moving", {"train.jsonl": rows("new")})
        online.load("warm/moving")
        online.load("warm/moving", revision=old)
        assert offline.load("warm/moving", revision=old) == rows("old")
        assert offline.load("warm/moving") == rows("new")
        assert offline.revision("warm/moving") == new

    def test_what_was_never_loaded(self, offline):
        message = error_of(offline.load, "cold/cold")
        assert "cold/cold: offline, and revision 'main' is not cached (nothing of this data set is)" in message
