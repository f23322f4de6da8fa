"""`minimind-trl data {check,build,show,explain} CONFIG`, and `minimind-trl data push FOLDER USER/NAME`."""

import argparse
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.text import Text

from ..errors import MixtureError, nearest
from .push import add_hub_options, hub_options

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from ..data import DatasetMixer
    from ..data.rows import Traced
    from ..data.sources import DataFile

_EXAMPLES = 2


def add_cli(verbs: argparse._SubParsersAction) -> None:
    """Add the `data` verb and its five actions."""
    parser = verbs.add_parser("data", help="check, build, show, explain and publish data mixtures")
    actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION")
    for name, run, what in (
        ("check", _check, "validate a mixture file and look at the first rows of every source, without building"),
        ("build", _build, "write the mixture as JSON lines, with a lock file"),
        ("show", _show, "print shares, rows, tokens, lengths, drops, and examples with the trained part marked"),
        ("explain", _explain, "follow one row of a source until it is trained on, held out or dropped"),
    ):
        action = actions.add_parser(name, help=what, description=what)
        action.add_argument(
            "config", metavar="CONFIG", help="mixture file, or the name of a shipped one, such as tiny/sft"
        )
        action.add_argument("--tokenizer", help="directory or Hub id; 'tiny' is the one that comes with the package")
        action.set_defaults(run=run)
        if name == "build":
            action.add_argument(
                "--output_dir", help="a folder, or its URL in a storage (s3://, gs://); default: prepared/PHASE_CONFIG"
            )
            parts = action.add_mutually_exclusive_group()
            parts.add_argument(
                "--shard", metavar="I/N", help="convert only the I-th of N shares of the rows, into OUTPUT_DIR.shards"
            )
            parts.add_argument("--merge", action="store_true", help="build from the N shares in OUTPUT_DIR.shards")
        if name == "explain":
            action.add_argument("--source", help="name of a source in the mixture (default: the first)")
            action.add_argument("--file", type=int, default=1, help="number of its file or split, from 1")
            action.add_argument("--row", type=int, required=True, help="line or row in that file, from 1")
    what = "upload a prepared mixture to the Hub as a data set, with a card and its lock"
    push = actions.add_parser("push", help=what, description=what)
    push.add_argument("folder", metavar="FOLDER", help="folder that `data build` wrote")
    add_hub_options(push)
    push.set_defaults(run=_push)


def _load(args: argparse.Namespace, progress: bool = False) -> tuple["DatasetMixer", "PreTrainedTokenizerBase | None"]:
    import datasets

    from ..data import DatasetMixer
    from ..tokenization import load_tokenizer

    if not progress:
        datasets.disable_progress_bars()
    return DatasetMixer.from_yaml(args.config), load_tokenizer(args.tokenizer) if args.tokenizer else None


def _check(args: argparse.Namespace) -> None:
    mixer, tokenizer = _load(args)
    for line in mixer.validate_mixture(tokenizer):
        print(line)
    print(f"{args.config}: valid, phase {mixer.mixture.metadata.phase}; nothing was built")


def _build(args: argparse.Namespace) -> None:
    from ..data import LOCK, load_or_prepare
    from ..data.object_storage import is_url

    mixer, tokenizer = _load(args, progress=True)
    folder = (args.output_dir or f"prepared/{mixer.name}").rstrip("/")
    shards = Path(f"{folder}.shards")
    if is_url(folder) and (args.shard or args.merge):
        raise MixtureError(f"--output_dir {folder}: shards are written to a folder that all machines see, not to a URL")
    if args.shard:
        number, count = _read_shard(args.shard)
        written = mixer.write_shard(shards, number - 1, count, tokenizer)
        pieces = ", ".join(f"{pieces:,} of {name}" for name, pieces in written.items())
        print(f"{shards}: shard {number} of {count}, pieces: {pieces}; `data build --merge` joins all shards")
        return
    mixer.shards = shards if args.merge else None
    data = load_or_prepare(mixer, folder, tokenizer)
    print(mixer.describe())
    _warn(mixer)
    rows = " and ".join(f"{len(split):,} {name}" for name, split in data.items())
    print(f"{folder}: {rows} rows, {LOCK}")


def _read_shard(text: str) -> tuple[int, int]:
    number, _, count = text.partition("/")
    if not (number.isdecimal() and count.isdecimal() and 1 <= int(number) <= int(count)):
        raise MixtureError(f"--shard {text}: give I/N, such as 1/8 to 8/8")
    return int(number), int(count)


def _push(args: argparse.Namespace) -> None:
    from .upload import push_dataset

    print(push_dataset(args.folder, args.repo_id, **hub_options(args)))


def _show(args: argparse.Namespace) -> None:
    from ..data.marked_rows import marked_row
    from ..data.schemas import plain_text

    mixer, tokenizer = _load(args)
    data = mixer.build(tokenizer, keep_tokens=True)
    console = Console()
    if mixer.report:
        console.print(mixer.report.table())
        for line in (*mixer.report.drops(), *mixer.report.moved(), *mixer.report.notes):
            console.print(line, highlight=False)
    for number, row in enumerate(data["train"].take(_EXAMPLES), start=1):
        console.rule(f"train row {number}, from {row['source']}")
        shown = marked_row(row, tokenizer, mixer.longest, mixer.on_long) if tokenizer else plain_text(row)
        console.print(shown, highlight=False)
    if mixer.report is None:
        console.print(mixer.describe(), highlight=False, markup=False, soft_wrap=True)
    _warn(mixer)
    if tokenizer is None:
        console.print("[dim]with --tokenizer the examples are rendered, and their trained part is marked")


def _warn(mixer: "DatasetMixer") -> None:
    for line in mixer.warnings():
        print(f"warning: {line}", file=sys.stderr)


def _explain(args: argparse.Namespace) -> None:
    from ..data.mixer import make_mix

    mixer, tokenizer = _load(args)
    by_name = {source.name: source for source in mixer.mixture.datasets}
    source = by_name.get(args.source or next(iter(by_name)))
    if source is None:
        raise MixtureError(f"{args.config}: no source {args.source!r}{nearest(args.source, list(by_name))}")
    reader = mixer.reader(tokenizer)
    files = reader.files(source) + reader.files(source, validation=True)
    if not 1 <= args.file <= len(files):
        raise MixtureError(f"--file {args.file}: {source.name} has {len(files)} file(s)")
    raw = _read_row(files[args.file - 1], args.row)
    opened = reader.open(source)
    joined = raw
    if opened.converter.schema == "kto":  # with the other answer of its pair, which may be in any other row
        joined = next(row for index, number, row in opened.read() if (index, number) == (args.file - 1, args.row))
    [traced] = opened.converter.trace([joined], lambda _: files[args.file - 1].at(args.row))
    console = Console()
    _print_step(console, f"row: {files[args.file - 1].at(args.row)}", json.dumps(raw, ensure_ascii=False, default=str))
    _print_steps(console, traced, tokenizer, mixer)
    if traced.reason is None and not mixer.mixture.streaming:
        _print_step(console, "mixture", make_mix(reader).outcome(source, args.file - 1, args.row))


def _read_row(file: "DataFile", wanted: int) -> dict:
    number = 0
    for number, row in file.read():
        if number == wanted:
            return row
    raise MixtureError(f"{file.name}: no row at {file.unit} {wanted} (the last is {number})")


def _print_steps(
    console: Console, traced: "Traced", tokenizer: "PreTrainedTokenizerBase | None", mixer: "DatasetMixer"
) -> None:
    from ..data.marked_rows import marked_row
    from ..data.report import MOVED

    if traced.unread:
        _print_step(console, "not read", ", ".join(traced.unread))
    if traced.row is None:
        _print_step(console, "convert", f"dropped: {traced.reason}")
        return
    _print_step(console, "convert", json.dumps(traced.row, ensure_ascii=False))
    if traced.untrained:
        _print_step(console, "not trained", f"{traced.untrained} of its turns (loss, weight, train)")
    if traced.reason:
        _print_step(console, "filter", f"dropped: {traced.reason}")
        return
    _print_step(console, "filter", "kept")
    if tokenizer is None:
        _print_step(console, "tokens", "not counted: give --tokenizer")
        return
    _print_step(console, "escape", f"{traced.escaped} control tokens inside the text")
    if traced.moved:
        _print_step(console, "template", f"{traced.moved} {MOVED}")
    _print_step(console, "tokens", f"{traced.count}{_beyond(mixer, traced.count)}; the trained part is marked:")
    row = traced.trained | (traced.tokens.columns if traced.tokens else {})
    console.print(marked_row(row, tokenizer, mixer.longest, mixer.on_long), highlight=False)


def _beyond(mixer: "DatasetMixer", tokens: int) -> str:
    """What happens to the tokens of a row beyond the limit; empty if there are none."""
    limit = mixer.longest
    if limit is None or tokens <= limit or mixer.on_long == "keep":
        return ""
    if mixer.on_long == "chunk":
        return f", in {-(-tokens // limit)} pieces of at most {limit}"
    return f", of which the last {tokens - limit} are cut off (max_seq_length {limit})"


def _print_step(console: Console, step: str, what: str) -> None:
    console.print(Text(f"{step}: ", style="bold") + Text(what), soft_wrap=True)
