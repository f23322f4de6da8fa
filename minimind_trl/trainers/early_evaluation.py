"""Evaluation before training, when the model is not yet wrapped for several processes."""

from collections.abc import Iterator
from contextlib import contextmanager

from ..internals import TrainerHooks


class EarlyEvaluation(TrainerHooks):
    """`evaluate` before `train` leaves the model as `train` needs it."""

    def evaluate(self, *args, **kwargs) -> dict[str, float]:
        self._wrap_in_ddp()
        with self._without_new_engine():
            return super().evaluate(*args, **kwargs)

    def _wrap_in_ddp(self) -> None:
        """Wrap a model that training has not: evaluation marks it as prepared, and training would never wrap it."""
        has_own_engine = self.is_deepspeed_enabled or self.is_fsdp_enabled
        if self.accelerator.num_processes > 1 and not has_own_engine and self.model_wrapped is self.model:
            self.model_wrapped = self.accelerator.prepare_model(self.model)

    @contextmanager
    def _without_new_engine(self) -> Iterator[None]:
        """Evaluate without DeepSpeed until training makes its engine: transformers would make one that cannot train."""
        enabled = self.is_deepspeed_enabled
        self.is_deepspeed_enabled = enabled and self.deepspeed is not None
        try:
            yield
        finally:
            self.is_deepspeed_enabled = enabled
