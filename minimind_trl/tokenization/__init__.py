"""Text to tokens and back: chat templates with training twins, control tokens in data, tokenizer training."""

from pathlib import Path

from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from minimind_trl.tokenization.control_tokens import MessageError, escape_control_tokens, find_control_tokens
from minimind_trl.tokenization.masks import pieces, tokenize_conversation, tokenize_text, untrained_spans
from minimind_trl.tokenization.prompt_boundary import PromptBoundary, compare_prompts
from minimind_trl.tokenization.templates import (
    GENERATIONS,
    ChatTemplateError,
    decode_tools,
    inference_template,
    prepared_for_engines,
    prepared_for_trl,
    training_template,
    with_training_template,
)
from minimind_trl.tokenization.tokenizer_training import (
    MIN_VOCAB_SIZE,
    TokenizerTrainingError,
    bytes_per_token,
    save_tokenizer,
    train_tokenizer,
)
from minimind_trl.tokenization.tool_calls import INVALID_CALL, with_calls

__all__ = [
    "GENERATIONS",
    "INVALID_CALL",
    "MIN_VOCAB_SIZE",
    "TINY_TOKENIZER_DIR",
    "ChatTemplateError",
    "MessageError",
    "PromptBoundary",
    "TokenizerTrainingError",
    "bytes_per_token",
    "compare_prompts",
    "decode_tools",
    "escape_control_tokens",
    "find_control_tokens",
    "inference_template",
    "load_tokenizer",
    "pieces",
    "prepared_for_engines",
    "prepared_for_trl",
    "save_tokenizer",
    "tiny_tokenizer",
    "tokenize_conversation",
    "tokenize_text",
    "train_tokenizer",
    "training_template",
    "untrained_spans",
    "with_calls",
    "with_training_template",
]

TINY_TOKENIZER_DIR = Path(__file__).parent / "tiny"


def tiny_tokenizer() -> PreTrainedTokenizerFast:
    """Return the small tokenizer of MiniMind-3's kind that comes with the package, for tests and first steps.

    Returns:
        A fresh tokenizer, which the caller may change.
    """
    return PreTrainedTokenizerFast.from_pretrained(TINY_TOKENIZER_DIR)


def load_tokenizer(name: str, option: str = "--tokenizer") -> PreTrainedTokenizerBase:
    """Load a tokenizer by folder, checkpoint or Hub id; "tiny" is the one that comes with the package.

    Args:
        option: what error messages begin with.

    Raises:
        InputError: there is no such tokenizer.
    """
    from ..models.checkpoints import load_tokenizer_of  # brings torch
    from ..models.names import check_name

    if name == "tiny":
        return tiny_tokenizer()
    check_name(name, option)
    return load_tokenizer_of(name)
