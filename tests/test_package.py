"""The package as PyPI would have it: built, and used outside the repository."""

import subprocess
import sys
import tarfile
import venv
import zipfile
from collections.abc import Callable
from email import message_from_bytes
from pathlib import Path

import pytest

from minimind_trl import __version__
from tests.conftest import REPOSITORY

QUICK = ("--max_steps", "2", "--warmup_steps", "1", "--eval_batches", "2")
TEXTS = ("README.md", "LICENSE", "CHANGELOG.md")
SHIPPED = ("recipes", "data_configs", "accelerate_configs")
IN_SOURCES = ("minimind_trl", *SHIPPED, *TEXTS, "MANIFEST.in", "pyproject.toml", "setup.py")


def checked(command: list, folder: Path) -> None:
    done = subprocess.run([*map(str, command)], cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-5000:]


@pytest.fixture(scope="module")
def built(once) -> Path:
    """A folder with the source distribution and, built from that, the wheel."""

    def build(folder: Path) -> None:
        sources = folder / "sources"  # a copy, because setuptools writes beside what it builds
        sources.mkdir(parents=True)
        checked(["cp", "-r", *(REPOSITORY / name for name in IN_SOURCES), sources], folder)
        checked([sys.executable, "-m", "build", "--no-isolation", "--outdir", folder, sources], folder)

    return once("built", build)


@pytest.fixture(scope="module")
def installed(built, once) -> Callable[..., subprocess.CompletedProcess]:
    """`minimind-trl` of the wheel, in an environment that has what it depends on but not this repository."""

    def install(folder: Path) -> None:
        venv.create(folder, symlinks=True)
        [site] = folder.glob("lib/python*/site-packages")
        borrowed = [path for path in sys.path if Path(path).name in ("site-packages", "dist-packages")]
        (site / "borrowed.pth").write_text("\n".join(borrowed))
        [wheel] = built.glob("*.whl")
        pip = [sys.executable, "-m", "pip", "--python", folder / "bin/python", "install", "--quiet", "--no-index"]
        checked([*pip, "--no-deps", "--ignore-installed", wheel], folder)

    folder = once("installed", install)

    def run(where: Path, *words: str) -> subprocess.CompletedProcess:
        command = [folder / "bin/minimind-trl", *words]
        environment = {"PATH": f"{folder}/bin:/usr/bin:/bin", "HOME": str(where), "HF_HUB_OFFLINE": "1"}
        environment |= {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
        return subprocess.run(command, cwd=where, env=environment, capture_output=True, text=True, timeout=300)

    return run


def kept(folder: str) -> set[str]:
    """The files of a shipped folder, without what Python and tests leave there."""
    paths = (path for path in (REPOSITORY / folder).rglob("*") if path.is_file() and "__pycache__" not in path.parts)
    return {str(path.relative_to(REPOSITORY)) for path in paths if path.suffix != ".pyc"}


@pytest.mark.slow
def test_the_wheel_has_every_shipped_file_and_the_sources_too(built):
    [wheel], [sources] = built.glob("*.whl"), built.glob("*.tar.gz")
    with zipfile.ZipFile(wheel) as file:
        names = {*file.namelist()}
        [metadata] = [message_from_bytes(file.read(name)) for name in names if name.endswith("/METADATA")]
    with tarfile.open(sources) as file:
        in_sources = {name.partition("/")[2] for name in file.getnames()}
    for folder in SHIPPED:
        assert {f"minimind_trl/shipped/{name}" for name in kept(folder)} <= names
        assert kept(folder) <= in_sources
    package = kept("minimind_trl")
    assert package <= names and package <= in_sources and "minimind_trl/py.typed" in package
    assert {*TEXTS} <= in_sources
    assert {name.partition("/")[0] for name in names} == {"minimind_trl", f"minimind_trl-{__version__}.dist-info"}
    assert metadata["Version"] == __version__ and metadata["Description-Content-Type"] == "text/markdown"
    assert {"data", "eval"} <= {*metadata.get_all("Provides-Extra")}


@pytest.mark.slow
def test_the_wheel_trains_outside_the_repository(installed, tmp_path):
    assert installed(tmp_path, "--version").stdout == f"minimind-trl {__version__}\n"
    done = installed(tmp_path, "pretrain", "--config", "tiny", "--accelerate_config", "cpu", *QUICK)
    assert done.returncode == 0, done.stderr
    assert "site-packages/minimind_trl/shipped/data_configs/tiny/pretrain.yaml" in done.stdout
    assert (tmp_path / "runs/tiny/pretrain/model.safetensors").is_file()
    assert installed(tmp_path, "data", "check", "tiny/sft").returncode == 0
    assert installed(tmp_path, "init", "mine").returncode == 0
    done = installed(tmp_path, "sft", "--config", "mine/sft.yaml", "--max_length", "nine")
    assert done.returncode == 2 and "--max_length" in done.stderr


@pytest.mark.slow
def test_several_processes_end_with_the_code_of_the_first_that_fails(installed, tmp_path):
    done = installed(tmp_path, "sft", "--accelerate_config", "cpu/ddp", "--config", "tinny")
    assert done.returncode == 2 and "--config tinny: no such file; did you mean 'tiny'?" in done.stderr
