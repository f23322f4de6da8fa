"""Evaluation before training, when the model is not yet wrapped for several processes."""

from ..internals import TrainerHooks, replaced


class EarlyEvaluation(TrainerHooks):
    """`evaluate` before `train` leaves the model as `train` needs it."""

    def evaluate(self, *args, **kwargs) -> dict[str, float]:
        self._wrap_in_ddp()
        # No DeepSpeed until training makes its engine: transformers would make one that cannot train.
        has_engine = self.is_deepspeed_enabled and self.deepspeed is not None
        with replaced(self, is_deepspeed_enabled=has_engine):
            return super().evaluate(*args, **kwargs)

    def _wrap_in_ddp(self) -> None:
        """Wrap a model that training has not: evaluation marks it as prepared, and training would never wrap it."""
        has_own_engine = self.is_deepspeed_enabled or self.is_fsdp_enabled
        if self.accelerator.num_processes > 1 and not has_own_engine and self.model_wrapped is self.model:
            self.model_wrapped = self.accelerator.prepare_model(self.model)
