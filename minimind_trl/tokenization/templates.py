"""Chat templates of both MiniMind generations, and their training twins.

`assistant_only_loss` needs a template that marks what the assistant wrote (`{% generation %}`), which upstream's
templates do not. A *training twin* renders the same bytes and marks, in every assistant turn, everything after
`<|im_start|>assistant\\n` up to and including `<|im_end|>`: without its end-of-turn token a model never learns to
stop. The twin of each generation is a `.jinja` file; the inference template is that file without the marker lines.

The twin of a tokenizer is found by what its template renders for fixed probe conversations, not by its text: a copy
with other whitespace or comments is recognised, and a copy that renders differently is refused.
"""

import copy
import json
import re
from functools import cache
from pathlib import Path

from transformers import PreTrainedTokenizerBase

from minimind_trl.errors import InputError

GENERATIONS = ("minimind2", "minimind3")

_MARKER = re.compile(r"\{%-?\s*generation\s*-?%\}")  # as transformers looks for it
_MARKER_LINES = re.compile(r"^ *\{%- (?:end)?generation %\}\n", re.MULTILINE)

# Reasoning, tool calls and content of an answer, for `tokenizer.parse_response`. The format is transformers'.
RESPONSE_TEMPLATE = {
    "defaults": {"role": "assistant"},
    "start_anchor": "<|im_start|>assistant\n",
    "fields": {
        "reasoning_content": {"open": "<think>", "close_pattern": r"</think>\s*", "content": "text"},
        "tool_calls": {
            "open": "<tool_call>",
            "close_pattern": r"</tool_call>\s*",
            "repeats": True,
            "content": "json",
            "transform": {"type": "function", "function": "{content}"},
        },
        "content": {"close_pattern": r"<\|im_end\|>\s*", "content": "text"},
    },
}

_TOOL = {"type": "function", "function": {"name": "get_weather", "description": "天气 <now>"}}
_FLAT_CALL = {"name": "get_weather", "arguments": {"city": "Köln", "days": 2}}
_WRAPPED_CALL = {"type": "function", "function": {"name": "get_time", "arguments": '{"zone":  1}'}}
_USER = {"role": "user", "content": "Why?"}


def _turn(content: str | None = "Because.", **fields: object) -> list[dict]:
    return [_USER, {"role": "assistant", "content": content, **fields}]


def _system(content: str) -> dict:
    return {"role": "system", "content": content}


def _tool(content: str) -> dict:
    return {"role": "tool", "content": content}


_PARTS = [{"type": "text", "text": "part"}]
_CONVERSATIONS = {
    "one question": [_USER],
    "several turns": [*_turn(), {"role": "user", "content": " \n还有 \n"}, *_turn()],
    "system message": [_system("Be brief.\n"), *_turn()],
    "later system message": [*_turn(), _system("Be kind."), *_turn()],
    "a tool call": _turn("", tool_calls=[_FLAT_CALL]),
    "text and tool calls": _turn("Let me see.", tool_calls=[_WRAPPED_CALL, _FLAT_CALL]),
    "tool calls without text": _turn(None, tool_calls=[_FLAT_CALL, _WRAPPED_CALL]),
    "tool answers": [*_turn(), _tool("21"), _tool("22"), *_turn()],
    "tool answers first and last": [_tool("21"), _USER, _tool("")],
    "tool answer written by the user": [{"role": "user", "content": "<tool_response>\n1\n</tool_response>"}],
    "reasoning_content": [*_turn(reasoning_content="\nhm\n"), *_turn(reasoning_content="")],
    "reasoning_content and think block": _turn("\n<think>a</think>b", reasoning_content="c"),
    "think block": _turn("<think>\n\nhm\n\n</think>\n\n\nYes. "),
    "several think blocks": _turn("x<think>a<think>b\n</think>c</think>\nd"),
    "think block never opened": _turn("hm\n</think>"),
    "think block never closed": _turn("<think>hm"),
    "think block and tool call": _turn("<think>\nhm\n</think>\n\n", tool_calls=[_FLAT_CALL]),
    "newlines around the content": _turn("\n x \n"),
    "newlines and tool call": _turn("\n\n", tool_calls=[_FLAT_CALL]),
    "reasoning_content, newline and tool call": _turn("\n", reasoning_content="r", tool_calls=[_FLAT_CALL]),
    "content that is no string": [{"role": r, "content": _PARTS} for r in ("user", "assistant", "tool")],
    "unknown role": [{"role": "critic", "content": "?"}, *_turn()],
}
_PROMPT_ARGUMENTS = ({}, *({f"{name}_thinking": on} for name in ("open", "enable") for on in (True, False)))

# Every branch of the templates: (name that an error shows, messages, arguments of apply_chat_template).
PROBES = (
    *((name, messages, {}) for name, messages in _CONVERSATIONS.items()),
    ("tools", _turn(), {"tools": [_TOOL, {"name": "flat"}]}),
    ("tools and system message", [_system("S"), *_turn()], {"tools": [_TOOL]}),
    *((f"generation prompt {a}", [_USER], {"add_generation_prompt": True, **a}) for a in _PROMPT_ARGUMENTS),
)


class ChatTemplateError(InputError):
    """A tokenizer's chat template has no training twin."""


def decode_tools(tools: str | list | None) -> list | None:
    """A row's tools as `apply_chat_template` takes them; data sets store them as JSON."""
    return (json.loads(tools) if isinstance(tools, str) and tools else tools) or None


@cache
def training_template(generation: str) -> str:
    """Read the training twin of a generation's chat template.

    Args:
        generation: "minimind2" or "minimind3".

    Returns:
        The Jinja template, with `{% generation %}` around what the assistant wrote.

    Raises:
        ValueError: there is no such generation.
    """
    if generation not in GENERATIONS:
        raise ValueError(f"unknown MiniMind generation {generation!r}: choose one of {', '.join(GENERATIONS)}")
    return (Path(__file__).parent / "chat_templates" / f"{generation}.jinja").read_text(encoding="utf-8")


def inference_template(generation: str) -> str:
    """Return a generation's chat template without markers, as engines that know only plain Jinja need it.

    Args:
        generation: "minimind2" or "minimind3".

    Returns:
        The Jinja template; it renders the same bytes as `training_template(generation)`.

    Raises:
        ValueError: there is no such generation.
    """
    return _MARKER_LINES.sub("", training_template(generation))


def prepared_for_trl(tokenizer: PreTrainedTokenizerBase) -> PreTrainedTokenizerBase:
    """Return a copy that TRL's trainers take as it is: they look for markers, and for a way to read tool calls.

    Args:
        tokenizer: it is not changed.

    Returns:
        A copy with the training twin of its MiniMind template, which renders the same bytes, and with
        `RESPONSE_TEMPLATE`. A tokenizer with a template of another kind, or without one, is returned itself.
    """
    twin = _minimind_twin(tokenizer)
    if twin is None:
        return tokenizer
    prepared = copy.deepcopy(tokenizer)
    prepared.chat_template = twin
    prepared.response_template = RESPONSE_TEMPLATE
    return prepared


def prepared_for_engines(tokenizer: PreTrainedTokenizerBase) -> PreTrainedTokenizerBase:
    """Return a copy whose MiniMind template has no markers, for engines that know only plain Jinja.

    A tokenizer with a template of another kind, or without one, is returned itself.
    """
    twin = _minimind_twin(tokenizer)
    if twin is None:
        return tokenizer
    prepared = copy.deepcopy(tokenizer)
    prepared.chat_template = _MARKER_LINES.sub("", twin)
    return prepared


def prints_the_same(tokenizer: PreTrainedTokenizerBase, trained: PreTrainedTokenizerBase) -> bool:
    """Whether `trained`, which `with_training_template` made of a tokenizer, prints every conversation as that does."""
    return trained.chat_template in (tokenizer.chat_template, _minimind_twin(tokenizer))


def _minimind_twin(tokenizer: PreTrainedTokenizerBase) -> str | None:
    if not isinstance(tokenizer.chat_template, str):
        return None
    twins = (training_template(generation) for generation in GENERATIONS if not _differences(tokenizer, generation))
    return next(twins, None)


def with_training_template(tokenizer: PreTrainedTokenizerBase) -> PreTrainedTokenizerBase:
    """Return a copy of a tokenizer whose chat template marks the assistant's turns.

    A template that has markers already, with the end-of-turn token inside, is kept: its author may have
    chosen to train on less, and TRL's own training templates are of this kind. Then come the MiniMind twins,
    chosen by rendering, and last the stock templates for which TRL has a twin (an exported Qwen3, say).

    Args:
        tokenizer: a fast tokenizer with a chat template; it is not changed.

    Returns:
        The copy. It renders what the tokenizer renders, except that TRL's twins of templates which drop
        earlier reasoning keep it.

    Raises:
        ChatTemplateError: the tokenizer is slow, has no chat template, or has one without a twin.
    """
    if not tokenizer.is_fast:
        raise ChatTemplateError(
            f"{_tokenizer_name(tokenizer)} is a slow tokenizer, which cannot tell which tokens the assistant wrote: "
            "load it with AutoTokenizer.from_pretrained, which gives the fast one"
        )
    if not tokenizer.chat_template:
        raise ChatTemplateError(
            f"{_tokenizer_name(tokenizer)} has no chat template: set tokenizer.chat_template, "
            'for a MiniMind model to minimind_trl.tokenization.inference_template("minimind2" or "minimind3")'
        )
    twin = _find_template(tokenizer)
    trained = copy.deepcopy(tokenizer)
    trained.chat_template = twin
    return trained


def _find_template(tokenizer: PreTrainedTokenizerBase) -> str | dict[str, str]:
    marked = _MARKER.search(tokenizer.get_chat_template()) is not None
    is_twin = tokenizer.chat_template in map(training_template, GENERATIONS)
    if marked and (_ends_turns(tokenizer) if is_twin else _stop_token_is_trained(tokenizer)):
        return tokenizer.chat_template

    differences = {generation: _differences(tokenizer, generation) for generation in GENERATIONS}
    for generation, differing in differences.items():
        if not differing:
            return training_template(generation)

    known_to_trl = None if marked else _template_of_trl(tokenizer)
    if known_to_trl and _stop_token_is_trained(tokenizer, known_to_trl):
        return known_to_trl
    if marked or known_to_trl:
        raise ChatTemplateError(
            f"the chat template of {_tokenizer_name(tokenizer)} would train a model that never stops: the end of the "
            "assistant's turn lies outside {% generation %}, or is no token of this tokenizer. Use the "
            "template's own tokenizer, or move {% endgeneration %} behind the end-of-turn token"
        )
    raise ChatTemplateError(_explain(tokenizer, differences))


def _ends_turns(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether the end of a turn in MiniMind's templates is the tokenizer's end-of-sequence token."""
    return tokenizer.eos_token == "<|im_end|>" and tokenizer.eos_token_id is not None


def _stop_token_is_trained(tokenizer: PreTrainedTokenizerBase, template: str | None = None) -> bool:
    # Imported here because TRL brings torch, which the rest of this package does without.
    from trl.chat_template_utils import is_chat_template_stop_token_trained

    return is_chat_template_stop_token_trained(tokenizer, *([template] if template else []))


def _template_of_trl(tokenizer: PreTrainedTokenizerBase) -> str | None:
    from trl.chat_template_utils import get_training_chat_template

    try:
        return get_training_chat_template(tokenizer)
    except Exception:  # a ValueError means "unknown", but a template may refuse TRL's probes in any way
        return None


def _differences(tokenizer: PreTrainedTokenizerBase, generation: str) -> list[tuple[str, str, str]]:
    """Return (probe, the tokenizer's rendering, the twin's) wherever the two are not the same."""
    twin = training_template(generation)
    rendered = ((name, _render(tokenizer, *probe), _render(tokenizer, *probe, twin)) for name, *probe in PROBES)
    return [(name, own, expected) for name, own, expected in rendered if own != expected]


def _render(
    tokenizer: PreTrainedTokenizerBase, messages: list[dict], arguments: dict, template: str | None = None
) -> str:
    try:
        return tokenizer.apply_chat_template(messages, tokenize=False, chat_template=template, **arguments)
    except Exception as error:  # a foreign template may refuse a probe in any way, which is a difference too
        return f"[{type(error).__name__}: {error}]"


def _explain(tokenizer: PreTrainedTokenizerBase, differences: dict[str, list[tuple[str, str, str]]]) -> str:
    nearest = min(differences, key=lambda generation: len(differences[generation]))
    probe, own, expected = differences[nearest][0]
    at = next(
        (i for i, (a, b) in enumerate(zip(own, expected, strict=False)) if a != b),
        min(len(own), len(expected)),
    )
    start = max(0, at - 20)
    return (
        f"the chat template of {_tokenizer_name(tokenizer)} is not one whose assistant turns can be marked: for the "
        f'probe "{probe}" it renders {own[start : at + 40]!r} where {nearest}, the nearest known template '
        f"({len(differences[nearest])} of {len(PROBES)} probes differ), renders "
        f"{expected[start : at + 40]!r}. Use the tokenizer that belongs to the checkpoint, or put "
        "{% generation %} and {% endgeneration %} around the assistant's turns in its template yourself, "
        "with the end-of-turn token inside"
    )


def _tokenizer_name(tokenizer: PreTrainedTokenizerBase) -> str:
    return f"tokenizer {tokenizer.name_or_path!r}" if tokenizer.name_or_path else "the tokenizer"
