"""What the tests share: small random models of every kind, and the upstream material where it is at hand."""

import os

os.environ["OMP_NUM_THREADS"] = "1"  # read when torch is imported, here and in every child: more threads run slower
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from filelock import FileLock

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # nothing here may depend on the network
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # as in a script's background, and then in all that it starts
    signal.signal(signal.SIGINT, signal.default_int_handler)
if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN:  # as under nohup
    signal.signal(signal.SIGHUP, signal.SIG_DFL)

from minimind_trl.models import MiniMindConfig, MiniMindForCausalLM
from minimind_trl.tokenization import tiny_tokenizer

REPOSITORY = Path(__file__).resolve().parents[1]

# Both generations, dense and mixture of experts.
KINDS = {
    "dense2": {"family": "minimind2"},
    "dense3": {"family": "minimind3"},
    "moe2": {"family": "minimind2", "num_experts": 4},
    "moe3": {"family": "minimind3", "num_experts": 4},
}


def small_config(kind: str, **overrides) -> MiniMindConfig:
    sizes = {
        "vocab_size": 768,
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        # far enough from zero that outputs of a random model differ from each other
        "initializer_range": 0.1,
    }
    return MiniMindConfig(**{**sizes, **KINDS[kind], **overrides})


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """What takes longest first, and what starts from it last, when no worker has to wait for it any more."""
    order = {"test_demo.py": 0, "test_benchmarks.py": 2}
    items.sort(key=lambda item: order.get(item.path.name, 1))


@pytest.fixture(scope="session")
def once(tmp_path_factory) -> Callable[[str, Callable[[Path], None]], Path]:
    """A folder made once in a run of the tests, by the first of its workers that asks; the others wait for it.

    `once(name, make)`: `make` is given the folder to fill. Tests must not write into it.
    """
    root = tmp_path_factory.getbasetemp()
    root = root.parent if "PYTEST_XDIST_WORKER" in os.environ else root

    def folder(name: str, make: Callable[[Path], None]) -> Path:
        path, done = root / name, root / f"{name}.done"
        with FileLock(root / f"{name}.lock"):
            if not done.exists():
                make(path)
                done.touch()
        return path

    return folder


@pytest.fixture(scope="session")
def demo(once) -> Path:
    """What `make demo` leaves."""

    def run(folder: Path) -> None:
        command = [sys.executable, "-m", "minimind_trl.cli", "demo", "--output_dir", str(folder)]
        result = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True)
        assert result.returncode == 0, result.stderr

    return once("demo", run)


@pytest.fixture(scope="session")
def mounting() -> Callable[[str, Path], list[str]]:
    """What goes before a command to run it with a disk of its own (`size=1m`, `ro`) mounted on a folder."""

    def words(options: str, folder: Path) -> list[str]:
        mount = 'mount -t tmpfs -o "$0" tmpfs "$1" && shift && exec "$@"'
        return ["unshare", "-rm", "sh", "-c", mount, options, str(folder)]

    if shutil.which("unshare") is None or subprocess.run([*words("ro", Path("/mnt")), "true"]).returncode:
        pytest.skip("no disk can be mounted here")
    return words


@pytest.fixture(params=KINDS)
def kind(request) -> str:
    return request.param


@pytest.fixture
def model(kind) -> MiniMindForCausalLM:
    torch.manual_seed(0)
    return MiniMindForCausalLM(small_config(kind)).eval()


@pytest.fixture(scope="session")
def checkpoints(tmp_path_factory) -> dict[str, Path]:
    """One saved checkpoint with tokenizer per kind; tests must not write into them."""
    folder = tmp_path_factory.mktemp("checkpoints")
    for kind in KINDS:
        torch.manual_seed(0)
        MiniMindForCausalLM(small_config(kind)).save_pretrained(folder / kind)
        tiny_tokenizer().save_pretrained(folder / kind)
    return {kind: folder / kind for kind in KINDS}


@pytest.fixture(scope="session")
def shared() -> Path:
    """Upstream's checkpoints, outputs and tokenizers, which lie beside the repository and are not part of it."""
    folder = REPOSITORY.parent / "shared"
    if not (folder / "parity").is_dir():
        pytest.skip("the upstream material (a folder `shared` beside the repository) is not here")
    return folder
