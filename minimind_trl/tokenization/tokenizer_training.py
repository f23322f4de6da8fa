"""Training a tokenizer of MiniMind-3's kind on one's own text."""

import json
from collections.abc import Iterable, Iterator
from itertools import chain
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, trainers
from tokenizers.pre_tokenizers import ByteLevel, Sequence, Split
from transformers import PreTrainedTokenizerFast

from minimind_trl.errors import InputError
from minimind_trl.files import atomic_path
from minimind_trl.tokenization.templates import RESPONSE_TEMPLATE, training_template

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
    return PreTrainedTokenizerFast(
        tokenizer_object=_unflag_plain_tokens(bpe),
        bos_token="<|im_start|>",
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        unk_token="<|endoftext|>",
        extra_special_tokens=SPECIAL_TOKENS[3:],
        clean_up_tokenization_spaces=False,
        model_max_length=model_max_length,
        chat_template=training_template("minimind3"),
        response_template=RESPONSE_TEMPLATE,
    )


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


def save_tokenizer(tokenizer: PreTrainedTokenizerFast, output_dir: str | Path) -> None:
    """Write a tokenizer to a new folder, which appears complete or not at all.

    Args:
        tokenizer: the tokenizer to write.
        output_dir: a folder that does not exist, or is empty.

    Raises:
        TokenizerTrainingError: `output_dir` holds something already.
    """
    with atomic_path(free_folder(output_dir)) as temporary:
        tokenizer.save_pretrained(temporary)


def free_folder(output_dir: str | Path) -> Path:
    """The absolute path of a folder that can be written.

    Raises:
        TokenizerTrainingError: something is there already that is not an empty folder.
    """
    path = Path(output_dir).resolve()
    if path.exists() and not (path.is_dir() and not any(path.iterdir())):
        raise TokenizerTrainingError(f"{output_dir}: exists and is not an empty folder: choose another --output_dir")
    return path
