"""A reward function with a name, a range and checked results."""

import inspect
import math
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, Literal

from ..errors import InputError, describe
from ..evaluation.answers import without_reasoning

_NOT_COLUMNS = (
    *("prompts", "completions", "completion_ids", "trainer_state", "log_extra", "log_metric", "environments"),
    "rendered_prompts",
)
_MAX_SHOWN = 80
_OPEN_THINK = re.compile(r"<think>\s*(?:</think>\s*)?\Z")


class Reward:
    """A reward function as TRL calls it, with checked results.

    Args:
        function: `fn(prompts=..., completions=..., completion_ids=..., **columns)` returns a number per completion, or
            None if it does not apply. The columns include `rendered_prompts`, the prompts as the model reads them. An
            optional attribute `can_score(row) -> bool` says whether the function applies to a row.
        name: name for logs and messages.
        low, high: range of its values; by default the function's attributes of these names, if it has them. A value
            outside the range is an error.

    Attributes:
        on_error: what to do if a call fails. "raise" raises the error. "note" appends it to `noted` and returns None
            for all completions. "none" calls the function for each completion separately, appends every error to
            `noted` and returns None for those completions.
        noted: errors so far; the reader empties the list.

    Calling it raises, with `on_error` "raise":
        InputError: the function failed (the message names the row), or did not return one finite number or None per
            completion.
    """

    def __init__(self, function: Callable[..., list], name: str, low: float | None = None, high: float | None = None):
        self.function = function
        self.low = getattr(function, "low", -math.inf) if low is None else low
        self.high = getattr(function, "high", math.inf) if high is None else high
        self.can_score = getattr(getattr(function, "func", function), "can_score", None)  # a partial hides attributes
        self.__name__ = name
        self.on_error: Literal["raise", "note", "none"] = "raise"
        self.noted: list[InputError] = []

    def columns(self) -> list[str]:
        """Columns of the data set that the function requires."""
        return list(_required(self.function))

    def unscored(self, rows: Iterable[dict]) -> list[dict]:
        """The rows whose completions will get no reward, as far as that is known beforehand."""
        return [row for row in rows if not self.can_score(row)] if self.can_score else []

    def __call__(self, prompts: list, completions: list, **columns: Any) -> list[float | None]:
        try:
            return self._scores(prompts, completions, columns)
        except InputError as error:
            if self.on_error == "raise":
                raise
            if self.on_error == "note":
                self.noted.append(error)
                return [None] * len(prompts)
            return self._one_by_one(prompts, completions, columns)

    def _one_by_one(self, prompts: list, completions: list, columns: dict[str, Any]) -> list[float | None]:
        scores: list[float | None] = []
        for row in range(len(prompts)):
            try:
                scores += self._scores(*_row(row, prompts, completions, columns))
            except InputError as error:
                self.noted.append(error)
                scores.append(None)
        return scores

    def _scores(self, prompts: list, completions: list, columns: dict[str, Any]) -> list[float | None]:
        values = self._values(prompts, completions, columns)
        if isinstance(values, str) or not hasattr(values, "__len__"):
            raise InputError(
                f"reward {self.__name__} returned {_short(values)}, not a list with a number for each of the "
                f"{len(prompts)} completions"
            )
        if len(values) != len(prompts):
            raise InputError(f"reward {self.__name__} returned {len(values)} values for {len(prompts)} completions")
        return [self._checked(value, prompts[row], completions[row]) for row, value in enumerate(values)]

    def _values(self, prompts: list, completions: list, columns: dict[str, Any]) -> Any:
        try:
            return self.function(prompts=prompts, completions=completions, **columns)
        except (Exception, SystemExit) as error:
            will_retry = self.on_error == "none" and len(prompts) > 1  # `_one_by_one` finds the failing rows
            row = -1 if will_retry else self._failing_row(prompts, completions, columns)
            raise InputError(
                f"reward {self.__name__} raised {describe(error)}"
                + (
                    f"; for the completion {_short(completions[row])} of {_short(_asked(prompts[row]))}"
                    if row >= 0
                    else ""
                )
            ) from error

    def _failing_row(self, prompts: list, completions: list, columns: dict[str, Any]) -> int:
        """The first row for which the function fails when called on it alone; -1 if there is none."""
        if len(prompts) == 1:
            return 0
        for row in range(len(prompts)):
            prompt, completion, others = _row(row, prompts, completions, columns)
            try:
                self.function(prompts=prompt, completions=completion, **others)
            except (Exception, SystemExit):
                return row
        return -1

    def _checked(self, value: Any, prompt: Any, completion: Any) -> float | None:
        if value is None:
            return None
        try:
            number = float(value)
        except (TypeError, ValueError, OverflowError):  # OverflowError: an int too large for a float
            number = math.nan
        if not math.isfinite(number):
            raise InputError(
                f"reward {self.__name__} returned {_short(value)}, not a finite number or None, for the completion "
                f"{_short(completion)} of {_short(_asked(prompt))}"
            )
        if not self.low <= number <= self.high:
            raise InputError(
                f"reward {self.__name__} returned {number:g}, outside its range [{self.low:g}, {self.high:g}], for the "
                f"completion {_short(completion)}"
            )
        return number


def text_of(completion: str | list[dict]) -> str:
    """The text of a completion; of a conversation, the assistant's last message."""
    if isinstance(completion, str):
        return completion
    said = [message.get("content") or "" for message in completion if message["role"] == "assistant"]
    return said[-1] if said else ""


def answer_of(completion: str | list[dict]) -> str:
    """The text of a completion after the reasoning."""
    return without_reasoning(text_of(completion))


def turns_of(completions: list, prompts: list | None = None) -> list[str]:
    """The texts of completions, each after the think block that its prompt ends with: `<think>`, or an empty block.

    Args:
        prompts: prompts as the model reads them. Nothing is added for messages, because their rendering is unknown.
    """
    ends = [_OPEN_THINK.search(prompt) if isinstance(prompt, str) else None for prompt in prompts or ()]
    ends = ends or [None] * len(completions)
    return [(end[0] if end else "") + text_of(given) for end, given in zip(ends, completions, strict=True)]


def declared_range(functions: Sequence[Any], weights: Sequence[float]) -> tuple[float, float]:
    """Lowest and highest weighted sum of rewards, from the functions' `low` and `high`; infinite if one lacks them."""
    low = high = 0.0
    for function, weight in zip(functions, weights, strict=True):
        if weight:
            ends = sorted((weight * getattr(function, "low", -math.inf), weight * getattr(function, "high", math.inf)))
            low, high = low + ends[0], high + ends[1]
    return low, high


def _row(row: int, prompts: list, completions: list, columns: dict[str, Any]) -> tuple[list, list, dict[str, Any]]:
    """The arguments of a reward for one completion."""
    others = {
        name: value[row : row + 1] if isinstance(value, list) and len(value) == len(prompts) else value
        for name, value in columns.items()
    }
    return prompts[row : row + 1], completions[row : row + 1], others


def _required(function: Callable) -> Iterator[str]:
    for parameter in inspect.signature(function).parameters.values():
        is_column = parameter.kind is parameter.POSITIONAL_OR_KEYWORD and parameter.default is parameter.empty
        if is_column and parameter.name not in _NOT_COLUMNS:
            yield parameter.name


def _asked(prompt: str | list[dict]) -> str:
    return prompt if isinstance(prompt, str) else prompt[-1].get("content") or ""


def _short(value: Any) -> str:
    text = text_of(value) if isinstance(value, list) and value and isinstance(value[0], dict) else value
    try:
        text = repr(text)
    except Exception:  # an int of more than 4,300 digits, or a broken __repr__
        text = f"<{type(text).__name__}>"
    return text if len(text) <= _MAX_SHOWN else f"{text[: _MAX_SHOWN - 3]}..."
