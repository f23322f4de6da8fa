"""Training stops at a loss or gradient that is not finite, before the optimizer's step."""

import math
from typing import Any

import torch

from ..errors import TrainingError
from ..internals import TrainerHooks


class NonFiniteError(TrainingError):
    """A loss or gradient is not finite. Every process raises it in the same step.

    Attributes:
        batch: the one with that loss; None for a gradient, and in the other processes.
    """

    def __init__(self, message: str, batch: Any = None):
        super().__init__(message)
        self.batch = batch


class FiniteLoss(TrainerHooks):
    """Raises `NonFiniteError` for a loss or gradient that is not finite.

    With fp16, infinite gradients pass: they are how the loss scale is found, and its scaler skips those steps.
    """

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        result = super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        if self.is_deepspeed_enabled and torch.is_grad_enabled():  # its engine steps within `training_step`
            self._check_loss(result[0] if return_outputs else result, inputs)
        return result

    def training_step(self, model, inputs, num_items_in_batch=None) -> torch.Tensor:
        loss = super().training_step(model, inputs, num_items_in_batch)
        self._check_loss(loss, inputs)
        return loss

    def get_grad_norm(self, model, grad_norm=None):
        norm = super().get_grad_norm(model, grad_norm)
        if norm is not None and not self.args.fp16 and not math.isfinite(norm):
            did = "saved" if self.is_deepspeed_enabled else "changed"  # DeepSpeed's engine has already stepped
            raise NonFiniteError(
                f"the norm of the gradient is {float(norm)}, though the loss is finite; stopped before it {did} the "
                "weights"
            )
        return norm

    def _check_loss(self, loss: torch.Tensor, batch: Any) -> None:
        bad = ~torch.isfinite(loss.detach()).all()
        # All processes must stop together: the others would step with the gradients of the bad one.
        bad_anywhere = bad if self.accelerator.num_processes == 1 else self.accelerator.gather(bad.int()).any()
        if not bad_anywhere:
            return
        if bad:
            raise NonFiniteError(f"the loss is {loss.item()}; stopped before it changed the weights", batch)
        raise NonFiniteError("another process's loss is not finite; stopped before it changed the weights")
