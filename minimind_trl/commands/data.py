"""`minimind-trl data {check,build,show,explain} CONFIG`."""

import argparse
import json
import sys
from pathlib import Path

import datasets
from rich.console import Console
from rich.text import Text
from transformers import PreTrainedTokenizerBase

from ..data import schemas
from ..data.mixer import DatasetMixer
from ..data.prepared import LOCK, load_or_prepare
from ..data.report import MOVED
from ..data.rows import Traced
from ..data.schemas import Row
from ..data.sources import DataFile
from ..errors import MixtureError, nearest
from ..models.checkpoints import load_tokenizer_of
from ..models.names import check_name
from ..tokenization import pieces, tiny_tokenizer, tokenize_conversation, tokenize_text, with_training_template

_EXAMPLES = 2


def add_cli(verbs: argparse._SubParsersAction) -> None:
    """Add the `data` verb and its four actions."""
    parser = verbs.add_parser("data", help="check, build, show and explain data mixtures")
    actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION")
    for name, run, what in (
        ("check", _check, "validate a mixture file and look at the first rows of every source, without building"),
        ("build", _build, f"write the mixture as JSON lines beside its {LOCK}"),
        ("show", _show, "print shares, rows, tokens, lengths, drops, and examples with the trained part marked"),
        ("explain", _explain, "follow one row of a source until it is trained on, held out or dropped"),
    ):
        action = actions.add_parser(name, help=what, description=what)
        action.add_argument("config", metavar="CONFIG", help="mixture file, such as data_configs/tiny/sft.yaml")
        action.add_argument("--tokenizer", help="directory or Hub id; 'tiny' is the one that comes with the package")
        action.set_defaults(run=run)
        if name == "build":
            action.add_argument("--output_dir", type=Path, help="default: prepared/PHASE_CONFIG")
        if name == "explain":
            action.add_argument("--source", help="name of a source in the mixture (default: the first)")
            action.add_argument("--file", type=int, default=1, help="which of its files or splits, from 1")
            action.add_argument("--row", type=int, required=True, help="line or row in it, from 1")


def load_tokenizer(name: str | None) -> PreTrainedTokenizerBase | None:
    """A tokenizer by directory or Hub id; "tiny" is ours.

    Raises:
        InputError: there is none.
    """
    if name is None or name == "tiny":
        return tiny_tokenizer() if name else None
    check_name(name, "--tokenizer")
    return load_tokenizer_of(name)


def _check(args: argparse.Namespace) -> None:
    datasets.disable_progress_bars()
    mixer = DatasetMixer.from_yaml(args.config)
    for line in mixer.validate_mixture(load_tokenizer(args.tokenizer)):
        print(line)
    print(f"{args.config}: valid, phase {mixer.mixture.metadata.phase}; nothing was built")


def _build(args: argparse.Namespace) -> None:
    mixer = DatasetMixer.from_yaml(args.config)
    folder = args.output_dir or Path("prepared") / mixer.name
    data = load_or_prepare(mixer, folder, load_tokenizer(args.tokenizer))
    print(mixer.describe())
    _warn(mixer)
    rows = " and ".join(f"{len(split):,} {name}" for name, split in data.items())
    print(f"{folder}: {rows} rows, {LOCK}")


def _show(args: argparse.Namespace) -> None:
    datasets.disable_progress_bars()
    mixer = DatasetMixer.from_yaml(args.config)
    tokenizer = load_tokenizer(args.tokenizer)
    data = mixer.build(tokenizer)
    console = Console()
    if mixer.report:
        console.print(mixer.report.table())
        for line in (*mixer.report.drops(), *mixer.report.moved(), *mixer.report.notes):
            console.print(line, highlight=False)
    for number, row in enumerate(data["train"].take(_EXAMPLES), start=1):
        console.rule(f"train row {number}, from {row['source']}")
        shown = marked_row(row, tokenizer, mixer.longest, mixer.on_long) if tokenizer else schemas.plain_text(row)
        console.print(shown, highlight=False)
    if mixer.report is None:
        console.print(mixer.describe(), highlight=False, markup=False, soft_wrap=True)
    _warn(mixer)
    if tokenizer is None:
        console.print("[dim]with --tokenizer the examples are rendered, and their trained part is marked")


def _warn(mixer: DatasetMixer) -> None:
    for line in mixer.warnings():
        print(f"warning: {line}", file=sys.stderr)


def _explain(args: argparse.Namespace) -> None:
    datasets.disable_progress_bars()
    mixer = DatasetMixer.from_yaml(args.config)
    tokenizer = load_tokenizer(args.tokenizer)
    by_name = {source.name: source for source in mixer.mixture.datasets}
    source = by_name.get(args.source or next(iter(by_name)))
    if source is None:
        raise MixtureError(f"{args.config}: no source {args.source!r}{nearest(args.source, list(by_name))}")
    own = mixer.files(source, validation=True)
    files = mixer.files(source) + own
    if not 1 <= args.file <= len(files):
        raise MixtureError(f"--file {args.file}: {source.name} has {len(files)} file(s)")
    raw = _row(files[args.file - 1], args.row)
    converter = mixer.converter(source, files, tokenizer)
    joined = raw
    if converter.schema == "kto":  # with the answer that it makes a pair with, which may stand in any other row
        rows = converter.read(files, held_out=len(own))
        joined = next(row for index, number, row in rows if (index, number) == (args.file - 1, args.row))
    [traced] = converter.trace([joined], lambda _: files[args.file - 1].at(args.row))
    console = Console()
    _tell(console, f"row: {files[args.file - 1].at(args.row)}", json.dumps(raw, ensure_ascii=False, default=str))
    _tell_steps(console, traced, tokenizer, mixer)
    if traced.reason is None and not mixer.mixture.streaming:
        mixer.build(tokenizer)
        _tell(console, "mixture", mixer.fate(source, args.file - 1, args.row))


def _row(file: DataFile, wanted: int) -> Row:
    number = 0
    for number, row in file.read():
        if number == wanted:
            return row
    raise MixtureError(f"{file.name}: no row at {file.unit} {wanted} (the last is {number})")


def _tell_steps(
    console: Console, traced: Traced, tokenizer: PreTrainedTokenizerBase | None, mixer: DatasetMixer
) -> None:
    if traced.unread:
        _tell(console, "not read", ", ".join(traced.unread))
    if traced.row is None:
        _tell(console, "convert", f"dropped: {traced.reason}")
        return
    _tell(console, "convert", json.dumps(traced.row, ensure_ascii=False))
    if traced.untrained:
        _tell(console, "not trained", f"{traced.untrained} of its turns (loss, weight, train)")
    if traced.reason:
        _tell(console, "filter", f"dropped: {traced.reason}")
        return
    _tell(console, "filter", "kept")
    if tokenizer is None:
        _tell(console, "tokens", "not counted: give --tokenizer")
        return
    _tell(console, "escape", f"{traced.escaped} control tokens inside the text")
    if traced.moved:
        _tell(console, "template", f"{traced.moved} {MOVED}")
    _tell(console, "tokens", f"{traced.tokens}{_beyond(mixer, traced.tokens)}; trained on is what is marked:")
    console.print(marked_row(traced.trained, tokenizer, mixer.longest, mixer.on_long), highlight=False)


def _beyond(mixer: DatasetMixer, tokens: int) -> str:
    """What becomes of a row's tokens beyond the limit; nothing where there are none."""
    limit = mixer.longest
    if limit is None or tokens <= limit or mixer.on_long == "keep":
        return ""
    if mixer.on_long == "chunk":
        return f", in {-(-tokens // limit)} pieces of at most {limit}"
    return f", of which the last {tokens - limit} are cut off (max_seq_length {limit})"


def _tell(console: Console, step: str, what: str) -> None:
    console.print(Text(f"{step}: ", style="bold") + Text(what), soft_wrap=True)


def marked_row(row: Row, tokenizer: PreTrainedTokenizerBase, limit: int | None = None, on_long: str = "cut") -> Text:
    """A row as the model sees it, in green and between marks what its loss counts on.

    Args:
        limit: tokens of a row, beyond which `on_long` holds: of a `cut` row the rest stands dimmed behind a mark, the
            pieces of a `chunk` row stand in marks of their own.
    """
    tools = json.loads(row["tools"]) if row.get("tools") else None
    limits = (limit, on_long)
    if row.get("untrained"):
        return _spans(tokenizer, *tokenize_text(tokenizer, row["text"], row["untrained"]), *limits)
    if "text" in row:
        return _spans(tokenizer, tokenizer(row["text"])["input_ids"], None, *limits)
    if "messages" in row:
        return _rendered(tokenizer, row["messages"], tools, *limits)
    if "chosen" not in row:
        options = {"tools": tools, "add_generation_prompt": True, "return_dict": False}
        return _spans(tokenizer, tokenizer.apply_chat_template(row["prompt"], **options), [])
    better, worse = (_rendered(tokenizer, row["prompt"] + row[side], tools, *limits) for side in ("chosen", "rejected"))
    return Text("chosen:\n", style="bold") + better + Text("\nrejected:\n", style="bold") + worse


def _rendered(
    tokenizer: PreTrainedTokenizerBase, messages: list[Row], tools: list | None, limit: int | None, on_long: str
) -> Text:
    twin = with_training_template(tokenizer)
    return _spans(tokenizer, *tokenize_conversation(twin, messages, tools, assistant_only=True), limit, on_long)


def _spans(
    tokenizer: PreTrainedTokenizerBase,
    ids: list[int],
    mask: list[bool] | None,
    limit: int | None = None,
    on_long: str = "keep",
) -> Text:
    """Tokens as text; runs of trained ones stand between ⟦ and ⟧, what is cut off behind ✂."""
    mask = [True] * len(ids) if mask is None else mask or [False] * len(ids)
    cut_at = limit if limit is not None and on_long == "cut" else len(ids)
    stops = [part.stop for part in pieces(len(ids), limit)] if limit is not None and on_long == "chunk" else [cut_at]
    text, start = Text(), 0
    while start < len(ids):
        if start >= cut_at:
            text.append(f"✂{tokenizer.decode(ids[start:], skip_special_tokens=False)}", style="dim")
            break
        last = min(len(ids), next(stop for stop in stops if stop > start))
        end = next((i for i in range(start, last) if mask[i] != mask[start]), last)
        part = tokenizer.decode(ids[start:end], skip_special_tokens=False)
        text.append(f"⟦{part}⟧" if mask[start] else part, style="green" if mask[start] else "")
        start = end
    return text
