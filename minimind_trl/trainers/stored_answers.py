"""The last answer to each prompt, with its log-probabilities at that time, as SPO keeps them."""

import torch
from torch import Tensor

Answers = dict[int, tuple[Tensor, Tensor]]
"""By the prompt's number: token ids (L,) int32, and log-probabilities (L,) float32, NaN for the tokens of tools."""


def pack_answers(answers: Answers) -> dict[str, Tensor]:
    """Answers as four tensors: 8 bytes a token in a file, without a header for each answer."""
    ids, logps = ([pair[part] for pair in answers.values()] for part in (0, 1))
    return {
        "numbers": torch.tensor(list(answers), dtype=torch.long),
        "lengths": torch.tensor([len(part) for part in ids], dtype=torch.long),
        "ids": torch.cat(ids) if ids else torch.empty(0, dtype=torch.int32),
        "logps": torch.cat(logps) if logps else torch.empty(0),
    }


def unpack_answers(state: dict[str, Tensor]) -> Answers:
    lengths = state["lengths"].tolist()
    pairs = zip(*(state[name].cpu().split(lengths) for name in ("ids", "logps")), strict=True)
    return dict(zip(state["numbers"].tolist(), pairs, strict=True))
