"""What a step changes before it is complete, and how that is undone."""

import random
from typing import Any

import numpy as np
import torch

from ..internals import TrainerHooks


class StepSnapshot(TrainerHooks):
    """Base of the mixins with state that a checkpoint holds and a step changes before it is complete.

    `GracefulShutdown` takes a snapshot after every step, and goes back to it where the next step fails.
    """

    def snapshot(self) -> dict[str, Any]:
        """That state, besides weights and optimizer; copies, which later changes do not reach."""
        on_gpu = torch.cuda.get_rng_state() if torch.cuda.is_initialized() else None
        return {"random": (random.getstate(), np.random.get_state(), torch.get_rng_state(), on_gpu)}

    def restore_snapshot(self, snapshot: dict[str, Any]) -> None:
        """Go back to what `snapshot` returned."""
        python, numpy, cpu, on_gpu = snapshot["random"]
        random.setstate(python)
        np.random.set_state(numpy)
        torch.set_rng_state(cpu)
        if on_gpu is not None:
            torch.cuda.set_rng_state(on_gpu)
