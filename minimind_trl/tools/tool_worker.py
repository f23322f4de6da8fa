"""The process in which tools of the user run; nothing but the standard library, since it is started as a file.

    python tool_worker.py SOCKET

It reads its settings from the inherited socket, imports the modules, and then only forks: a child for each connection
that it is sent, in which functions are called or an environment lives. It imports neither torch nor this package, so
that forking is safe and takes milliseconds. A child that hangs, crashes or takes too much memory is replaced by a new
fork, without a second import.

Messages are JSON: {"imports": {name: "module:attribute"}, ...} to the server; {"call": NAME, "arguments": {...}}, or
for environments also {"create": NAME}, {"method": ...} and {"get": ...}, to a child. It answers {"result": TEXT},
{"value": JSON} or {"error": TEXT}.
"""

import array
import asyncio
import importlib
import inspect
import json
import os
import resource
import signal
import socket
import sys
from contextlib import suppress
from multiprocessing.connection import Connection

_MAX_MESSAGE = 2**20  # bytes of an environment's observation or attribute
_GRACE = 2  # seconds after which a call that nobody waits for any longer ends its process


def as_text(value: object, limit: int) -> str:
    """A tool's result as a model reads it: a text as it is, anything else as JSON, at most `limit` characters.

    Raises:
        ValueError: it has no form as text.
    """
    try:
        text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
    except (TypeError, ValueError, RecursionError, OverflowError):  # keys that are no texts, circles, depth
        try:
            text = str(value)
        except Exception as error:
            raise ValueError(f"the result has no form as text ({type(error).__name__})") from None
    except Exception as error:  # of the value's own __str__
        raise ValueError(f"the result has no form as text ({type(error).__name__})") from None
    return str.__str__(text)[:limit].encode("utf-8", "replace").decode("utf-8")


def describe(error: BaseException) -> str:
    """An error's type and message on one line, at most 200 characters."""
    with suppress(Exception):
        return " ".join(f"{type(error).__name__}: {error}".split())[:200].removesuffix(":")
    return type(error).__name__


def main() -> None:
    server = socket.socket(fileno=int(sys.argv[1]))
    settings = json.loads(_received(server))
    sys.path[:] = settings["path"]
    os.dup2(2, 1)  # what tools print is not our standard output
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the trainer, which closes the sockets
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # children are reaped by the system
    try:
        known = {name: _imported(name) for name in settings["imports"]}
    except BaseException as error:
        server.sendall(json.dumps({"error": describe(error)}).encode())
        return
    server.sendall(b"{}")
    while True:
        message, sent, *_ = server.recvmsg(1, socket.CMSG_SPACE(array.array("i").itemsize))
        if not message:
            return
        descriptor = array.array("i", sent[0][2])[0]
        if os.fork() == 0:
            server.close()
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            _serve(Connection(descriptor), known, settings)
            os._exit(0)
        os.close(descriptor)


def _imported(name: str) -> object:
    module, _, attribute = name.partition(":")
    return getattr(importlib.import_module(module), attribute)


def _received(server: socket.socket) -> bytes:
    """A message that ends with a line break."""
    received = b""
    while not received.endswith(b"\n"):
        received += (part := server.recv(65536))
        if not part:
            sys.exit()
    return received


def _serve(connection: Connection, known: dict, settings: dict) -> None:
    """Answer one message after the other, until the other side closes."""
    _limit_memory(settings["memory"])
    environment = None
    connection.send_bytes(json.dumps({"pid": os.getpid()}).encode())
    while True:
        try:
            message = json.loads(connection.recv_bytes())
        except (EOFError, OSError):
            return
        signal.setitimer(signal.ITIMER_REAL, settings["timeout"] + _GRACE)  # also if the trainer is gone
        try:
            if "create" in message:
                environment = known[message["create"]]()
                answer = {}
            elif "get" in message:
                answer = {"value": getattr(environment, message["get"])}
            else:
                target = getattr(environment, message["method"]) if "method" in message else known[message["call"]]
                result = target(**message["arguments"])
                result = asyncio.run(result) if inspect.isawaitable(result) else result
                answer = {"value": result} if message.get("raw") else {"result": as_text(result, settings["length"])}
            encoded = json.dumps(answer).encode()
            if len(encoded) > _MAX_MESSAGE:
                raise ValueError(f"{len(encoded):,} bytes, more than {_MAX_MESSAGE:,}")
        except BaseException as error:
            encoded = json.dumps({"error": describe(error)}).encode()
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        try:
            connection.send_bytes(encoded)
        except OSError:
            return


def _limit_memory(megabytes: int) -> None:
    """Allow so much on top of what the process takes now; systems without /proc have no such limit."""
    with suppress(OSError):
        with open("/proc/self/statm", encoding="ascii") as file:
            taken = int(file.read().split()[0]) * resource.getpagesize()
        limit = taken + megabytes * 2**20
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))


if __name__ == "__main__":
    main()
