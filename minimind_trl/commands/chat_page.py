"""The page of `minimind-trl chat --web`: gradio's chat interface."""

from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import InputError
from .conversation import Conversation

if TYPE_CHECKING:
    import gradio

_TITLES = {"reasoning": "Thinking", "tool": "Tool"}


def check_installed() -> None:
    """Raise `InputError` without gradio."""
    if find_spec("gradio") is None:
        raise InputError('--web needs gradio: pip install "minimind-trl[web]"')


def make_page(conversation: Conversation) -> "gradio.ChatInterface":
    """The page. Each visitor has a conversation of their own, with this one's checkpoint and settings."""
    import gradio

    def answer(turn: str, history: list[dict[str, Any]]) -> Iterator[list[gradio.ChatMessage]]:
        own = Conversation(conversation.checkpoint, conversation.settings, tools=conversation.tools)
        own.messages = [*conversation.messages, *_messages(history)]
        shown: list[gradio.ChatMessage] = []
        try:
            for piece in own.ask(turn):
                title = _TITLES.get(piece.kind)
                if not shown or shown[-1].metadata.get("title") != title:
                    shown.append(gradio.ChatMessage(content="", metadata={"title": title} if title else {}))
                shown[-1].content += piece.text
                yield shown
        except InputError as error:
            raise gradio.Error(str(error)) from error

    return gradio.ChatInterface(answer, title=Path(conversation.checkpoint.name).name, analytics_enabled=False)


def serve_page(conversation: Conversation, host: str, port: int) -> None:
    """Show the page until Ctrl-C.

    Raises:
        InputError: the port is taken.
    """
    page = make_page(conversation)
    try:
        page.launch(server_name=host, server_port=port, share=False, quiet=True, prevent_thread_lock=True)
    except OSError as error:
        raise InputError(f"--port {port}: cannot be used on {host}; give another") from error
    print(f"http://{host}:{port} (Ctrl-C ends it)", flush=True)
    page.block_thread()


def _messages(history: list[dict[str, Any]]) -> list[dict[str, str]]:
    """The turns of a page's history, without reasoning and tool calls, which have a title."""
    turns = [message for message in history if not (message.get("metadata") or {}).get("title")]
    return [{"role": message["role"], "content": _text(message["content"])} for message in turns]


def _text(content: str | list[dict[str, Any]]) -> str:
    return content if isinstance(content, str) else "".join(part.get("text", "") for part in content)
