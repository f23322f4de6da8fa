"""A conversation with a checkpoint: answers as they are generated, with reasoning and tool calls told apart."""

import json
import os
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import StoppingCriteria, TextIteratorStreamer
from transformers.utils import get_json_schema
from transformers.utils.chat_parsing import ResponseParser

from ..errors import InputError
from ..evaluation.comparison import LoadedCheckpoint
from ..models import load_model
from ..models.adapters import is_native
from ..models.checkpoints import check_vocabulary, load_tokenizer_of, tokenizer_folder
from ..tokenization import escape_control_tokens, load_tokenizer, prepared_for_trl, with_calls
from ..tools import OfferedTools, ToolFailure

MAX_TOOL_ROUNDS = 5  # of calls and their results before an answer has to come without any
MAX_RESULT_LENGTH = 4096  # characters of a tool's result


@dataclass(frozen=True)
class Piece:
    """Some text of an answer; `kind` is `reasoning`, `content`, or `tool` for a call with its result."""

    kind: str
    text: str


@dataclass(frozen=True)
class Settings:
    """How answers are generated. Without temperature, top_p and top_k each token is the most likely one."""

    max_new_tokens: int = 512
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    repetition_penalty: float | None = None
    thinking: bool | None = None

    def __post_init__(self):
        ranges = {
            "max_new_tokens": (self.max_new_tokens >= 1, "at least 1"),
            "temperature": (self.temperature is None or 0 <= self.temperature < float("inf"), "0 (greedy) or more"),
            "top_p": (self.top_p is None or 0 < self.top_p <= 1, "above 0, at most 1"),
            "top_k": (self.top_k is None or self.top_k >= 1, "at least 1"),
            "repetition_penalty": (self.repetition_penalty is None or self.repetition_penalty > 0, "above 0"),
        }
        wrong = [name for name, (fits, _) in ranges.items() if not fits]
        if wrong:
            raise InputError("\n".join(f"--{name} {getattr(self, name)}: must be {ranges[name][1]}" for name in wrong))

    def sampling(self) -> dict[str, Any]:
        """The arguments of `generate` that choose tokens."""
        drawn = {"temperature": self.temperature, "top_p": self.top_p, "top_k": self.top_k}
        greedy = self.temperature == 0 or all(value is None for value in drawn.values())
        chosen = {"do_sample": False} if greedy else {"do_sample": True, "top_k": 0, **_given(drawn)}
        return chosen | _given({"repetition_penalty": self.repetition_penalty})


def _given(values: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in values.items() if value is not None}


def thinking_options(thinking: bool | None) -> dict[str, bool]:
    """Variables for chat templates that can switch thinking: MiniMind's name for it and Qwen's."""
    return {} if thinking is None else {"open_thinking": thinking, "enable_thinking": thinking}


def load_chat_model(
    name: str, tokenizer: str | None = None, num_attention_heads: int | None = None
) -> LoadedCheckpoint:
    """A language model that can chat, on the accelerator if there is one.

    Args:
        name: directory, Hub id, LoRA adapter or native `.pth`.
        tokenizer: directory, Hub id or `tiny`; default: the checkpoint's.
        num_attention_heads: of a native MiniMind2 file.

    Raises:
        InputError: the checkpoint cannot be loaded, or its tokenizer is missing or has no chat template.
    """
    overrides = {"num_attention_heads": num_attention_heads} if num_attention_heads and is_native(name) else {}
    model = load_model(name, config_overrides=overrides)
    if tokenizer is None and tokenizer_folder(name) is None:
        raise InputError(f"{name} brings no tokenizer; give --tokenizer DIR")
    loaded = load_tokenizer(tokenizer) if tokenizer else load_tokenizer_of(name)
    check_vocabulary(model, loaded, name)
    if not loaded.chat_template:
        raise InputError(f"the tokenizer of {name} has no chat template, which a chat needs")
    if torch.accelerator.is_available():
        model = model.to(torch.accelerator.current_accelerator())
    return LoadedCheckpoint(name, model, prepared_for_trl(loaded))  # which also knows how to read tool calls


class Conversation:
    """The messages of one chat, and the model that answers.

    Attributes:
        messages: as `apply_chat_template` takes them.
    """

    def __init__(
        self,
        checkpoint: LoadedCheckpoint,
        settings: Settings,
        system_prompt: str | None = None,
        tools: dict[str, Callable] | None = None,
    ):
        self.checkpoint, self.settings, self.tools = checkpoint, settings, tools or {}
        self._system = [{"role": "system", "content": system_prompt}] if system_prompt else []
        self._schemas = [get_json_schema(tool) for tool in self.tools.values()] or None
        self.reset()

    def reset(self) -> None:
        """Forget everything but the system prompt."""
        self.messages: list[dict[str, Any]] = [*self._system]

    def ask(self, text: str) -> Iterator[Piece]:
        """Yield the answer to a user's turn. A turn whose answer is broken off leaves no trace in `messages`.

        Raises:
            InputError: the turn is longer than the model's context.
        """
        before = [*self.messages]
        self.messages.append({"role": "user", "content": text})
        finished = False
        try:
            for _ in range(MAX_TOOL_ROUNDS):
                message = yield from self._answer()
                self.messages.append(message)
                calls = message.get("tool_calls") if self.tools else None
                if not calls:
                    break
                for call in calls:
                    shown, result = run_tool(self.tools, call, self._without_control_tokens)
                    self.messages.append({"role": "tool", "content": result})
                    yield Piece("tool", f"{shown} -> {result}\n")
            finished = True
        finally:
            if not finished:
                self.messages = before

    def _without_control_tokens(self, text: str) -> str:
        return escape_control_tokens({"text": text}, self.checkpoint.tokenizer)[0]["text"]

    def _answer(self) -> Iterator[Piece]:
        prompt = self._prompt()
        tokenizer = self.checkpoint.tokenizer
        template = getattr(tokenizer, "response_template", None)
        texts = self._stream(prompt, skip_special_tokens=template is None)
        if template is None:
            parts = []
            for text in texts:
                parts.append(text)
                yield Piece("content", text)
            return {"role": "assistant", "content": "".join(parts)}
        parser = ResponseParser(template, prefix=tokenizer.decode(prompt["input_ids"][0]), tools=self._schemas)
        raw, blank = [], {"reasoning", "content"}
        try:
            for text in texts:
                raw.append(text)
                yield from _pieces(parser.feed(text), blank)
            message, events = parser.finalize()
        except (ValueError, RecursionError):  # a tool call that is not JSON, is nested too deep, or is cut off
            return {"role": "assistant", "content": "".join(raw)}
        yield from _pieces(events, blank)
        return with_calls({"content": "", **message}, "", is_thinking=False, is_finished=True)

    def _prompt(self) -> dict[str, torch.Tensor]:
        """The tokenized conversation, without its oldest turns if it is too long for the model."""
        limit = self.checkpoint.model.config.max_position_embeddings - self.settings.max_new_tokens
        template = thinking_options(self.settings.thinking)
        while True:
            prompt = self.checkpoint.tokenizer.apply_chat_template(
                self.messages,
                tools=self._schemas,
                add_generation_prompt=True,
                return_dict=True,
                return_tensors="pt",
                **template,
            )
            length = prompt["input_ids"].shape[1]
            if length <= limit:
                return prompt.to(self.checkpoint.model.device)
            turns = [at for at, message in enumerate(self.messages) if message["role"] == "user"]
            if len(turns) < 2:
                raise InputError(
                    f"this turn has {length} tokens, and {max(limit, 0)} are left of the model's context beside "
                    f"--max_new_tokens {self.settings.max_new_tokens}: shorten it, or lower --max_new_tokens"
                )
            del self.messages[turns[0] : turns[1]]

    def _stream(self, prompt: dict[str, torch.Tensor], skip_special_tokens: bool) -> Iterator[str]:
        """The model's text, from a thread; it stops generating when the iterator is closed."""
        model, tokenizer = self.checkpoint.model, self.checkpoint.tokenizer
        streamer = TextIteratorStreamer(tokenizer, skip_prompt=True, skip_special_tokens=skip_special_tokens)
        stopped, errors = threading.Event(), []
        ends = {tokenizer.eos_token_id, *_listed(model.generation_config.eos_token_id)} - {None}

        def generate() -> None:
            try:
                model.generate(
                    **prompt,
                    **self.settings.sampling(),
                    streamer=streamer,
                    stopping_criteria=[_Stopped(stopped)],
                    max_new_tokens=self.settings.max_new_tokens,
                    eos_token_id=sorted(ends) or None,
                    pad_token_id=tokenizer.pad_token_id,
                )
            except BaseException as error:
                errors.append(error)
            finally:
                streamer.end()  # or the reader would wait forever

        thread = threading.Thread(target=generate, daemon=True)
        thread.start()
        try:
            yield from streamer
        finally:
            stopped.set()
            thread.join()
        if errors:
            raise errors[0]


class _Stopped(StoppingCriteria):
    def __init__(self, event: threading.Event):
        self.event = event

    def __call__(self, input_ids: torch.Tensor, scores, **_) -> torch.Tensor:
        return torch.full((len(input_ids),), self.event.is_set(), device=input_ids.device)


def _listed(ids: int | list[int] | None) -> list[int]:
    return ids if isinstance(ids, list) else [ids] if ids is not None else []


_KINDS = {"reasoning_content": "reasoning", "content": "content"}


def _pieces(events: list[dict[str, Any]], blank: set[str]) -> Iterator[Piece]:
    """What there is to show of a parser's events; tool calls are shown with their results.

    Args:
        blank: the kinds of which only line breaks have come so far, which are left out; it is updated.
    """
    for event in events:
        kind = _KINDS.get(event["field"]) if event["type"] == "region_chunk" else None
        if kind is None:
            continue
        text = event["text"].lstrip("\n") if kind in blank else event["text"]
        if text:
            blank.discard(kind)
            yield Piece(kind, text)


# --- tools ------------------------------------------------------------------------------------------------------------


def run_tool(tools: dict[str, Callable], call: dict[str, Any], clean: Callable[[str], str]) -> tuple[str, str]:
    """Call what a model asks for. What it does wrong is told to it as the result.

    Args:
        clean: applied to the result, such as the escaping of control tokens.

    Returns:
        The call as text, and its result.
    """
    wanted = call.get("function", call)
    name, arguments = str(wanted.get("name")), wanted.get("arguments")
    shown = f"{name}({json.dumps(arguments, ensure_ascii=False)})"
    if not isinstance(arguments, dict):
        return shown, "error: arguments must be a JSON object"
    try:
        return shown, OfferedTools(tools.values(), MAX_RESULT_LENGTH, clean)[name](**arguments)
    except ToolFailure as failure:
        return shown, f"error: {failure}"


# --- files ------------------------------------------------------------------------------------------------------------


def read_messages(path: str | os.PathLike) -> list[dict[str, Any]]:
    """The messages of a saved chat.

    Raises:
        InputError: the file is missing, or holds no chat.
    """
    try:
        content = json.loads(Path(path).read_text(encoding="utf-8"))
        messages = content["messages"]
        fits = all(isinstance(message["content"], str) and isinstance(message["role"], str) for message in messages)
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror}") from error
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(f'{path}: no chat: it must be {{"messages": [{{"role": ..., "content": ...}}]}}') from error
    if not fits:
        raise InputError(f"{path}: no chat: each message needs a role and a content, both texts")
    return messages
