"""Find the tools that the command line or a mixture names."""

import functools
import inspect
import json
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from ..errors import InputError, first_line, nearest, raise_all
from ..imports import import_function, refuse_foreign
from . import mock_tools
from .tool_process import ToolChild, ToolFailure, ToolLimits, ToolProcess

TOOLS: dict[str, Callable] = {tool.__name__: tool for tool in (*mock_tools.OWN, *mock_tools.UPSTREAM)}
PRESETS: dict[str, tuple[str, ...]] = {"minimind3": tuple(tool.__name__ for tool in mock_tools.UPSTREAM)}
"""`minimind3`: the six tools of upstream's agent stage by the names that its data use."""

_TOOL = "a function with type hints, and a docstring that describes it and each argument"


def load_tools(
    names: Iterable[str], folder: Path | None = None, limits: ToolLimits | None = None, option: str = "--tools"
) -> dict[str, Callable]:
    """Functions that a model may call, by their names.

    Args:
        names: each one of `TOOLS`, a preset, or `module:function` for your own.
        folder: searched for the modules after `sys.path`.
        limits: with limits, your own functions run in a process of their own; without, in this one.
        option: that gave the names, for messages.

    Raises:
        InputError: one line for each name that is unknown, or whose function cannot be imported, is part of Python, has
            the name of another, or lacks hints or a docstring.
    """
    tools: dict[str, Callable] = {}
    own: dict[str, str] = {}
    problems = []
    for name in dict.fromkeys(part for given in names for part in PRESETS.get(given, (given,))):
        try:
            tool = _load(name, folder)
        except InputError as error:
            problems.append(f"{option} {name}: {error}")
            continue
        if tools.setdefault(tool.__name__, tool) is not tool:
            problems.append(f"{option} {name}: another tool has the name {tool.__name__}")
        elif ":" in name:
            own[tool.__name__] = name
    raise_all(problems)
    if limits is None or not own:
        return tools
    process = ToolProcess(own.values(), limits, folder)
    worker = _Worker(process)
    return tools | {name: _isolated(tools[name], spec, worker) for name, spec in own.items()}


def tool_schemas(tools: Iterable[Callable]) -> list[dict[str, Any]]:
    """The JSON schemas of functions, as chat templates show them to a model."""
    from transformers.utils import get_json_schema

    return [get_json_schema(tool) for tool in tools]


def offered_names(tools: str | list | None) -> list[str]:
    """The names of the tools in a row's column `tools`: schemas, or their JSON."""
    schemas = json.loads(tools) if isinstance(tools, str) and tools else tools
    return [schema.get("function", schema).get("name") for schema in schemas or []]


def _load(name: str, folder: Path | None) -> Callable:
    from transformers.utils import get_json_schema
    from transformers.utils.chat_template_utils import DocstringParsingException, TypeHintParsingException

    if name in TOOLS:
        return TOOLS[name]
    if ":" not in name:
        known = [*TOOLS, *PRESETS, "module:function"]
        raise InputError(f"no such tool{nearest(name, known, listed=True)}")
    if "" not in sys.path:
        sys.path.insert(0, "")  # as with `python -m`; otherwise a script's own folder comes first
    refuse_foreign(name, "tool", _TOOL, folder)
    tool = import_function(name, folder)
    if not inspect.isroutine(tool):
        raise InputError(f"a tool is {_TOOL}, not an instance or a class")
    try:
        get_json_schema(tool)
    except (DocstringParsingException, TypeHintParsingException) as error:
        raise InputError(f"{first_line(error)}; a tool is {_TOOL}") from error
    return tool


class _Worker:
    """A child of a `ToolProcess` that is replaced when it is gone."""

    def __init__(self, process: ToolProcess):
        self._process = process
        self._child: ToolChild | None = None

    def call(self, spec: str, arguments: dict[str, Any]) -> str:
        self._child = self._child or self._process.connect()
        try:
            return self._child.ask(call=spec, arguments=arguments)
        except ToolFailure as failure:
            if failure.kind != "errors":
                self._child = None
            raise


def _isolated(tool: Callable, spec: str, worker: _Worker) -> Callable:
    """The function's name, signature and docstring; a call runs in the worker."""

    @functools.wraps(tool)
    def call(*args, **arguments):
        bound = inspect.signature(tool).bind(*args, **arguments)
        return worker.call(spec, bound.arguments)

    call.__signature__ = inspect.signature(tool)
    return call
