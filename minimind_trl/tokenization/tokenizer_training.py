"""Training a tokenizer of MiniMind-3's kind on one's own text."""

import json
import tempfile
from collections.abc import Iterable, Iterator
from difflib import get_close_matches
from itertools import chain
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer, decoders, models, trainers
from tokenizers.pre_tokenizers import ByteLevel, Sequence, Split
from transformers import PreTrainedTokenizerFast

from minimind_trl.errors import InputError
from minimind_trl.tokenization.control_tokens import ROLES
from minimind_trl.tokenization.templates import prepared_for_trl, training_template

# MiniMind-3's added tokens by id, so that models and templates made for its tokenizer fit a trained one.
SPECIAL_TOKENS = [
    *("<|endoftext|>", "<|im_start|>", "<|im_end|>"),
    *("<|object_ref_start|>", "<|object_ref_end|>", "<|box_start|>", "<|box_end|>"),
    *("<|quad_start|>", "<|quad_end|>"),
    *("<|vision_start|>", "<|vision_end|>", "<|vision_pad|>", "<|image_pad|>", "<|video_pad|>"),
    *("<|audio_start|>", "<|audio_end|>", "<|audio_pad|>"),
    *("<tts_pad>", "<tts_text_bos>", "<tts_text_eod>", "<tts_text_bos_single>"),
]
PLAIN_ADDED_TOKENS = [
    *("<tool_call>", "</tool_call>", "<tool_response>", "</tool_response>", "<think>", "</think>"),
    *(f"<|buffer{i}|>" for i in range(1, 10)),
]
MIN_VOCAB_SIZE = len(SPECIAL_TOKENS) + len(PLAIN_ADDED_TOKENS) + 256

# What holds the text of a row: the first group whose first column is there.
_TEXT_COLUMNS = (
    ("text",),
    ("messages",),
    ("conversations",),
    ("prompt", "completion"),
    ("instruction", "input", "output"),
)
_LOADERS = {".json": "json", ".jsonl": "json", ".csv": "csv", ".parquet": "parquet", ".arrow": "arrow"}
_BLOCK_CHARACTERS = 1 << 16


class TokenizerTrainingError(InputError):
    """Data or options that a tokenizer cannot be trained with."""


def train_tokenizer(texts: Iterable[str], vocab_size: int, model_max_length: int = 131_072) -> PreTrainedTokenizerFast:
    """Train a byte-level BPE tokenizer with MiniMind-3's special tokens and chat template.

    All 256 bytes are in the vocabulary, so every text can be encoded and decodes to itself. The same texts in
    the same order give the same tokenizer, byte for byte. A line end is a token of its own, always: the chat
    templates of both generations end what they write before a message with one, so that the tokens of a generation
    prompt stay the same whatever the answer begins with.

    Args:
        texts: the text to learn from; read once, in order, never held in memory as a whole.
        vocab_size: how many tokens to reach, at least `MIN_VOCAB_SIZE` (36 added tokens and 256 bytes).
        model_max_length: the length that the tokenizer announces to trainers and pipelines.

    Returns:
        The tokenizer, with exactly `vocab_size` tokens.

    Raises:
        TokenizerTrainingError: `vocab_size` is too small, there is no text, or too little for `vocab_size`.
    """
    if vocab_size < MIN_VOCAB_SIZE:
        raise TokenizerTrainingError(
            f"vocab_size {vocab_size} is too small: choose at least {MIN_VOCAB_SIZE}, "
            f"which holds {MIN_VOCAB_SIZE - 256} added tokens and 256 bytes"
        )
    bpe = Tokenizer(models.BPE())
    words = ByteLevel(add_prefix_space=False)
    bpe.pre_tokenizer = Sequence([Split("\n", "isolated"), words])
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[*SPECIAL_TOKENS, *PLAIN_ADDED_TOKENS],
        initial_alphabet=ByteLevel.alphabet(),
        show_progress=False,
    )
    bpe.train_from_iterator(_not_empty(texts), trainer=trainer)
    # Without merges of line ends GPT-2's words alone give the same tokens, and every engine knows those.
    bpe.pre_tokenizer = words
    reached = bpe.get_vocab_size()
    if reached < vocab_size:
        raise TokenizerTrainingError(
            f"the data is too small for vocab_size {vocab_size}: it supports only {reached} tokens; "
            f"add text, or choose a vocab_size of at most {reached}"
        )
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=_unflag_plain_tokens(bpe),
        bos_token="<|im_start|>",
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        unk_token="<|endoftext|>",
        extra_special_tokens=SPECIAL_TOKENS[3:],
        clean_up_tokenization_spaces=False,
        model_max_length=model_max_length,
        chat_template=training_template("minimind3"),
    )
    return prepared_for_trl(tokenizer)


def _not_empty(texts: Iterable[str]) -> Iterator[str]:
    texts = (text for text in texts if text)
    first = next(texts, None)
    if first is None:
        raise TokenizerTrainingError("the data holds no text: check the files and the text field")
    return chain([first], texts)


def _unflag_plain_tokens(bpe: Tokenizer) -> Tokenizer:
    # The trainer flags every token it is given as special; decoding would then drop `<think>` from an answer.
    state = json.loads(bpe.to_str())
    for token in state["added_tokens"]:
        token["special"] = token["content"] in SPECIAL_TOKENS
    return Tokenizer.from_str(json.dumps(state))


def bytes_per_token(tokenizer: PreTrainedTokenizerFast, texts: Iterable[str]) -> float:
    """Return how many UTF-8 bytes of the texts one token stands for on average: more is better.

    Args:
        tokenizer: the tokenizer to measure.
        texts: the text to measure it on.

    Raises:
        TokenizerTrainingError: there is no text.
    """
    size = tokens = 0
    for text in _not_empty(texts):
        size += len(text.encode())
        tokens += len(tokenizer.encode(text, add_special_tokens=False))
    return size / tokens


def iter_texts(sources: Iterable[str | Path], text_field: str | None = None) -> Iterator[str]:
    """Read text, row by row, from files, folders and data sets on the Hub.

    Args:
        sources: `.txt`, `.json`, `.jsonl`, `.csv`, `.parquet` or `.arrow` files, folders of such files or as
            written by `save_to_disk` (there the `train` split), or ids of data sets on the Hub.
        text_field: the column with the text, a string or a list of messages. Found without help: `text`;
            `messages` or `conversations`; `prompt` and `completion`; `instruction`, `input` and `output`.

    Yields:
        One text a row, its parts joined by newlines; of a `.txt` file, blocks of whole lines of about 64 KiB.

    Raises:
        TokenizerTrainingError: a source does not exist, cannot be read, or has no such column.
    """
    for source in sources:
        _refuse_unrepeatable(Path(source))
        try:
            if Path(source).suffix == ".txt":
                yield from _blocks(Path(source))
                continue
            for row in _rows(source):
                columns = _text_columns(row, text_field, source)
                yield "\n".join(chain.from_iterable(_strings(row.get(name), name, source) for name in columns))
        except TokenizerTrainingError:
            raise
        except FileNotFoundError as error:
            raise TokenizerTrainingError(f"{source}: no such file, folder or data set") from error
        except (ValueError, ConnectionError) as error:
            raise TokenizerTrainingError(f"{source}: cannot be read: {error}") from error


def _refuse_unrepeatable(path: Path) -> None:
    """What is no file: sources are read twice, to train and to measure; and a device may never end."""
    if path.exists() and not path.is_file() and (not path.is_dir() or path.suffix == ".txt"):
        kind = "a folder" if path.is_dir() else "a pipe or a device"
        raise TokenizerTrainingError(f"{path}: is {kind}: give a file, into which its content was written")


def _blocks(path: Path) -> Iterator[str]:
    try:
        # Line ends are kept as they are: they are text for a tokenizer.
        with path.open(encoding="utf-8", newline="") as file:
            while lines := file.readlines(_BLOCK_CHARACTERS):
                yield "".join(lines)
    except UnicodeDecodeError as error:
        raise TokenizerTrainingError(f"{path}: is not UTF-8 text ({error}): convert it first") from error


def _rows(source: str | Path) -> Iterable[dict[str, Any]]:
    import datasets  # slow to import, and not needed to train on texts at hand

    path = Path(source)
    if path.is_file() and path.stat().st_size == 0:
        raise TokenizerTrainingError(f"{source}: is empty: leave it out")
    if path.suffix in _LOADERS:
        return datasets.load_dataset(_LOADERS[path.suffix], data_files=str(source), split="train", streaming=True)
    if path.is_file():
        known = ", ".join([".txt", *_LOADERS])
        raise TokenizerTrainingError(f"{source}: unknown kind of file: convert it to one of {known}")
    if (path / "state.json").is_file():
        return datasets.load_from_disk(path)
    if (path / "dataset_dict.json").is_file():
        return datasets.load_from_disk(path / "train")
    return datasets.load_dataset(str(source), split="train", streaming=True)


def _text_columns(row: dict[str, Any], text_field: str | None, source: str | Path) -> tuple[str, ...]:
    if text_field in row:
        return (text_field,)
    if text_field is None:
        for columns in _TEXT_COLUMNS:
            if columns[0] in row:
                return columns
    wanted = f"no column {text_field!r}" if text_field else "no column that is known to hold text"
    strings = sorted((name for name in row if isinstance(row[name], str)), key=lambda name: -len(row[name]))
    nearest = [*get_close_matches(text_field or "text", row, n=1), *strings]
    advice = f"; say which one holds the text, perhaps --text_field {nearest[0]}" if nearest else ""
    raise TokenizerTrainingError(f"{source}: {wanted}, only: {', '.join(row) or 'none'}{advice}")


def _strings(value: Any, column: str, source: str | Path) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, list):
        for item in value:
            yield from _strings(item, column, source)
    elif isinstance(value, dict):
        # The words of a turn's header as MiniMind-3's template writes them, with the blank line that ends an
        # assistant's think block, so that they become tokens of their own.
        if value.get("role") in ROLES:
            yield "assistant\n" if value["role"] == "assistant" else value["role"]
        yield from (value[key] for key in ("reasoning_content", "content", "value") if isinstance(value.get(key), str))
    elif value is not None:
        raise TokenizerTrainingError(
            f"{source}: column {column!r} holds {type(value).__name__}, not text: name another one with --text_field"
        )


def save_tokenizer(tokenizer: PreTrainedTokenizerFast, output_dir: str | Path) -> None:
    """Write a tokenizer to a new folder, which appears complete or not at all.

    Args:
        tokenizer: the tokenizer to write.
        output_dir: a folder that does not exist, or is empty.

    Raises:
        TokenizerTrainingError: `output_dir` holds something already.
    """
    output_dir = free_folder(output_dir)
    output_dir.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{output_dir.name}-", dir=output_dir.parent) as temporary:
        tokenizer.save_pretrained(Path(temporary) / "new")
        (Path(temporary) / "new").rename(output_dir)


def free_folder(output_dir: str | Path) -> Path:
    """The absolute path of a folder that can be written.

    Raises:
        TokenizerTrainingError: something is there already that is not an empty folder.
    """
    path = Path(output_dir).resolve()
    if path.exists() and not (path.is_dir() and not any(path.iterdir())):
        raise TokenizerTrainingError(f"{output_dir}: exists and is not an empty folder: choose another --output_dir")
    return path
