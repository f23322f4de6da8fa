"""`minimind-trl chat CHECKPOINT`: talk to a checkpoint in the terminal, from a script, or on a page."""

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import InputError, check_seed, nearest
from ..files import write_json

if TYPE_CHECKING:
    from rich.console import Console

    from .conversation import Conversation, Piece

HELP = """\
/reset         forget the conversation, but not the system prompt
/save FILE     write it as JSON, which is also a row for a mixture of chats
/load FILE     go on with a saved one
/exit          end the chat (Ctrl-D too); Ctrl-C ends an answer
/help          this list
A turn that begins with a slash is written with two: //like this"""
_COMMANDS = ("reset", "save", "load", "exit", "help")
_STYLES = {"content": "", "reasoning": "dim italic", "tool": "dim cyan"}


def add_cli(verbs: argparse._SubParsersAction) -> None:
    """Add the `chat` verb."""
    what = "talk to a checkpoint in the terminal, or on a page"
    parser = verbs.add_parser(
        "chat", help=what, description=f"{what}. Lines piped in are one user turn each.".capitalize()
    )
    parser.add_argument("checkpoint", metavar="CHECKPOINT", help="directory, Hub id, LoRA adapter or upstream's .pth")
    parser.add_argument("--beside", metavar="OTHER", help="a second checkpoint that answers the same turns")
    parser.add_argument("--tokenizer", help="directory or Hub id; 'tiny' is the one that comes with the package")
    parser.add_argument("--num_attention_heads", type=int, help="of MiniMind2 .pth files, which do not record it")
    parser.add_argument("--system_prompt", metavar="TEXT")
    parser.add_argument(
        "--tools",
        nargs="+",
        metavar="TOOL",
        help="what the model may call: calculator, unit_convert, ..., or module:function of yours",
    )
    how = parser.add_argument_group("generation", "Without --temperature, --top_p and --top_k answers are greedy.")
    how.add_argument("--max_new_tokens", type=int, default=512, help="per answer (%(default)s)")
    for name, kind in (("temperature", float), ("top_p", float), ("top_k", int), ("repetition_penalty", float)):
        how.add_argument(f"--{name}", type=kind)
    how.add_argument("--seed", type=int, help="makes sampled answers repeatable")
    how.add_argument(
        "--thinking", action=argparse.BooleanOptionalAction, help="for chat templates that can switch it on or off"
    )
    page = parser.add_argument_group("page")
    page.add_argument("--web", action="store_true", help='a page in the browser: pip install "minimind-trl[web]"')
    page.add_argument("--host", help="default: 127.0.0.1, which only this machine reaches")
    page.add_argument("--port", type=int, help="default: 7860")
    parser.set_defaults(run=_run)


def _run(args: argparse.Namespace) -> None:
    if args.web and args.beside:
        raise InputError("--beside is for the terminal: leave it or --web out")
    if not args.web and (args.host or args.port):
        raise InputError("--host and --port are for --web")
    check_seed(args.seed)

    from ..tools import ToolLimits, load_tools
    from .conversation import Conversation, Settings, load_chat_model

    names = ("max_new_tokens", "temperature", "top_p", "top_k", "repetition_penalty", "thinking")
    settings = Settings(**{name: getattr(args, name) for name in names})
    tools = load_tools(args.tools or [], Path.cwd(), ToolLimits())
    if args.web:
        from .chat_page import check_installed

        check_installed()
    if args.seed is not None:
        from transformers import set_seed

        set_seed(args.seed)
    conversations = [
        Conversation(
            load_chat_model(name, args.tokenizer, args.num_attention_heads), settings, args.system_prompt, tools
        )
        for name in (args.checkpoint, args.beside)
        if name
    ]
    if args.web:
        from .chat_page import serve_page

        serve_page(conversations[0], args.host or "127.0.0.1", args.port or 7860)
        return
    if sys.stdin.isatty():
        _talk(conversations)
    else:
        _answer_lines(conversations)


# --- in a terminal ----------------------------------------------------------------------------------------------------


def _talk(conversations: list["Conversation"]) -> None:
    from contextlib import suppress

    from rich.console import Console

    with suppress(ImportError):
        import readline  # noqa: F401  (line editing and history for input())

    console = Console(markup=False, highlight=False, soft_wrap=True)
    console.print(f"{' beside '.join(_names(conversations))}; /help lists the commands", style="dim")
    while True:
        try:
            line = input("> ").strip()
        except EOFError:
            console.print()
            return
        if not line:
            continue
        try:
            if is_command(line):
                if line.split()[0] == "/exit":
                    return
                console.print(run_command(line, conversations), style="dim")
            elif len(conversations) == 1:
                _print_answer(console, conversations[0].ask(_turn(line)))
            else:
                _print_beside(console, conversations, _turn(line))
        except InputError as error:
            console.print(f"error: {error}", style="red")
        except KeyboardInterrupt:
            console.print("\n(stopped; this turn is forgotten)", style="dim")


def _print_answer(console: "Console", pieces: Iterator["Piece"]) -> None:
    kind = None
    for piece in pieces:
        if kind and piece.kind != kind:
            console.print()
        kind = piece.kind
        console.print(piece.text, end="", style=_STYLES[kind])
    console.print()


def _print_beside(console: "Console", conversations: list["Conversation"], turn: str) -> None:
    """Two columns: the first fills while its model answers, then the second."""
    from rich.live import Live
    from rich.table import Column, Table
    from rich.text import Text

    texts = [Text() for _ in conversations]
    table = Table(*(Column(name, ratio=1) for name in _names(conversations)), expand=True)
    table.add_row(*texts)
    with Live(table, console=console, vertical_overflow="visible") as live:
        for conversation, text in zip(conversations, texts, strict=True):
            for piece in conversation.ask(turn):
                text.append(piece.text, style=_STYLES[piece.kind])
                live.refresh()


# --- in a script ------------------------------------------------------------------------------------------------------


def _answer_lines(conversations: list["Conversation"]) -> None:
    """Answer each line of stdin on stdout; reasoning and tool calls go to stderr.

    Raises:
        InputError: a command cannot be carried out, or a turn is too long.
    """
    names = _names(conversations)
    for line in filter(None, map(str.strip, sys.stdin)):
        if is_command(line):
            if line.split()[0] == "/exit":
                return
            print(run_command(line, conversations), file=sys.stderr)
            continue
        for name, conversation in zip(names, conversations, strict=True):
            answer = ""
            for piece in conversation.ask(_turn(line)):
                if piece.kind == "content":
                    answer += piece.text
                else:
                    print(piece.text, end="", file=sys.stderr, flush=True)
            print(f"{name}: {answer}" if len(names) > 1 else answer, flush=True)


# --- commands ---------------------------------------------------------------------------------------------------------


def is_command(line: str) -> bool:
    """Whether a line is a command rather than a turn."""
    return line.startswith("/") and not line.startswith("//")


def run_command(line: str, conversations: list["Conversation"]) -> str:
    """Carry out `/reset`, `/save FILE`, `/load FILE` or `/help`, and return what to print.

    With two checkpoints the first one's conversation is saved, and a loaded one is both's.

    Raises:
        InputError: the command is not known, lacks its file, or the file cannot be used.
    """
    from .conversation import read_messages

    command, _, file = line.removeprefix("/").partition(" ")
    file = file.strip()
    if command not in _COMMANDS:
        hint = nearest(f"/{command}", [f"/{known}" for known in _COMMANDS])
        raise InputError(f"unknown command /{command}{hint or '; /help lists them'}")
    if command in ("save", "load") and not file:
        raise InputError(f"/{command} needs a file: /{command} chat.json")
    if command == "help":
        return HELP
    if command == "reset":
        for conversation in conversations:
            conversation.reset()
        return "the conversation is forgotten"
    if command == "save":
        try:
            write_json(Path(file), {"messages": conversations[0].messages})
        except OSError as error:
            raise InputError(f"{file}: cannot be written: {error.strerror}") from error
        return f"saved {len(conversations[0].messages)} messages to {file}"
    messages = read_messages(file)
    for conversation in conversations:
        conversation.messages = [*messages]
    return f"loaded {len(messages)} messages from {file}"


def _turn(line: str) -> str:
    return line.removeprefix("/") if line.startswith("//") else line


def _names(conversations: list["Conversation"]) -> list[str]:
    """Short names of the checkpoints, or whole ones where the short ones are the same."""
    whole = [conversation.checkpoint.name for conversation in conversations]
    short = [Path(name).name or name for name in whole]
    return short if len({*short}) == len(short) else whole
