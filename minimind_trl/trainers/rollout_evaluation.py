"""Held-out evaluation of the online trainers: greedy answers, and a loss on answers that were sampled once."""

import math
import random
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor
from trl.trainer.utils import get_callable_name

from ..evaluation.held_out import evaluating
from ..internals import replaced
from ..progress import progress
from ..reports.samples import rounded, shown_prompt
from .reference_model import ReferenceModel
from .rollout import Rollout, weighted_sums
from .rollout_rewards import RolloutRewards
from .sample_recording import PROMPTS, prompt_key, right_answer, varied

_FROZEN = ("prompt_ids", "prompt_mask", "completion_ids", "completion_mask")


class RolloutEvaluation(RolloutRewards, ReferenceModel):
    """Answers held-out prompts, and leaves weights and random streams of the training as they are.

    The figures are listed in the docstring of `RolloutTrainer`. A subclass adds its own by two hooks: `answer_figures`
    gives numbers for each answer, and `summarize` makes figures from those of all answers.
    """

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.frozen_answers: dict[str, list[dict]] = {}  # for `eval_policy_loss`, by prefix of the metrics

    def answer_figures(self, rollout: Rollout) -> dict[str, Tensor]:
        """Figures of the answers, a row for each, that `summarize` needs."""
        return {}

    def summarize(self, figures: dict[str, Tensor]) -> dict[str, float]:
        """More held-out figures from `answer_figures` of all answers."""
        return {}

    def evaluate(self, eval_dataset=None, ignore_keys=None, metric_key_prefix="eval") -> dict[str, float]:
        rows = self.eval_dataset if eval_dataset is None else eval_dataset
        if rows is None:
            raise ValueError("evaluation needs an eval_dataset")
        if isinstance(rows, dict):
            parts = [self.evaluate(part, ignore_keys, f"{metric_key_prefix}_{name}") for name, part in rows.items()]
            return {name: value for part in parts for name, value in part.items()}
        rows = list(rows)
        with self.untimed():
            if metric_key_prefix not in self.frozen_answers:
                with self.evaluation_mode():
                    self.frozen_answers[metric_key_prefix] = self._sample_frozen(rows)
            with self.evaluation_mode():
                figures = self._held_out_figures(rows, self.frozen_answers[metric_key_prefix])
                figures = {f"{metric_key_prefix}_{name}": value for name, value in figures.items()}
                self.current_metrics.clear()  # GRPOTrainer's, which weigh batches equally and not completions
                self.log(figures)
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, figures)
        return figures

    def answer(self, rows: list[dict]) -> list[dict[str, Any]]:
        """One sampled completion for each row, without effect on the training: `{prompt, completion, reward}`.

        The reward is None for a completion without any. All processes must call it with the same rows, and get the same
        answers.
        """
        answers = []
        with self.evaluation_mode(), self.sampling_at(self.temperature):
            for local, count in self._batches(rows):
                rollout = self.generate_rollout(local)
                completions = zip(rollout.tensors["completion_ids"], rollout.mask, strict=True)
                texts = self.text_tokenizer.batch_decode(
                    [ids[mask.bool()].tolist() for ids, mask in completions], skip_special_tokens=True
                )
                own = [
                    {"prompt": row["prompt"], "completion": text, "reward": None if math.isnan(reward) else reward}
                    for row, text, reward in zip(local, texts, rollout.rewards.tolist(), strict=True)
                ]
                answers += self.gather_objects(own)[:count]
            self.current_metrics.clear()
        return answers

    @contextmanager
    def evaluation_mode(self) -> Iterator[None]:
        """Without gradients, compiled layers and masking of truncated answers; with its own, equal random streams."""
        seed, python, numpy = self.args.seed + self.args.process_index, random.getstate(), np.random.get_state()
        all_answers = replaced(self, mask_truncated_completions=False)
        with torch.random.fork_rng(), evaluating(self.model), all_answers, self.without_compilation():
            random.seed(seed)
            np.random.seed(seed)
            torch.manual_seed(seed)
            try:
                yield
            finally:
                random.setstate(python)
                np.random.set_state(numpy)

    def _held_out_figures(self, rows: list[dict], frozen: list[dict]) -> dict[str, float]:
        loss = self._frozen_loss(frozen)
        repeats = self.args.num_generations_eval or 1 if self.args.eval_temperature else 1
        with self.sampling_at(self.args.eval_temperature):
            columns = self.answer_all([row for row in rows for _ in range(repeats)], self._record_answers)
        tokens, rewards = columns["tokens"], columns["rewards"]
        sums = weighted_sums(rewards, self.reward_weights)
        rewarded = sums[~sums.isnan()]
        figures = {
            "loss": loss,
            "policy_loss": loss,
            "reward": rewarded.mean().item(),
            "reward_std": rewarded.std(correction=0).item() if len(rewarded) else math.nan,
            **{f"rewards/{name}": rewards[:, i].nanmean().item() for i, name in enumerate(self.reward_func_names)},
            "entropy": (columns["entropy"].sum() / tokens.sum()).item(),
            "eos_rate": columns["ended"].mean().item(),
            "completion_length": tokens.mean().item(),
            "frac_reward_none": 1 - len(rewarded) / len(sums),
            "prompts": len(rows),
            "answers": len(sums),
        }
        for place, function in enumerate(self.watch_funcs):
            scores = columns["watched"][:, place]
            scores = scores[~scores.isnan()]
            name = f"watch/{get_callable_name(function)}"
            figures |= {name: scores.mean().item(), f"{name}_std": scores.std(correction=0).item()}
        figures |= self.tool_figures(columns)
        if "kl" in columns:
            figures["kl"] = (columns["kl"].sum() / tokens.sum()).item()
        figures |= self.summarize(columns)
        return {name: value for name, value in figures.items() if not math.isnan(value)}  # NaN: no answer has a reward

    def answer_all(self, rows: list[dict], on_rollout: Callable[[Rollout], None] | None = None) -> dict[str, Tensor]:
        """Figures of the answers to all rows: tensors with a row for each answer.

        Args:
            on_rollout: called with each batch of this process's answers.
        """
        columns: dict[str, list[Tensor]] = defaultdict(list)
        for local, count in self._batches(rows):
            rollout = self.generate_rollout(local)
            rollout.logps, entropies = self.logps_of(self.model, rollout.tensors, entropy=True)
            own = {
                "tokens": rollout.mask.sum(1).float(),
                "entropy": (entropies * rollout.mask).sum(1),
                "ended": rollout.ended.float(),
                **self.answer_figures(rollout),
            }
            own |= self.tool_columns(rollout)
            if rollout.ref_logps is not None:
                own["kl"] = (self.kl_to_reference(rollout.tensors) * rollout.mask).sum(1)
            for name, column in own.items():
                columns[name].append(self.accelerator.gather(column.contiguous())[:count])
            columns["rewards"].append(rollout.all_rewards[:count])
            if self.watch_funcs:
                columns["watched"].append(self.watched_scores(rollout)[:count])
            if on_rollout is not None:
                on_rollout(rollout)
        all_answers = {name: torch.cat(parts) for name, parts in columns.items()}
        self.expect_rewards(all_answers["rewards"])
        return all_answers

    def _record_answers(self, rollout: Rollout) -> None:
        """Keep a few of the answers of the evaluation's first batch."""
        if not self.wants_samples("answer"):
            return
        completions = zip(rollout.tensors["completion_ids"], rollout.mask, strict=True)
        answers = self.text_tokenizer.batch_decode(
            [ids[mask.bool()].tolist() for ids, mask in completions], skip_special_tokens=True
        )
        samples = {}
        for row, answer, reward in zip(rollout.rows, answers, rounded(rollout.rewards.tolist()), strict=True):
            shown = {"prompt": shown_prompt(row["prompt"]), "right": right_answer(row)}
            samples.setdefault(prompt_key(row), (row, shown | {"answer": answer, "reward": reward}))
        chosen = varied(row | {"sample": sample} for row, sample in samples.values())
        self.add_samples("answer", [row["sample"] for row in chosen[:PROMPTS]])

    def _batches(self, rows: list[dict]) -> Iterator[tuple[list[dict], int]]:
        """This process's rows of every batch, and the size of the whole batch; the last row fills it up."""
        world, size = self.accelerator.num_processes, self.args.per_device_eval_batch_size
        starts = range(0, len(rows), world * size)
        for start in progress("answering", len(starts), "batches", starts):
            batch = rows[start : start + world * size]
            each = -(-len(batch) // world)
            filled = batch + [batch[-1]] * (each * world - len(batch))
            yield [dict(row) for row in self.own_part(filled, each)], len(batch)

    def _sample_frozen(self, rows: list[dict]) -> list[dict]:
        """Answers of the policy as it is now, with log-probabilities; their normalized rewards are their advantages."""
        frozen, rewards = [], []
        with self.sampling_at(self.temperature):
            for local, count in self._batches(rows):
                rollout = self.generate_rollout(local)
                logps, _ = self.logps_of(self.model, rollout.tensors)
                own_count = count - self.accelerator.process_index * len(local)
                kept = (torch.arange(len(local), device=logps.device) < own_count) & rollout.rewarded
                batch = {name: rollout.tensors[name] for name in _FROZEN}
                batch |= {"mask": rollout.mask * kept[:, None], "logps": logps, "advantages": rollout.rewards}
                frozen.append(batch)
                rewards.append(self.accelerator.gather(rollout.rewards)[:count])
        all_rewards = torch.cat(rewards)
        self.expect_rewards(all_rewards)
        given = all_rewards[~all_rewards.isnan()]
        mean, deviation = (given.mean(), given.std(correction=0)) if len(given) else (0.0, 1.0)
        for batch in frozen:
            batch["advantages"] = ((batch["advantages"] - mean) / (deviation + 1e-4)).nan_to_num(0)
        return frozen

    def _frozen_loss(self, frozen: list[dict]) -> float:
        """The clipped surrogate on frozen answers, mean over those with a reward."""
        sums = torch.zeros(2, dtype=torch.float64, device=self.accelerator.device)
        for batch in frozen:
            logps, _ = self.logps_of(self.model, batch)
            ratio, advantages, mask = (logps - batch["logps"]).exp(), batch["advantages"][:, None], batch["mask"]
            clipped = ratio.clamp(1 - self.epsilon_low, 1 + self.epsilon_high)
            losses = -torch.min(ratio * advantages, clipped * advantages) * mask
            lengths = mask.sum(1)
            sums += torch.stack([(losses.sum(1) / lengths.clamp(min=1)).sum(), (lengths > 0).sum()]).double()
        loss, completions = self.sum_over_processes(sums).tolist()
        return loss / max(completions, 1)
