"""Run the user's tools and environments outside of the training process, with limits on time and memory."""

import array
import json
import math
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from ..errors import InputError
from . import tool_worker

_START = 60  # seconds for the imports of the user's modules, and for a fork on a busy machine
_MAX_TEXT = 4 * 2**20  # bytes of a message, which the worker keeps below


class ToolFailure(Exception):
    """A tool call that gave no result; its message is what the model reads.

    Attributes:
        kind: of `KINDS`.
    """

    KINDS = ("errors", "invalid_calls", "timeouts", "crashes")

    def __init__(self, message: str, kind: str = "errors"):
        super().__init__(message)
        self.kind = kind


@dataclass(frozen=True)
class ToolLimits:
    """What a call of the user's tool may take.

    Attributes:
        timeout: seconds.
        memory: megabytes, on top of what the imports take; Linux only.
        result_length: characters of a result that the training process reads.
    """

    timeout: float = 5.0
    memory: int = 512
    result_length: int = 2**16

    def problems(self) -> list[str]:
        """One line for each limit out of range."""
        problems = []
        if not (0 < self.timeout < math.inf):
            problems.append(f"--tool_timeout {self.timeout:g}: seconds, more than 0")
        if self.memory < 1:
            problems.append(f"--tool_memory {self.memory}: megabytes, at least 1")
        return problems


class ToolProcess:
    """A process that has imported the user's modules and forks a child for each connection.

    Args:
        names: `module:attribute` each.
        folder: searched for the modules after `sys.path`.

    Raises:
        InputError: a module cannot be imported there.
    """

    def __init__(self, names: Iterable[str], limits: ToolLimits, folder: Path | None = None):
        self.limits = limits
        ours, theirs = socket.socketpair()
        path = [*sys.path, *([str(folder)] if folder is not None else [])]
        settings = {"imports": list(names), "path": path, "timeout": limits.timeout, "memory": limits.memory}
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, tool_worker.__file__, str(theirs.fileno())],
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                env=os.environ | {"OMP_NUM_THREADS": "1"},
            )
        self._server = ours
        self._server.settimeout(_START)
        self._server.sendall(json.dumps(settings | {"length": limits.result_length + 1}).encode() + b"\n")
        try:
            answer = self._server.recv(65536)
        except TimeoutError:
            self.close()
            raise InputError(f"the modules of {', '.join(names)} take more than {_START} s to import") from None
        if answer != b"{}":
            self.close()
            why = json.loads(answer)["error"] if answer else "the process ended"
            raise InputError(f"the tools' process cannot import {', '.join(names)}: {why}")

    def connect(self) -> "ToolChild":
        """A new child. It ends when its connection is closed or this process ends.

        Raises:
            ToolFailure: it did not start.
        """
        ours, theirs = socket.socketpair()
        try:
            with theirs:
                descriptor = array.array("i", [theirs.fileno()])
                self._server.sendmsg([b"+"], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, descriptor)])
        except OSError as error:
            ours.close()
            raise ToolFailure("the tools' process is gone", "crashes") from error
        return ToolChild(Connection(ours.detach()), self.limits.timeout)

    def close(self) -> None:
        """End the process; its children end with their connections."""
        self._server.close()
        self._process.kill()
        self._process.wait()

    def __del__(self):
        if hasattr(self, "_server"):
            with suppress(OSError):
                self.close()


class ToolChild:
    """A fork of a `ToolProcess`, which answers one message after the other."""

    def __init__(self, connection: Connection, timeout: float):
        self._connection, self._timeout = connection, timeout
        self._pid = self._received(_START)["pid"]

    def ask(self, **message: Any) -> Any:
        """The result of a call.

        Raises:
            ToolFailure: it failed. After a timeout or a crash the child is gone.
        """
        try:
            self._connection.send_bytes(json.dumps(message, default=str).encode())
        except (OSError, ValueError) as error:  # ValueError: no JSON
            raise ToolFailure("the tool's process died" if isinstance(error, OSError) else str(error)) from error
        answer = self._received(self._timeout)
        if "error" in answer:
            raise ToolFailure(answer["error"])
        return answer.get("result", answer.get("value"))

    def close(self) -> None:
        with suppress(OSError):
            self._connection.close()

    def _received(self, timeout: float) -> dict[str, Any]:
        try:
            if self._connection.poll(timeout):
                return json.loads(self._connection.recv_bytes(_MAX_TEXT))
        except (EOFError, OSError, ValueError) as error:
            self.close()
            raise ToolFailure("the tool's process died", "crashes") from error
        with suppress(ProcessLookupError, AttributeError):  # it has no pid before its first message
            os.kill(self._pid, signal.SIGKILL)
        self.close()
        raise ToolFailure(f"no result within {timeout:g} s", "timeouts")
