"""TRL's DPOTrainer and RewardTrainer on pairs of answers."""

from datasets import Dataset, IterableDataset
from trl import DPOTrainer, RewardTrainer

from .lm_head import add_learned_positions_head
from .trainer_mixin import TrainerMixin, first_batches


class PairsTrainer(TrainerMixin):
    """A mixin that counts the pairs which TRL's trainer drops."""

    def __init__(
        self,
        *args,
        train_dataset: Dataset | IterableDataset,
        eval_dataset: Dataset | None = None,
        eval_batches: int | None = None,
        **kwargs,
    ):
        held_out = first_batches(eval_dataset, kwargs["args"], eval_batches)
        super().__init__(*args, train_dataset=train_dataset, eval_dataset=held_out, **kwargs)
        self.rows_dropped = {"train": _missing(self.train_dataset, train_dataset)}
        if held_out is not None:
            self.rows_dropped["validation"] = _missing(self.eval_dataset, held_out)


class MiniMindDPOTrainer(PairsTrainer, DPOTrainer):
    """DPOTrainer with our metrics. It cuts answers to `max_length`, and drops pairs whose prompt leaves no room."""

    drop_reason = "a prompt of max_length={} tokens or more"

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        if self.is_deepspeed_enabled:  # TRL's head assumes that the model is already sharded
            for model in filter(None, (self.model, self.ref_model)):
                add_learned_positions_head(self.accelerator.unwrap_model(model), for_preferences=True)

    def evaluate(self, *args, **kwargs):
        figures = super().evaluate(*args, **kwargs)
        if figures.get("eval_rewards/chosen") == figures.get("eval_rewards/rejected") == 0.0:
            # The policy still equals its reference, so every pair is a tie, which TRL counts as wrong.
            figures["eval_rewards/accuracies"] = 0.5
        return figures


class MiniMindRewardTrainer(PairsTrainer, RewardTrainer):
    """RewardTrainer with our metrics. It cuts no row, since the reward is read at the last token."""

    drop_reason = "longer than max_length={}"


def _missing(prepared: Dataset | IterableDataset, rows: Dataset | IterableDataset) -> int:
    """How many rows a trainer has dropped; 0 for a stream, whose length is unknown."""
    return 0 if isinstance(prepared, IterableDataset) else len(rows) - len(prepared)
