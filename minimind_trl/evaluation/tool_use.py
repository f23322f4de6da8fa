"""Tool calls of a checkpoint: the right call, the right arguments, and the right answer after the call's result."""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ..errors import InputError
from ..tokenization import decode_tools, escape_control_tokens, with_calls
from ..tokenization.tool_calls import INVALID_CALL
from ..tools import TOOLS, OfferedTools, ToolFailure, offered_names, tool_schemas
from .answers import generate_tokens, render_prompt, share_contained, without_reasoning
from .measures import Measure, share

_MAX_ROUNDS = 5  # of calls and their results before an answer has to come without any
_MAX_RESULT_LENGTH = 1024  # characters
_PROMPTS = Path(__file__).with_name("tool_prompts.json")
_CALL = re.compile(r"<tool_call>.*?(?:</tool_call>|\Z)", re.DOTALL)

Call = tuple[str, Mapping[str, Any]]


@dataclass
class ToolPrompt:
    """A question with the tools that may be called.

    Attributes:
        messages: the prompt; during the conversation, all messages so far.
        tools: JSON schemas.
        gt: strings that a right answer contains; empty if no answer is right or wrong.
        expected: the calls of the first turn; None if they are not known.
        calls: the calls of the first turn.
        unreadable: calls of all turns that are no call, or name no tool that is offered.
        all_calls: the number of calls of all turns.
        answer: the text of the last turn.
    """

    messages: list[dict[str, Any]]
    tools: list[dict[str, Any]]
    gt: list[str]
    expected: list[Call] | None = None
    calls: list[Call] = field(default_factory=list)
    unreadable: int = 0
    all_calls: int = 0
    answer: str = ""

    @property
    def names(self) -> list[str]:
        """Names of the offered tools."""
        return offered_names(self.tools)


def tool_prompts(rows: Sequence[dict[str, Any]] | None = None) -> tuple[list[ToolPrompt], int]:
    """The prompts of rows with `prompt`, `tools` and `gt`; without rows, the 40 that come with the package.

    Args:
        rows: of phase rlaif. A column `calls` holds the calls that are right, as a list of `{"name", "arguments"}` or
            its JSON.

    Returns:
        the prompts, and how many rows were left out: those without tools, with other tools than `TOOLS`, or without
        `gt` and `calls`.

    Raises:
        InputError: no row is left.
    """
    if rows is None:
        rows = [
            row | {"prompt": [{"role": "user", "content": row["prompt"]}], "tools": _schemas(row["tools"])}
            for row in json.loads(_PROMPTS.read_text(encoding="utf-8"))
        ]
    prompts = [prompt for row in rows if (prompt := _prompt_of(row))]
    if not prompts:
        raise InputError("no row has `tools` of these names and a `gt`: " + ", ".join(TOOLS))
    return prompts, len(rows) - len(prompts)


def tool_measures(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[ToolPrompt],
    max_new_tokens: int,
) -> dict[str, Measure]:
    """Answer prompts greedily, run the calls, and grade both. Only the named tools of `minimind_trl.tools` are run.

    Args:
        max_new_tokens: of each turn; up to five turns may call tools.

    Returns:
        - `tools/right_call`: share of prompts whose first turn calls the expected tools, in any order, and no other. No
          call is right where none is expected.
        - `tools/right_arguments`: of the prompts with an expected call, the share whose calls are right, too: equal
          arguments, or the same result. An error is never right.
        - `tools/right_answer`: of the prompts with a `gt`, the share whose last turn contains all of it outside calls.
        - `tools/readable_calls`: of all calls, the share that is JSON with the name of a tool that is offered.

    Raises:
        InputError: the chat template leaves tools out, or a prompt does not fit into the model's context.
    """
    if any(prompt.names[0] not in _rendered(prompt, tokenizer) for prompt in prompts):
        raise InputError("--tools: the chat template shows a model no tools")
    room = model.config.max_position_embeddings - max_new_tokens
    longest = max(len(_token_ids(prompt, tokenizer)) for prompt in prompts)
    if longest > room:
        raise InputError(
            f"--tools: a prompt has {longest} tokens, and {max(room, 0)} are left of the model's context beside "
            f"--max_new_tokens {max_new_tokens}"
        )
    waiting = list(prompts)
    for turn in range(_MAX_ROUNDS + 1):
        texts = [_rendered(prompt, tokenizer) for prompt in waiting]
        answers = generate_tokens(model, tokenizer, texts, max_new_tokens)
        for prompt, text, ids in zip(waiting, texts, answers, strict=True):
            _take_turn(prompt, text, ids, tokenizer, is_first=turn == 0)
        waiting = [
            prompt
            for prompt in waiting
            if prompt.messages[-1]["role"] == "tool" and len(_token_ids(prompt, tokenizer)) <= room
        ]
        if not waiting:
            break
    return {name: share(flags) for name, flags in _graded(prompts).items() if flags}


def guessing_tools(prompts: Sequence[ToolPrompt]) -> dict[str, Measure]:
    """`tools/right_call` of choosing evenly among the tools that are offered and no call."""
    known = [prompt for prompt in prompts if prompt.expected is not None]
    if not known:
        return {}
    right = sum(1 / (len(prompt.tools) + 1) for prompt in known if len(prompt.expected) <= 1)
    return {"tools/right_call": Measure(right / len(known), count=len(known))}


def _prompt_of(row: dict[str, Any]) -> ToolPrompt | None:
    tools, gt, calls = decode_tools(row.get("tools")), row.get("gt"), row.get("calls")
    names = offered_names(tools)
    if not names or any(name not in TOOLS for name in names) or (not gt and calls is None):
        return None
    calls = json.loads(calls) if isinstance(calls, str) else calls
    expected = None if calls is None else [(call["name"], call["arguments"]) for call in calls]
    return ToolPrompt(list(row["prompt"]), tools, [gt] if isinstance(gt, str) else list(gt or []), expected)


def _schemas(names: list[str]) -> list[dict[str, Any]]:
    return tool_schemas(TOOLS[name] for name in names)


def _rendered(prompt: ToolPrompt, tokenizer: PreTrainedTokenizerBase) -> str:
    return render_prompt(tokenizer, prompt.messages, prompt.tools)


def _token_ids(prompt: ToolPrompt, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    return tokenizer(_rendered(prompt, tokenizer), add_special_tokens=False).input_ids


# --- a turn -----------------------------------------------------------------------------------------------------------


def _take_turn(
    prompt: ToolPrompt, rendered: str, ids: list[int], tokenizer: PreTrainedTokenizerBase, is_first: bool
) -> None:
    """Add an answer to the conversation, and the results of its calls."""
    is_finished = bool(ids) and ids[-1] == tokenizer.eos_token_id
    text = tokenizer.decode(ids[:-1] if is_finished else ids)
    _, opens, thought = rendered.rpartition("<think>")
    said = {"role": "assistant", "content": without_reasoning(text).strip()}
    message = with_calls(said, text, bool(opens) and "</think>" not in thought, is_finished)
    calls = [call["function"] for call in message.get("tool_calls", [])]
    if is_first:
        prompt.calls = [(call["name"], call["arguments"]) for call in calls]
    prompt.all_calls += len(calls)
    prompt.unreadable += sum(call["name"] not in prompt.names for call in calls)
    prompt.answer = _CALL.sub("", message["content"])
    prompt.messages.append(message)
    if not calls:
        return
    clean = partial(_without_control_tokens, tokenizer=tokenizer)
    offered = OfferedTools([TOOLS[name] for name in prompt.names], _MAX_RESULT_LENGTH, clean)
    prompt.messages += [
        {"role": "tool", "content": _result(offered, call["name"], call["arguments"])} for call in calls
    ]


def _result(offered: OfferedTools, name: str, arguments: Mapping[str, Any]) -> str:
    try:
        return offered[name](**arguments)
    except ToolFailure as failure:
        return f"error: {failure}"


def _without_control_tokens(text: str, tokenizer: PreTrainedTokenizerBase) -> str:
    return escape_control_tokens({"text": text}, tokenizer)[0]["text"]


# --- grades -----------------------------------------------------------------------------------------------------------


def _graded(prompts: Sequence[ToolPrompt]) -> dict[str, list[bool]]:
    known = [prompt for prompt in prompts if prompt.expected is not None]
    calls = sum(prompt.all_calls for prompt in prompts)
    unreadable = sum(prompt.unreadable for prompt in prompts)
    return {
        "tools/right_call": [_names(prompt.calls) == _names(prompt.expected) for prompt in known],
        "tools/right_arguments": [_are_right(prompt) for prompt in known if prompt.expected],
        "tools/right_answer": [share_contained(prompt.answer, prompt.gt) == 1 for prompt in prompts if prompt.gt],
        "tools/readable_calls": [True] * (calls - unreadable) + [False] * unreadable,
    }


def _names(calls: Sequence[Call]) -> list[str]:
    return sorted(name for name, _ in calls)


def _are_right(prompt: ToolPrompt) -> bool:
    """Whether every expected call was made, and no other."""
    if _names(prompt.calls) != _names(prompt.expected):
        return False
    left = list(prompt.calls)
    for call in prompt.expected:
        same = next((one for one in left if _is_same(one, call)), None)
        if same is None:
            return False
        left.remove(same)
    return True


def _is_same(call: Call, right: Call) -> bool:
    if call[0] != right[0] or call[0] == INVALID_CALL:
        return False
    outcome = _outcome(right)
    return dict(call[1]) == dict(right[1]) or (outcome is not None and _outcome(call) == outcome)


def _outcome(call: Call) -> str | None:
    """A call's result; None for an error."""
    name, arguments = call
    try:
        return OfferedTools([TOOLS[name]], _MAX_RESULT_LENGTH)[name](**arguments)
    except ToolFailure:
        return None
