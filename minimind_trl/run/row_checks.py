"""What the doctor must know of a run's rows and chat template, which no log says."""

import json
from difflib import SequenceMatcher
from itertools import islice
from pathlib import Path
from statistics import median
from typing import Any

from ..data import LOCK
from ..data.schemas import Row
from ..evaluation.held_out import tokenize_rows
from ..models.checkpoints import load_tokenizer_of, tokenizer_folder
from ..tokenization import prepared_for_trl
from ..tokenization.masks import token_ids
from .run_context import RunContext

_SAMPLE = 256  # training rows
_COMPARED = 512  # tokens of an answer
_PROBE = [{"role": "user", "content": "Why?"}, {"role": "assistant", "content": "Because."}]


def row_checks(run: RunContext) -> dict[str, Any]:
    """Figures of the first training rows, for `recipe.json`.

    Returns:
        of these, what applies to the method:

        - `rows_cut`: share of the rows that are longer than `max_length`, unless they are dropped or continued;
        - `rows_with_end`: share of the conversations with an end of turn in the loss;
        - `answer_similarity`: median similarity of chosen and rejected answer, 0 to 1 (equal), over tokens;
        - `other_template`: whether the chat template renders otherwise than that of the checkpoint at the start;
        - `start_phase`: the phase of the mixture that this checkpoint was trained on.
    """
    rows = list(islice(run.data["train"], _SAMPLE))
    return _start_checks(run) | (_pair_checks if "chosen" in rows[0] else _length_checks)(rows, run)


def _length_checks(rows: list[Row], run: RunContext) -> dict[str, Any]:
    limit = getattr(run.config, "max_length", None)
    if "prompt" in rows[0] or limit is None:
        return {}
    whole = tokenize_rows(rows, run.tokenizer, None, run.config.assistant_only_loss)
    if run.mixer.on_long == "drop":
        whole = [row for row in whole if len(row[0]) <= limit]
    cut = [(ids[:limit], mask[:limit]) for ids, mask in whole] if run.mixer.on_long == "cut" else whole
    if not cut:
        return {}
    checks = {"rows_cut": sum(len(part[0]) < len(row[0]) for part, row in zip(cut, whole, strict=True)) / len(cut)}
    if "messages" in rows[0]:
        end = run.tokenizer.eos_token_id
        ends = [any(learned and token == end for token, learned in zip(ids, mask, strict=True)) for ids, mask in cut]
        checks["rows_with_end"] = sum(ends) / len(ends)
    return checks


def _pair_checks(rows: list[Row], run: RunContext) -> dict[str, Any]:
    answers = [[_content(row[side]) for row in rows] for side in ("chosen", "rejected")]
    chosen, rejected = (token_ids(run.tokenizer, texts, add_special_tokens=False) for texts in answers)
    return {"answer_similarity": median(map(_similarity, chosen, rejected))}


def _content(turns: list[dict]) -> str:
    return "\n".join((turn.get("reasoning_content") or "") + (turn.get("content") or "") for turn in turns)


def _similarity(one: list[int], other: list[int]) -> float:
    return SequenceMatcher(None, one[:_COMPARED], other[:_COMPARED], autojunk=False).ratio()


def _lock_of(start: str | None) -> dict[str, Any]:
    """The lock of a checkpoint's mixture; empty if it has none, or one that cannot be read."""
    try:
        return json.loads((Path(start or "") / LOCK).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}


def _start_checks(run: RunContext) -> dict[str, Any]:
    start, given = run.args.from_weight, run.args.tokenizer or run.args.chat_template
    lock = _lock_of(start)
    checks = {"start_phase": lock.get("phase")} if lock else {}
    if not start or not given or tokenizer_folder(start) is None:
        return checks
    own = prepared_for_trl(load_tokenizer_of(start))
    if own.chat_template and run.tokenizer.chat_template:
        checks["other_template"] = any(
            own.apply_chat_template(probe, tokenize=False, add_generation_prompt=asks)
            != run.tokenizer.apply_chat_template(probe, tokenize=False, add_generation_prompt=asks)
            for probe, asks in ((_PROBE, False), (_PROBE[:1], True))
        )
    return checks
