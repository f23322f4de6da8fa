"""Log-probability, entropy and further figures of tokens, from their logits in passes that stay in the cache."""

import torch
from torch import Tensor

_IN_CACHE = 2**18  # logits: 1 MB as float32
_ON_A_GPU = 2**26
_MOST_PARTS = 256
FOR_PREFERENCES = ("mean_logits", "log_sum_sq_probs")


def token_figures(
    logits: Tensor, targets: Tensor, temperature: float, for_preferences: bool = False, entropy_gradient: bool = False
) -> dict[str, Tensor]:
    """Figures of N tokens, (N,) each: `log_probs`, which has a gradient, `entropy` and `is_top1`.

    Args:
        logits: (N, V); they are divided by the temperature in float32.
        targets: (N,), the tokens.
        for_preferences: also `FOR_PREFERENCES`.
        entropy_gradient: `entropy` has a gradient, too; this keeps more in memory.
    """
    if entropy_gradient:
        figures = _figures(logits, targets, temperature, for_preferences)[0]
        return {name: part if name in ("log_probs", "entropy") else part.detach() for name, part in figures.items()}
    names = ("log_probs", "entropy", "is_top1", *(FOR_PREFERENCES if for_preferences else ()))
    return dict(zip(names, _TokenFigures.apply(logits, targets, temperature, for_preferences), strict=True))


def _figures(logits: Tensor, targets: Tensor, temperature: float, for_preferences: bool) -> tuple[dict, Tensor]:
    """The figures, and the probabilities (N, V)."""
    logits = logits.float() if temperature == 1 else logits.float() / temperature
    log_softmax = logits.log_softmax(-1)
    probabilities = log_softmax.exp()
    figures = {
        "log_probs": log_softmax.gather(-1, targets[:, None]).squeeze(-1),
        "entropy": -(probabilities * log_softmax).sum(-1),
        "is_top1": logits.argmax(-1) == targets,
    }
    if for_preferences:
        figures |= {"mean_logits": logits.mean(-1), "log_sum_sq_probs": (2 * log_softmax).logsumexp(-1)}
    return figures, probabilities


class _TokenFigures(torch.autograd.Function):
    """In parts of few rows; keeps the probabilities for the backward pass, in the logits' type."""

    @staticmethod
    def forward(ctx, logits: Tensor, targets: Tensor, temperature: float, for_preferences: bool) -> tuple[Tensor, ...]:
        probabilities, found = torch.empty_like(logits), []
        for part in _parts(logits):
            figures, exact = _figures(logits[part], targets[part], temperature, for_preferences)
            found.append([*figures.values()])
            probabilities[part] = exact
        log_probs, *others = (torch.cat(figure) for figure in zip(*found, strict=True))
        ctx.save_for_backward(probabilities, log_probs, targets)
        ctx.temperature = temperature
        ctx.mark_non_differentiable(*others)
        return log_probs, *others

    @staticmethod
    def backward(ctx, gradient: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
        probabilities, log_probs, targets = ctx.saved_tensors
        gradient, of_logits = gradient / ctx.temperature, torch.empty_like(probabilities)
        for part in _parts(probabilities):
            of_logits[part] = probabilities[part] * -gradient[part, None]  # float32, as the gradient is
        of_targets = -torch.expm1(log_probs) * gradient  # where 1 - p would be lost in the probabilities' type
        of_logits.scatter_(-1, targets[:, None], of_targets.to(of_logits.dtype)[:, None])
        return of_logits, None, None, None


def _parts(logits: Tensor) -> list[slice]:
    """Rows of (N, V) to compute at once; one part at least."""
    at_once = _IN_CACHE if logits.device.type == "cpu" else _ON_A_GPU
    rows = max(1, at_once // logits.shape[-1], len(logits) // _MOST_PARTS)
    return [slice(start, start + rows) for start in range(0, max(len(logits), 1), rows)]
