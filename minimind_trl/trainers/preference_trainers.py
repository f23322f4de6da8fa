"""TRL's DPOTrainer and RewardTrainer on pairs of answers."""

from collections.abc import Iterator
from contextlib import contextmanager
from itertools import islice

import torch
from accelerate.utils import is_peft_model
from datasets import Dataset, IterableDataset
from torch import nn
from trl import DPOTrainer, RewardTrainer
from trl.trainer.utils import use_adapter

from ..evaluation.pairs import answer_log_probs, pair_rewards
from ..internals import PairHooks
from ..reports.samples import AT_A_MOMENT, Sample, rounded, shown_prompt
from .layer_compilation import LayerCompilation
from .lm_head import add_learned_positions_head
from .sample_recording import LOOKED_AT, cut_tokens, cut_values, varied
from .tokenized_pairs import DPO_TOKENS, REWARD_TOKENS, has_tokens, pairs_for_dpo, pairs_for_reward
from .trainer_mixin import TrainerMixin, first_batches


class PairsTrainer(TrainerMixin, PairHooks):
    """A mixin that counts the pairs which TRL's trainer drops, and records samples of held-out pairs.

    Pairs that the mixture has tokenized are not tokenized again.
    """

    sample_kind: str
    token_columns: tuple[str, ...]  # of a mixture's tokens, those that the trainer takes

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
        self.held_out = held_out  # as text
        self.rows_dropped = {"train": _missing(self.train_dataset, train_dataset)}
        if held_out is not None:
            self.rows_dropped["validation"] = _missing(self.eval_dataset, held_out)

    def evaluate(self, *args, **kwargs):
        figures = super().evaluate(*args, **kwargs)
        if self.held_out is not None and self.wants_samples(self.sample_kind) and self.whole_model() is not None:
            with self.untimed(), torch.no_grad():
                pairs = varied(islice(self.held_out, LOOKED_AT))
                samples = (self.pair_sample(row) for row in pairs)
                self.add_samples(self.sample_kind, list(islice(filter(None, samples), AT_A_MOMENT // 2)))
        return figures

    def pair_sample(self, row: dict) -> Sample | None:
        """What to show of a held-out pair; None for one that is too long."""
        raise NotImplementedError

    def prepare_dataset(self, dataset, processing_class, args, dataset_name):
        if not has_tokens(dataset, self.token_columns):
            return super().prepare_dataset(dataset, processing_class, args, dataset_name)
        with args.main_process_first(desc="preparing pairs"):
            return self.cut_pairs(dataset, args)

    def cut_pairs(self, pairs: Dataset | IterableDataset, args) -> Dataset | IterableDataset:
        """Pairs that the mixture has tokenized, in the columns of the trainer, without those that it drops."""
        raise NotImplementedError


class MiniMindDPOTrainer(LayerCompilation, PairsTrainer, DPOTrainer):
    """DPOTrainer with our metrics. It cuts answers to `max_length`, and drops pairs whose prompt leaves no room."""

    drop_reason = "a prompt of max_length={} tokens or more"
    sample_kind, token_columns = "pair", DPO_TOKENS

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
        with self.untimed():
            self.record_answers(self.held_out or ())
        return figures

    def cut_pairs(self, pairs: Dataset | IterableDataset, args) -> Dataset | IterableDataset:
        # Cut to the end, every answer has tokens to learn from.
        return pairs_for_dpo(pairs, args.max_length if args.truncation_mode == "keep_start" else None)

    def pair_sample(self, row: dict) -> Sample | None:
        options = {"max_length": self.args.max_length, "bf16": self.args.bf16}
        answers = answer_log_probs(self.whole_model(), self.processing_class, row, **options)
        with self._whole_reference() as reference:
            if answers is None or reference is None:
                return None
            references = answer_log_probs(reference, self.processing_class, row, **options)
        sample = {"prompt": shown_prompt(row["prompt"]), "source": row.get("source")}
        for side, (ids, ours), (_, theirs) in zip(("chosen", "rejected"), answers, references, strict=True):
            ratios = ours - theirs
            sample[side] = {
                **cut_tokens(self.processing_class, ids),
                "log_ratios": cut_values(ratios),
                "log_ratio": rounded([ratios.sum().item()])[0],
            }
        return sample

    @contextmanager
    def _whole_reference(self) -> Iterator[nn.Module | None]:
        """The reference model within the block; None if its log-probabilities were computed beforehand."""
        model = self.whole_model()
        if self.ref_model is not None:
            yield self.accelerator.unwrap_model(self.ref_model)
        elif is_peft_model(model):
            with use_adapter(model, "ref" if "ref" in model.peft_config else None):
                yield model
        else:
            yield None


class MiniMindRewardTrainer(LayerCompilation, PairsTrainer, RewardTrainer):
    """RewardTrainer with our metrics. It cuts no row, since the reward is read at the last token."""

    drop_reason = "longer than max_length={}"
    sample_kind, token_columns = "score", REWARD_TOKENS

    def cut_pairs(self, pairs: Dataset | IterableDataset, args) -> Dataset | IterableDataset:
        return pairs_for_reward(pairs, args.max_length)

    def pair_sample(self, row: dict) -> Sample | None:
        options = {"max_length": self.args.max_length, "bf16": self.args.bf16}
        scores = pair_rewards(self.whole_model(), self.processing_class, row, **options)
        if scores is None:
            return None
        sides = {side: row[side][-1].get("content") for side in ("chosen", "rejected")}
        return {
            "prompt": shown_prompt(row["prompt"]),
            "source": row.get("source"),
            **sides,
            "scores": rounded(scores.tolist()),
        }


def _missing(prepared: Dataset | IterableDataset, rows: Dataset | IterableDataset) -> int:
    """How many rows a trainer has dropped; 0 for a stream, whose length is unknown."""
    return 0 if isinstance(prepared, IterableDataset) else len(rows) - len(prepared)
