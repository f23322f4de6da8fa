"""Scripts in processes of their own, forked from a server that has imported the library once.

A new interpreter imports torch, transformers and TRL for seconds; a forked one begins at once. Apart from that a script
runs as `python SCRIPT OPTIONS` does: with its own environment, folder, output, signals and exit code. What is about the
launchers or the interpreter itself starts real ones.
"""

import atexit
import multiprocessing
import multiprocessing.connection
import os
import runpy
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import closing, contextmanager
from multiprocessing.process import BaseProcess
from pathlib import Path
from tempfile import TemporaryDirectory
from unittest.mock import patch

from accelerate.commands import launch
from accelerate.utils.launch import (
    prepare_deepspeed_cmd_env,
    prepare_multi_gpu_env,
    prepare_simple_launcher_cmd_env,
)

REPOSITORY = Path(__file__).resolve().parents[1]
GRACE = 2  # seconds in which the others of a failed process may say why they fail, too
LIMIT = 300  # seconds, also on a busy machine: what takes longer hangs

_CONTEXT = multiprocessing.get_context("forkserver")
_CONTEXT.set_forkserver_preload(
    [
        *("minimind_trl.cli", "minimind_trl.run.rl_run", "minimind_trl.trainers.gkd_trainer"),
        *("minimind_trl.trainers.ppo_trainer", "minimind_trl.trainers.spo_trainer", "tests.recipes.own_rewards"),
    ]
)


def start(
    script: str | Path,
    options: Sequence = (),
    *,
    stdout: Path,
    stderr: Path | None = None,
    environment: dict[str, str] | None = None,
    folder: Path = REPOSITORY,
) -> BaseProcess:
    """Start a script, or a module by its dotted name; what it prints is appended to files (of one, both streams to it).

    `environment` is added to that of the tests.
    """
    for log in {stdout, stderr or stdout}:
        log.touch()
    words = [str(script), *map(str, options)]
    arguments = (words, stdout, stderr or stdout, {**os.environ, **(environment or {})}, folder)
    process = _CONTEXT.Process(target=_run, args=arguments)
    process.start()
    return process


def run(
    script: str | Path,
    options: Sequence = (),
    *,
    processes: int = 1,
    environment: dict[str, str] | None = None,
    folder: Path = REPOSITORY,
    limit: float = LIMIT,
) -> subprocess.CompletedProcess:
    """Run a script to its end, in one process or, as torchrun does, in several that end together.

    Raises:
        TimeoutError: it takes longer than `limit` seconds; the message has what it printed.
    """
    with TemporaryDirectory() as logs:
        files = [(Path(logs) / f"{rank}.out", Path(logs) / f"{rank}.err") for rank in range(processes)]
        ranks = _ranks(processes)
        started = [
            start(script, options, stdout=out, stderr=err, environment=(environment or {}) | rank, folder=folder)
            for (out, err), rank in zip(files, ranks, strict=True)
        ]
        with _ended(started):
            code = _wait(started, limit)
        out, err = ("".join(file.read_text() for file in column) for column in zip(*files, strict=True))
    if code is None:
        raise TimeoutError(f"{script} did not end within {limit} s; it printed\n{out}\n{err}")
    return subprocess.CompletedProcess([str(script), *map(str, options)], code, out, err)


def says(log: Path, words: str, seconds: float = 60) -> bool:
    """Wait until a process has printed some words to its file; False if it doesn't."""
    until = time.monotonic() + seconds
    while words not in log.read_text() and time.monotonic() < until:
        time.sleep(0.02)
    return words in log.read_text()


def accelerate_environment(config: str | Path) -> dict[str, str]:
    """What `accelerate launch --config_file CONFIG` adds to the environment of what it starts, by accelerate's code."""
    found: dict[str, str] = {}
    makers = {
        "simple_launcher": lambda args: prepare_simple_launcher_cmd_env(args)[1],
        "multi_gpu_launcher": prepare_multi_gpu_env,
        "deepspeed_launcher": lambda args: prepare_deepspeed_cmd_env(args)[1],
    }
    stand_ins = {name: lambda args, make=make: found.update(make(args)) for name, make in makers.items()}
    with patch.dict(os.environ), patch.multiple(launch, **stand_ins):
        launch.launch_command(launch.launch_command_parser().parse_args(["--config_file", str(config), "script"]))
    return {name: value for name, value in found.items() if os.environ.get(name) != value}


def _run(words: list[str], stdout: Path, stderr: Path, environment: dict[str, str], folder: Path) -> None:
    for path, descriptor in ((stdout, 1), (stderr, 2)):
        with path.open("ab") as file:
            os.dup2(file.fileno(), descriptor)
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(folder)
    sys.path[:0] = [part for part in environment.get("PYTHONPATH", "").split(os.pathsep) if part]
    sys.argv = words
    try:
        if words[0].endswith(".py"):
            runpy.run_path(words[0], run_name="__main__")
        else:
            sys.modules.pop(words[0], None)  # or runpy would warn that the server has imported it
            runpy.run_module(words[0], run_name="__main__", alter_sys=True)
    finally:
        atexit._run_exitfuncs()  # multiprocessing leaves without them


def _ranks(processes: int) -> list[dict[str, str]]:
    """The environment by which the processes of one launch find each other."""
    if processes == 1:
        return [{}]
    with closing(socket.socket()) as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    shared = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    shared |= {"WORLD_SIZE": str(processes), "LOCAL_WORLD_SIZE": str(processes)}
    return [shared | {"RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(processes)]


def _wait(processes: list[BaseProcess], limit: float) -> int | None:
    """Wait until all have ended, or for a moment longer once one has failed.

    Returns:
        The exit code of the first that failed, 0 if none did; None if that takes too long.
    """
    until, failed = time.monotonic() + limit, 0
    while any(process.is_alive() for process in processes):
        if not failed and (failed := next(filter(None, (process.exitcode for process in processes)), 0)):
            until = min(until, time.monotonic() + GRACE)
        if time.monotonic() > until:
            return failed or None
        multiprocessing.connection.wait([process.sentinel for process in processes if process.is_alive()], timeout=1)
    return failed or next(filter(None, (process.exitcode for process in processes)), 0)


@contextmanager
def _ended(processes: list[BaseProcess]):
    """Whatever happens, no process stays."""
    try:
        yield
    finally:
        for process in processes:
            if process.is_alive():
                process.terminate()
                process.join(30)
            if process.is_alive():
                process.kill()
            process.join()
