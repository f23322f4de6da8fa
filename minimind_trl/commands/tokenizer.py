"""`minimind-trl tokenizer train DATA [DATA ...] --vocab_size N --output_dir DIR`."""

import argparse
from itertools import chain, islice

_MEASURED_ROWS = 10_000


def add_cli(verbs: argparse._SubParsersAction) -> None:
    """Add the `tokenizer` verb and its one action, `train`."""
    tokenizer = verbs.add_parser("tokenizer", help="train a tokenizer")
    parser = tokenizer.add_subparsers(required=True, metavar="train").add_parser(
        "train",
        help="train a tokenizer of MiniMind-3's kind on text",
        description="Train a byte-level BPE tokenizer with MiniMind-3's special tokens and chat template.",
    )
    parser.add_argument(
        "data",
        nargs="+",
        metavar="DATA",
        help="a .txt, .json, .jsonl, .csv, .parquet or .arrow file, a folder, or the id of a Hub data set",
    )
    parser.add_argument("--vocab_size", type=int, required=True, help="number of tokens, at least 292")
    parser.add_argument("--output_dir", required=True, help="a new or empty folder")
    parser.add_argument("--text_field", help="the column that holds the text (default: detected)")
    parser.add_argument(
        "--max_rows",
        type=int,
        help="read at most this many rows of each DATA (of a .txt file: blocks of 64 KiB)",
    )
    parser.add_argument("--model_max_length", type=int, default=131_072, help="default: %(default)s")
    parser.set_defaults(run=_train)


def _train(args: argparse.Namespace) -> None:
    from ..data.texts import iter_texts
    from ..tokenization import tokenizer_training as training

    if args.max_rows is not None and args.max_rows < 1:
        raise training.TokenizerTrainingError(
            f"--max_rows {args.max_rows}: give at least 1, or leave it out to read all rows"
        )
    training.free_folder(args.output_dir)  # before the work, not after it

    def texts():
        each = (iter_texts([source], args.text_field) for source in args.data)
        return chain.from_iterable(islice(rows, args.max_rows) for rows in each)

    tokenizer = training.train_tokenizer(texts(), args.vocab_size, args.model_max_length)
    measured = training.bytes_per_token(tokenizer, islice(texts(), _MEASURED_ROWS))
    training.save_tokenizer(tokenizer, args.output_dir)
    print(f"vocabulary: {len(tokenizer)} tokens")
    print(f"bytes per token: {measured:.2f} (over at most the first {_MEASURED_ROWS} rows)")
    print(f"saved to: {args.output_dir}")
