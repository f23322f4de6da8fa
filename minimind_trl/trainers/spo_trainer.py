"""Single-stream policy optimization, and self-play, on GRPOTrainer's rollouts."""

import json
import math
from typing import Any, ClassVar

import torch
from datasets import Dataset, IterableDataset
from torch import Tensor, nn
from trl.trainer.utils import pad

from ..errors import InputError
from .advantages import k3
from .opponents import KeepSnapshots, OpponentPool, wins_over
from .reward_scale import RewardScale
from .rollout import Rollout, loss_mask
from .rollout_engine import TEMPLATE_KWARGS
from .rollout_trainer import RolloutTrainer
from .spo_config import SPOConfig
from .stored_answers import Answers, pack_answers, unpack_answers
from .value_tracker import GlobalTracker, PromptTracker

PROMPT_NUMBER = "prompt_number"  # the column with the number of a row's prompt; rows with equal prompts share it


class SPOTrainer(RolloutTrainer):
    """Single-stream Policy Optimization (arXiv 2509.13232): one completion per prompt, and no group.

    The algorithm is `training_batch`. The loss is GRPOTrainer's clipped surrogate (0.2 and 0.28), with an optional KL
    to the reference. How often a prompt comes back follows from its weight and not from epochs. Rows with the same
    prompt share its history (with an environment, which adds to the prompt, rows that are equal in all columns do).
    Trackers, stored answers, draws and opponents are the same in every process, and in checkpoints.

    Metrics of training, in addition to TRL's: `policy_loss`, `rho`, `baseline`, `baseline_brier` (the mean of
    (v - r)^2), `advantage_mean` and `advantage_std` (before normalization), `effective_prompts` (of the sampling
    weights: (sum w)^2 / sum w^2), and in self-play `win_rate`, `opponent_age` (how many steps ago the opponent was the
    policy), `win_rate/initial` and `win_rate/latest` (against the first and the newest policy of the pool). Held-out:
    `eval_win_rate`, greedily against the initial policy.

    A completion without any reward changes neither the policy nor a tracker, and is not stored. If only some reward
    functions give one, the range is theirs.

    Args:
        args: an `SPOConfig`.
        others: as for `RolloutTrainer`.
    """

    method = "SPO"
    paper: ClassVar[dict[str, str]] = {
        "title": "Single-stream Policy Optimization",
        "id": "2509.13232",
        "citation": """@article{xu2025singlestream,
    title        = {{Single-stream Policy Optimization}},
    author       = {Zhongwen Xu and Zihan Ding},
    year         = 2025,
    eprint       = {arXiv:2509.13232},
}""",
    }
    config_class, shares_state = SPOConfig, True

    def __init__(self, model, reward_funcs=None, args: SPOConfig | None = None, train_dataset=None, *rest, **kwargs):
        if train_dataset is None:
            raise ValueError("SPO needs a train_dataset: it keeps a record of every prompt")
        if isinstance(train_dataset, IterableDataset):
            raise InputError("SPO keeps a record of every prompt and cannot train on a stream: set streaming: false")
        super().__init__(model, reward_funcs, args, train_dataset, *rest, **kwargs)
        args = self.args
        numbers = prompt_numbers(self.train_dataset, whole_rows=self.environment_factories is not None)
        self.train_dataset = self.train_dataset.add_column(PROMPT_NUMBER, numbers)
        self._number_of_row = torch.tensor(numbers)
        self.reward_scale = RewardScale(
            self.reward_funcs, self.reward_func_names, self.reward_weights, args.reward_range
        )
        bounds = {"half_life": args.rho_half_life, "rho_min": args.rho_min, "rho_max": args.rho_max}
        per_prompt = args.tracker == "prompt"
        self.tracker = PromptTracker(max(numbers) + 1, **bounds) if per_prompt else GlobalTracker(**bounds)
        self.initialized = not (per_prompt and args.init_rollouts)
        self.last_answers: Answers = {}
        self.draws = torch.Generator().manual_seed(args.seed)
        self.opponents = self._opponent_pool() if args.opponent else None

    # The algorithm (Algorithm 1 of the paper), up to the advantages; the loss is GRPOTrainer's.

    def training_batch(self, rows: list[dict]) -> dict[str, Any]:
        # 0. Once: answer every prompt `init_rollouts` times, to start its tracker there.
        if not self.initialized:
            self._initialize()

        # 1. Prompts: drawn with weight sqrt(v (1 - v)) + floor, without replacement within a batch.
        if self.args.tracker == "prompt" and self.args.prioritized_sampling:
            rows = self._draw_rows(len(rows))

        # 2. Rollout: one completion per prompt, scored by the reward functions. What the trackers of prompts need of
        #    its log-probabilities is stored by the loss.
        rollout = self.collect_rollout(rows, with_logps=self.args.tracker == "global")

        # 3. Rewards in [0, 1]; in self-play 1, 1/2 or 0 for a win, draw or loss against an earlier policy.
        rewards = self.reward_scale.normalize(rollout.all_rewards)
        if self.opponents is not None:
            rewards = self._wins(rollout, rewards)

        # 4. - 6. Baselines from the tracker, its update, and advantages, for the rewards of all processes.
        advantages_of = self._prompt_advantages if self.args.tracker == "prompt" else self._global_advantages
        rewards = rewards.double().cpu()
        advantages = advantages_of(rollout, rewards).to(rollout.rewards)
        numbers = torch.tensor([row[PROMPT_NUMBER] for row in rollout.rows])
        to_store = numbers.masked_fill(self.own_part(rewards, len(numbers)).isnan(), -1).to(advantages.device)
        return self.batch_of(rollout, self.own_part(advantages, len(numbers)), to_store=to_store)

    def minibatch_loss(self, model: nn.Module, inputs: dict[str, Any]) -> Tensor:
        loss, outputs = self.policy_loss(model, inputs, self.beta)
        if self.args.tracker == "prompt" and self.model.training:
            old_logps = inputs["old_per_token_logps"]
            self._store(inputs, outputs.log_probs if old_logps is None else old_logps)
        return loss

    def _prompt_advantages(self, rollout: Rollout, rewards: Tensor) -> Tensor:
        numbers = torch.tensor(self.gather_objects([row[PROMPT_NUMBER] for row in rollout.rows]))
        divergences = self.divergences(rollout)
        rewarded = ~rewards.isnan()
        if not rewarded.any():
            return torch.zeros_like(rewards)

        # 4. Baselines: what each prompt is expected to get, before its reward is known.
        baselines = self.tracker.baselines(numbers)

        # 5. Update: the further the policy has moved since it last answered a prompt, the less of its history is kept.
        rho = self.tracker.update(numbers[rewarded], rewards[rewarded], divergences[rewarded])

        # 6. Advantages, normalized over the batch.
        self._log_baselines(rho.mean().item(), baselines, rewards)
        differences = rewards - baselines
        mean, deviation = differences[rewarded].mean(), differences[rewarded].std(correction=0)
        return ((differences - mean) / (deviation + 1e-8)).nan_to_num(0)

    def _global_advantages(self, rollout: Rollout, rewards: Tensor) -> Tensor:
        """MiniMind's train_spo.py: one tracker for all prompts, advantages within +-5 and not normalized."""
        low, high = self.reward_scale.range if self.opponents is None else (0.0, 1.0)
        sums = torch.stack([(rollout.logps * rollout.mask).sum(), rollout.mask.sum()]).double()
        logps, tokens = self.sum_over_processes(sums).tolist()
        if rewards.isnan().all() or not tokens:  # no answer has a reward, or all of them are masked
            return torch.zeros_like(rewards)
        baseline = self.tracker.baseline()  # 4.
        rho = self.tracker.update(rewards.nanmean().item(), logps / tokens)  # 5.
        self._log_baselines(rho, torch.full_like(rewards, baseline), rewards, high - low)
        return ((rewards - baseline) * (high - low)).clamp(-5, 5).nan_to_num(0)  # 6.

    def _log_baselines(self, rho: float, baselines: Tensor, rewards: Tensor, scale: float = 1.0) -> None:
        rewarded = ~rewards.isnan()
        differences = rewards[rewarded] - baselines[rewarded]
        self.record(
            rho=rho,
            baseline=baselines[rewarded].mean(),
            baseline_brier=differences.square().mean(),
            advantage_mean=scale * differences.mean(),
            advantage_std=scale * differences.std(correction=0),
        )

    # Prompts

    def _draw_rows(self, own_count: int) -> list[dict]:
        weights = self.tracker.weights(self.args.sampling_floor)
        of_prompts = torch.bincount(self._number_of_row) * weights
        count = own_count * self.accelerator.num_processes
        drawn = torch.multinomial(weights[self._number_of_row], count, generator=self.draws).tolist()
        self.record(effective_prompts=(of_prompts.sum() ** 2 / of_prompts.square().sum()).item())
        return [self.train_dataset[row] for row in self.own_part(drawn, own_count)]

    @torch.no_grad()
    def _initialize(self) -> None:
        """Answer every prompt `init_rollouts` times, and start the tracker from the rewards."""
        first = {number: row for row, number in reversed(list(enumerate(self._number_of_row.tolist())))}
        rows = [self.train_dataset[first[number]] for number in range(len(first))]
        count = self.args.init_rollouts
        with self.evaluation_mode(), self.sampling_at(self.temperature):
            answers = self.answer_all([row for row in rows for _ in range(count)])
            self.current_metrics.clear()
        self.tracker.initialize(self.reward_scale.normalize(answers["rewards"]).view(-1, count).cpu())
        self.initialized = True

    # How far the policy has moved

    def divergences(self, rollout: Rollout) -> Tensor:
        """(N,) how far the policy is, per token, from the one that last answered each prompt; 0 for a first answer.

        Measured on that answer: the mean over its tokens of the absolute change of their log-probability since then, as
        in the authors' code, or of its k3 (`rho_divergence`).
        """
        stored = [self.last_answers.get(row[PROMPT_NUMBER]) for row in rollout.rows]
        own = [0.0] * len(stored)
        if any(self.gather_objects([any(stored)])):
            # A placeholder for the others: all processes need equally many forward passes, as a sharded model must.
            moved = self._moved(rollout.tensors, [answer or (torch.zeros(1), torch.zeros(1)) for answer in stored])
            own = [value if answer else 0.0 for value, answer in zip(moved, stored, strict=True)]
        return torch.tensor(self.gather_objects(own), dtype=torch.float64)

    @torch.no_grad()
    def _moved(self, prompts: dict[str, Any], answers: list[tuple[Tensor, Tensor]]) -> list[float]:
        def padded(parts: list[Tensor], value: float) -> Tensor:
            return pad(parts, padding_value=value, padding_side="right").to(self.accelerator.device)

        tensors = {
            "prompt_ids": prompts["prompt_ids"],
            "prompt_mask": prompts["prompt_mask"],
            "completion_ids": padded([ids.long() for ids, _ in answers], self.text_tokenizer.pad_token_id),
            "completion_mask": padded([torch.ones(len(ids), dtype=torch.long) for ids, _ in answers], 0),
        }
        then = padded([logps for _, logps in answers], math.nan)
        now, _ = self.logps_of(self.model, tensors)
        mask = ~then.isnan()
        log_ratio = torch.where(mask, now - then, 0.0)
        moved = k3(log_ratio) if self.args.rho_divergence == "k3" else log_ratio.abs()
        return (moved.sum(1) / mask.sum(1).clamp(min=1)).tolist()

    def _store(self, inputs: dict[str, Any], logps: Tensor) -> None:
        """Keep the answers of a minibatch, with the log-probabilities (B, T) of the policy that wrote them."""
        own, lengths = [], inputs["completion_mask"].sum(1).tolist()
        logps = logps[:, -inputs["completion_ids"].shape[1] :].detach()
        logps = logps.masked_fill(loss_mask(inputs) == 0, math.nan)  # tokens of tools, and padding
        for place, (number, length) in enumerate(zip(inputs["to_store"].tolist(), lengths, strict=True)):
            if not length or number < 0:  # length 0: truncated and masked; -1: without a reward
                continue
            ids = inputs["completion_ids"][place, :length].to("cpu", torch.int32, copy=True)
            own.append((number, (ids, logps[place, :length].to("cpu", torch.float32, copy=True))))
        self.last_answers.update(self.gather_objects(own))

    # Self-play

    def _opponent_pool(self) -> OpponentPool:
        if self.tools or self.environment_factories is not None or self.rollout_func:
            raise InputError(
                "--opponent snapshot: the opponent answers in one turn, without tools, environments or a rollout_func, "
                "so that a win would not be the policy's: leave those out, or the opponent"
            )
        if self.is_deepspeed_enabled or self.is_fsdp_enabled:
            raise InputError("--opponent snapshot needs whole weights in every process: no DeepSpeed, no FSDP")
        pool = OpponentPool(self.accelerator.unwrap_model(self.model), self.args.opponent_pool)
        self.add_callback(KeepSnapshots(pool, lambda: self.accelerator.unwrap_model(self.model)))
        return pool

    def _wins(self, rollout: Rollout, rewards: Tensor) -> Tensor:
        """(N,): 1, 1/2 or 0 where an answer beats, equals or loses to an opponent's answer to the same prompt."""
        index = int(torch.randint(len(self.opponents.snapshots), (1,), generator=self.draws))
        step, _ = self.opponents.snapshots[index]
        wins = wins_over(self._opponent_rewards(index, rollout, self.temperature), rewards)
        rate = wins.nanmean()
        self.record(win_rate=rate, opponent_age=self.state.global_step - step)
        if step == 0:
            self.record(**{"win_rate/initial": rate})
        if index == len(self.opponents.snapshots) - 1:
            self.record(**{"win_rate/latest": rate})
        return wins

    def _opponent_rewards(self, index: int, rollout: Rollout, temperature: float) -> Tensor:
        """(N,) in [0, 1], of all processes."""
        opponent = self.opponents.load_snapshot(index).to(self.accelerator.device)
        prompts = zip(rollout.tensors["prompt_ids"], rollout.tensors["prompt_mask"], strict=True)
        with self.sampling_at(temperature):
            completions = self.complete(opponent, [ids[mask.bool()].tolist() for ids, mask in prompts])
        return self.reward_scale.normalize(self.rewards_of(rollout.rows, completions))

    def answer_figures(self, rollout: Rollout) -> dict[str, Tensor]:
        if self.opponents is None:
            return {}
        theirs = self._opponent_rewards(0, rollout, self.args.eval_temperature)
        wins = wins_over(theirs, self.reward_scale.normalize(rollout.all_rewards))
        return {"wins": self.own_part(wins, len(rollout.rows))}

    def summarize(self, figures: dict[str, Tensor]) -> dict[str, float]:
        return {"win_rate": figures["wins"].nanmean().item()} if "wins" in figures else {}

    # State

    def method_state(self) -> dict[str, Any]:
        return {
            "tracker": self.tracker.state(),
            "answers": dict(self.last_answers),
            "draws": self.draws.get_state(),
            "opponents": self.opponents and self.opponents.state(),
            "initialised": self.initialized,
        }

    def pack_method_state(self, state: dict[str, Any]) -> dict[str, Any]:
        return state | {"answers": pack_answers(state["answers"])}

    def load_method_state(self, state: dict[str, Any]) -> None:
        self.tracker.load(state["tracker"])
        answers, self.initialized = state["answers"], state["initialised"]
        self.last_answers = (
            unpack_answers(answers) if "lengths" in answers else dict(answers)
        )  # from a file, or this run's
        self.draws.set_state(state["draws"].cpu())
        if self.opponents is not None:
            self.opponents.load(state["opponents"])


def prompt_numbers(rows: Dataset, whole_rows: bool = False) -> list[int]:
    """A number for each row, from 0, the same for equal prompts; with `whole_rows` for rows equal in all columns."""
    columns = rows.column_names if whole_rows else [c for c in ("prompt", TEMPLATE_KWARGS) if c in rows.column_names]
    known: dict[str, int] = {}
    texts = (json.dumps(row, sort_keys=True, default=str) for row in rows.select_columns(columns))
    return [known.setdefault(text, len(known)) for text in texts]
