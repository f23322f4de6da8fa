"""A row as the model sees it: its tokens as text, with marks around those that the loss counts."""

from rich.text import Text
from transformers import PreTrainedTokenizerBase

from ..tokenization import decode_tools, pieces, tokenize_conversation, tokenize_text, with_training_template
from .turns import Row


def marked_row(row: Row, tokenizer: PreTrainedTokenizerBase, limit: int | None = None, on_long: str = "cut") -> Text:
    """A row's tokens as text, trained tokens in green between ⟦ and ⟧.

    Args:
        row: a converted row of any phase; the tokens that a mixture has kept of it are taken as they are.
        tokenizer: one with a chat template, unless the row is plain text.
        limit: the most tokens of a row; None for no limit.
        on_long: what happens beyond the limit. `cut` shows the lost tokens dimmed behind ✂, `chunk` marks each piece
            separately, `keep` and `drop` show the whole row.
    """
    tools = decode_tools(row.get("tools"))
    limits = (limit, on_long)
    if row.get("input_ids") is not None:
        mask = row.get("assistant_masks")
        return _marked(tokenizer, row["input_ids"], None if mask is None else list(mask), *limits)
    if "text" in row:
        return _marked(tokenizer, *tokenize_text(tokenizer, row["text"], row.get("untrained")), *limits)
    if "messages" in row:
        return _conversation(tokenizer, row["messages"], tools, *limits)
    if row.get("prompt_ids") is not None:
        return _marked(tokenizer, row["prompt_ids"], [])
    if "chosen" not in row:
        options = {"tools": tools, "add_generation_prompt": True, "return_dict": False}
        return _marked(tokenizer, tokenizer.apply_chat_template(row["prompt"], **options), [])
    if (start := row.get("prompt_tokens")) is not None:
        sides = (row["chosen_ids"], row["rejected_ids"])
        better, worse = (_marked(tokenizer, ids, [at >= start for at in range(len(ids))], *limits) for ids in sides)
    else:
        sides = (row["prompt"] + row[side] for side in ("chosen", "rejected"))
        better, worse = (_conversation(tokenizer, messages, tools, *limits) for messages in sides)
    return Text("chosen:\n", style="bold") + better + Text("\nrejected:\n", style="bold") + worse


def _conversation(
    tokenizer: PreTrainedTokenizerBase, messages: list[Row], tools: list | None, limit: int | None, on_long: str
) -> Text:
    with_masks = with_training_template(tokenizer)
    return _marked(tokenizer, *tokenize_conversation(with_masks, messages, tools, assistant_only=True), limit, on_long)


def _marked(
    tokenizer: PreTrainedTokenizerBase,
    ids: list[int],
    mask: list[bool] | None,
    limit: int | None = None,
    on_long: str = "keep",
) -> Text:
    """Text of `ids`. `mask` says which are trained: None for all, [] for none."""
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
