"""A reward function with a name, a range and no way to fail unnoticed."""

import inspect
import math
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, Literal

from ..errors import InputError, described
from ..evaluation.answers import without_reasoning

_GIVEN = (
    *("prompts", "completions", "completion_ids", "trainer_state", "log_extra", "log_metric", "environments"),
    "rendered_prompts",
)
_SHOWN = 80
_OPENED = re.compile(r"<think>\s*(?:</think>\s*)?\Z")


class Reward:
    """A reward function as TRL calls it, whose answers are checked.

    Args:
        function: `fn(prompts=..., completions=..., completion_ids=..., **columns)`, a number for each completion, or
            None where it does not apply. Among the columns is `rendered_prompts`, the prompts as the model reads them.
            Its attribute `can_score(row) -> bool`, if it has one, tells of a row whether it applies.
        name: for logs and messages.
        low, high: the range of its values; by default the function's attributes of these names, if it has them. A value
            outside is an error.

    Attributes:
        on_error: what happens where a call fails. "raise" it; "note" it in `noted`, and give None to every completion;
            or "none": call the function for each completion by itself, and give None to those that fail alone, with a
            note for each.
        noted: what was noted since whoever reads it has emptied it.

    Calling it raises, with `on_error` "raise":
        InputError: the function failed (the row is named), or returned something else than one finite number or
            None per completion.
    """

    def __init__(self, function: Callable[..., list], name: str, low: float | None = None, high: float | None = None):
        self.function = function
        self.low = getattr(function, "low", -math.inf) if low is None else low
        self.high = getattr(function, "high", math.inf) if high is None else high
        self.can_score = getattr(getattr(function, "func", function), "can_score", None)  # of a partial its function's
        self.__name__ = name
        self.on_error: Literal["raise", "note", "none"] = "raise"
        self.noted: list[InputError] = []

    def columns(self) -> list[str]:
        """Columns of the data set that the function cannot do without."""
        return list(_required(self.function))

    def unscored(self, rows: Iterable[dict]) -> list[dict]:
        """The rows whose completions will get no reward, as far as that can be told."""
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
            to_be_tried = self.on_error == "none" and len(prompts) > 1  # each by itself, in a moment
            row = -1 if to_be_tried else self._failing_row(prompts, completions, columns)
            raise InputError(
                f"reward {self.__name__} raised {described(error)}"
                + (
                    f"; for the completion {_short(completions[row])} of {_short(_asked(prompts[row]))}"
                    if row >= 0
                    else ""
                )
            ) from error

    def _failing_row(self, prompts: list, completions: list, columns: dict[str, Any]) -> int:
        """The first row on which the function fails by itself; -1 where none does."""
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
        except (TypeError, ValueError, OverflowError):  # the last of a whole number that no float can hold
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
    """What the model said: of a conversation the last message of the assistant."""
    if isinstance(completion, str):
        return completion
    said = [message.get("content") or "" for message in completion if message["role"] == "assistant"]
    return said[-1] if said else ""


def answer_of(completion: str | list[dict]) -> str:
    """What the model said after its reasoning."""
    return without_reasoning(text_of(completion))


def turns_of(completions: list, prompts: list | None = None) -> list[str]:
    """What the model said, each after the think block that its prompt begins: `<think>`, or an empty one.

    Args:
        prompts: as the model reads them. Of messages it is not known how their template ends, so nothing is added.
    """
    ends = [_OPENED.search(prompt) if isinstance(prompt, str) else None for prompt in prompts or ()]
    ends = ends or [None] * len(completions)
    return [(end[0] if end else "") + text_of(given) for end, given in zip(ends, completions, strict=True)]


def declared_range(functions: Sequence[Any], weights: Sequence[float]) -> tuple[float, float]:
    """Lowest and highest weighted sum of rewards, by the functions' `low` and `high`; infinite where those are not."""
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
        if is_column and parameter.name not in _GIVEN:
            yield parameter.name


def _asked(prompt: str | list[dict]) -> str:
    return prompt if isinstance(prompt, str) else prompt[-1].get("content") or ""


def _short(value: Any) -> str:
    text = text_of(value) if isinstance(value, list) and value and isinstance(value[0], dict) else value
    try:
        text = repr(text)
    except Exception:  # a number of more than 4,300 digits, or an object of the user's that cannot show itself
        text = f"<{type(text).__name__}>"
    return text if len(text) <= _SHOWN else f"{text[: _SHOWN - 3]}..."
