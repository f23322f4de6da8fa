"""Tool calls of a model: whatever it asks for and whatever a tool does, the answer is a short text."""

import inspect
import json
from collections import Counter
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

from ..errors import nearest
from ..tokenization.tool_calls import INVALID_CALL
from .tool_process import ToolFailure
from .tool_worker import as_text, describe

_MAX_ERROR = 200  # characters of an error that a model reads


class OfferedTools(dict[str, Callable]):
    """The tools that one answer may call, by name, and what came of its calls.

    Looking up a name gives a function that returns a text or raises `ToolFailure`, also for an unknown name. Those in
    `asynchronous` return an awaitable.

    Attributes:
        counts: `calls`, `repeated_calls` (with a name and arguments that came before), the kinds of `ToolFailure`, and
            `cut_results`.

    Args:
        tools: functions, or bound methods.
        result_length: characters of a result; what is longer is cut.
        clean: applied to each result and error, such as the escaping of control tokens.
    """

    def __init__(self, tools: Iterable[Callable], result_length: int, clean: Callable[[str], str] = lambda text: text):
        super().__init__({tool.__name__: tool for tool in tools})
        self.counts: Counter[str] = Counter()
        self.asynchronous = {
            name: partial(self._awaited, name) for name, tool in self.items() if inspect.iscoroutinefunction(tool)
        }
        self._length, self._clean = result_length, clean
        self._asked: set[str] = set()

    def __contains__(self, name: object) -> bool:
        return name not in self.asynchronous

    def __getitem__(self, name: str) -> Callable[..., str]:
        return partial(self._called, name)

    def _called(self, tool_name: str, /, **arguments: Any) -> str:
        self._count(tool_name, arguments)
        try:
            return self._result(self._checked(tool_name, arguments)(**arguments))
        except (Exception, SystemExit) as error:
            raise self._failure(error) from error

    async def _awaited(self, tool_name: str, /, **arguments: Any) -> str:
        self._count(tool_name, arguments)
        try:
            return self._result(await self._checked(tool_name, arguments)(**arguments))
        except (Exception, SystemExit) as error:
            raise self._failure(error) from error

    def _count(self, name: str, arguments: dict[str, Any]) -> None:
        call = json.dumps([name, arguments], sort_keys=True, default=repr)
        self.counts["calls"] += 1
        self.counts["repeated_calls"] += call in self._asked
        self._asked.add(call)

    def _checked(self, name: str, arguments: dict[str, Any]) -> Callable:
        """The tool, if the call is one that it can take."""
        if name == INVALID_CALL and name not in self.keys():
            raise ToolFailure(str(arguments.get("problem", "not a tool call")), "invalid_calls")
        tool = self.get(name)
        if tool is None:
            raise ToolFailure(f"no tool {name!r:.60}{nearest(name, self, listed=True)}", "invalid_calls")
        try:
            inspect.signature(tool).bind(**arguments)
        except TypeError as error:
            raise ToolFailure(f"{name}: {error}", "invalid_calls") from None
        return tool

    def _result(self, value: Any) -> str:
        text = as_text(value, self._length + 1)
        if len(text) > self._length:
            self.counts["cut_results"] += 1
            text = f"{text[: max(self._length - 3, 0)]}..."
        return self._clean(text)

    def _failure(self, error: BaseException) -> ToolFailure:
        kind = error.kind if isinstance(error, ToolFailure) else "errors"
        self.counts[kind] += 1
        text = str(error) if isinstance(error, ToolFailure | ValueError) else describe(error)
        return ToolFailure(self._clean(as_text(text, _MAX_ERROR)), kind)
