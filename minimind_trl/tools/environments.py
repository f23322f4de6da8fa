"""Environments: objects with a state whose methods a model calls, as TRL's `environment_factory` makes them."""

import functools
import inspect
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from types import MethodType
from typing import Any

from ..errors import InputError, first_line, raise_all
from ..imports import import_function
from .tool_process import ToolChild, ToolFailure, ToolLimits, ToolProcess

_ENVIRONMENT = (
    "a class with a method reset(**columns), and at least one public method with type hints and a docstring that "
    "describes it and each argument"
)
_NO_TOOLS = ("reset", "get_reward")


def load_environments(
    names: Iterable[str],
    folder: Path | None = None,
    limits: ToolLimits | None = None,
) -> dict[str, type]:
    """Classes of environments by their names, the part of `module:Class` after the colon.

    Args:
        names: `module:Class` each.
        folder: searched for the modules after `sys.path`.
        limits: with limits, every instance lives in a process of its own; without, in this one.

    Raises:
        InputError: one line for each class that cannot be imported, has the name of another, or is no environment.
    """
    found: dict[str, type] = {}
    own: dict[str, str] = {}
    problems = []
    for name in names:
        try:
            environment = _load(name, folder)
        except InputError as error:
            problems.append(f"--environment {name}: {error}")
            continue
        label = name.partition(":")[2]
        if found.setdefault(label, environment) is not environment:
            problems.append(f"--environment {name}: another environment has the name {label}")
        own[label] = name
    raise_all(problems)
    if limits is None or not found:
        return found
    process = ToolProcess(own.values(), limits, folder)
    return {label: _isolated(found[label], name, process) for label, name in own.items()}


def environment_tools(environment: type) -> dict[str, Callable]:
    """The methods of an environment that a model may call, as TRL finds them."""
    members = inspect.getmembers(environment, inspect.isfunction)
    return {name: method for name, method in members if name not in _NO_TOOLS and not name.startswith("_")}


def environment_schemas(environment: type) -> list[dict[str, Any]]:
    """The JSON schemas of an environment's tools, as chat templates show them to a model."""
    from transformers.utils import get_json_schema

    bound = (MethodType(method, object()) for method in environment_tools(environment).values())
    return [get_json_schema(method) for method in bound]  # bound, so that `self` is no argument


def _load(name: str, folder: Path | None) -> type:
    from transformers.utils.chat_template_utils import DocstringParsingException, TypeHintParsingException

    if ":" not in name:
        raise InputError(f"give module:Class, {_ENVIRONMENT}")
    if "" not in sys.path:
        sys.path.insert(0, "")
    environment = import_function(name, folder)
    if not inspect.isclass(environment):
        raise InputError(f"an environment is {_ENVIRONMENT}, not a {type(environment).__name__}")
    if environment.__module__.partition(".")[0] in sys.stdlib_module_names:
        raise InputError(f"part of Python, not an environment: {_ENVIRONMENT}")
    methods = environment_tools(environment)
    if not callable(getattr(environment, "reset", None)) or not methods:
        raise InputError(f"it has no {'tool' if hasattr(environment, 'reset') else 'reset'}: it must be {_ENVIRONMENT}")
    try:
        environment_schemas(environment)
    except (DocstringParsingException, TypeHintParsingException) as error:
        raise InputError(f"{first_line(error)}; an environment is {_ENVIRONMENT}") from error
    return environment


def failure_of(environment: Any) -> ToolFailure | None:
    """What ended an isolated environment since its last reset, if anything did."""
    remote = getattr(environment, "__dict__", {}).get("_remote")
    return remote.failure if isinstance(remote, _Remote) else None


def _isolated(environment: type, spec: str, process: ToolProcess) -> type:
    """A class with the environment's methods, each of whose instances has its environment in a child of the process.

    Once its reset, its reward or its process failed, its observation and its reward are None and its tools fail, until
    the next `reset`. Other attributes can be read, if JSON has a form for them.
    """

    def init(self) -> None:
        self._remote = _Remote(spec, process)

    def get(self, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(name)
        return self._remote.attribute(name)

    def reset(self, **columns: Any) -> Any:
        return self._remote.reset(columns)

    def get_reward(self) -> float | None:
        return self._remote.reward()

    methods = {name: _forwarded(method) for name, method in environment_tools(environment).items()}
    body = {"__init__": init, "__getattr__": get, "__doc__": environment.__doc__, "reset": reset, **methods}
    if hasattr(environment, "get_reward"):
        body["get_reward"] = get_reward
    body |= {name: getattr(environment, name) for name in ("low", "high") if hasattr(environment, name)}
    return type(environment.__name__, (), body | {"__module__": environment.__module__})


def _forwarded(method: Callable) -> Callable:
    signature = inspect.signature(method)

    @functools.wraps(method)
    def call(self, *args, **arguments):
        bound = signature.bind(self, *args, **arguments)
        return self._remote.call(method.__name__, dict(list(bound.arguments.items())[1:]))

    call.__signature__ = signature
    return call


class _Remote:
    """An environment in a child of a `ToolProcess`.

    Attributes:
        failure: what ended the environment since its last reset.
    """

    def __init__(self, spec: str, process: ToolProcess):
        self.failure: ToolFailure | None = None
        self._spec, self._process = spec, process
        self._child: ToolChild | None = None

    def reset(self, columns: dict[str, Any]) -> Any:
        self.failure = None
        try:
            if self._child is None:
                self._child = self._process.connect()
                self._child.ask(create=self._spec)
            return self._ask(method="reset", arguments=columns, raw=True)
        except ToolFailure as failure:
            self._end(failure)
            return None

    def reward(self) -> float | None:
        if self.failure is not None:
            return None
        try:
            return self._ask(method="get_reward", arguments={}, raw=True)
        except ToolFailure as failure:
            self._end(failure)
            return None

    def call(self, name: str, arguments: dict[str, Any]) -> str:
        if self.failure is not None:
            raise ToolFailure(f"the environment has ended: {self.failure}", self.failure.kind)
        return self._ask(method=name, arguments=arguments)

    def attribute(self, name: str) -> Any:
        try:
            return self._ask(get=name)
        except ToolFailure as failure:
            raise AttributeError(f"{self._spec}.{name}: {failure}") from failure

    def _ask(self, **message: Any) -> Any:
        if self._child is None:
            raise ToolFailure("call reset first")
        try:
            return self._child.ask(**message)
        except ToolFailure as failure:
            if failure.kind != "errors":
                self._end(failure)
            raise

    def _end(self, failure: ToolFailure) -> None:
        """The environment's state is not to be relied on: the next reset makes a new one."""
        self.failure = failure
        if self._child is not None:
            self._child.close()
        self._child = None
