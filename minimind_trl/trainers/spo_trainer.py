"""Single-stream policy optimisation, and self-play, on GRPOTrainer's rollouts."""

import math
from typing import Any, ClassVar

import torch
from datasets import IterableDataset
from torch import Tensor
from transformers import TrainerCallback
from trl.trainer.utils import pad

from ..errors import InputError
from .advantages import k3
from .opponents import OpponentPool
from .rollout_trainer import Rollout, RolloutTrainer
from .spo_config import SPOConfig
from .value_tracker import GlobalTracker, PromptTracker

PROMPT_NUMBER = "prompt_number"  # the column that tells which row of the training data a prompt is


class SPOTrainer(RolloutTrainer):
    """Single-stream Policy Optimization (arXiv 2509.13232): one completion per prompt against what it used to get.

    Rewards are mapped to [0, 1] from their declared range. A tracker's baseline is subtracted, and with
    `tracker="prompt"` the differences are normalised over the global batch. The loss is TRL's clipped surrogate (0.2
    and 0.28), with an optional KL to the reference. Prompts are drawn with weight `sqrt(v (1 - v)) + floor`, without
    replacement within a batch; how often a prompt comes back follows from that and not from epochs.

    How far the policy has moved since it last answered a prompt, which decides how much of the prompt's history counts,
    is estimated on that answer: the mean over its tokens of k3 of the log-probabilities then and now.

    Trackers, stored answers, draws and opponents are the same in every process, and in checkpoints.

    Metrics of training, beside TRL's: `policy_loss`, `rho`, `baseline`, `baseline_brier` (the mean of (v - r)^2),
    `advantage_mean`, `advantage_std` (before they are normalised), `effective_prompts` (of the sampling weights:
    (sum w)^2 / sum w^2), and in self-play `win_rate`, `opponent_age` (of how many steps ago the opponent's policy is),
    `win_rate/initial` and `win_rate/latest` (against the first and the newest policy of the pool); held-out
    `eval_win_rate`, greedily against the initial policy.

    An answer without any reward moves neither the policy nor a tracker, and is not stored. Where only some functions
    give one, the range is theirs.

    Args:
        args: an `SPOConfig`.
        others: as for `RolloutTrainer`.
    """

    _tag_names = ("trl", "spo")
    _name = "SPO"
    _paper: ClassVar[dict[str, str]] = {
        "title": "Single-stream Policy Optimization",
        "id": "2509.13232",
        "citation": """@article{xu2025singlestream,
    title        = {{Single-stream Policy Optimization}},
    author       = {Zhongwen Xu and Zihan Ding},
    year         = 2025,
    eprint       = {arXiv:2509.13232},
}""",
    }
    needs_logps = True

    def __init__(self, model, reward_funcs=None, args: SPOConfig | None = None, train_dataset=None, *rest, **more):
        if train_dataset is None:
            raise ValueError("SPO needs a train_dataset: it keeps a record of every prompt")
        if isinstance(train_dataset, IterableDataset):
            raise InputError("SPO keeps a record of every prompt and cannot train on a stream: set streaming: false")
        train_dataset = train_dataset.add_column(PROMPT_NUMBER, range(len(train_dataset)))
        super().__init__(model, reward_funcs, args, train_dataset, *rest, **more)
        self._ends: list[list[float]] | None = None  # lowest and highest weighted reward of each function
        self.reward_range = self._declared_range()
        bounds = {"half_life": args.rho_half_life, "rho_min": args.rho_min, "rho_max": args.rho_max}
        per_prompt = args.tracker == "prompt"
        self.tracker = PromptTracker(len(train_dataset), **bounds) if per_prompt else GlobalTracker(**bounds)
        self._answers: dict[int, tuple[list[int], list[int], list[float]]] = {}
        self._draws = torch.Generator().manual_seed(args.seed)
        self.opponents = None
        if args.opponent:
            if self.is_deepspeed_enabled or self.is_fsdp_enabled:
                raise InputError("--opponent snapshot needs whole weights in every process: no DeepSpeed, no FSDP")
            self.opponents = OpponentPool(self.accelerator.unwrap_model(self.model), args.opponent_pool)
            self.add_callback(_KeepOpponents(self))
        self._initialised = not (per_prompt and args.init_rollouts)

    # Rollouts

    def choose_rows(self, rows: list[dict]) -> list[dict]:
        if not self._initialised:
            self._initialise()
        if self.args.tracker == "global" or not self.args.prioritized_sampling:
            return rows
        weights = self.tracker.weights(self.args.sampling_floor)
        count = len(rows) * self.accelerator.num_processes
        chosen = torch.multinomial(weights, count, generator=self._draws).tolist()
        self.record(effective_prompts=(weights.sum() ** 2 / weights.square().sum()).item())
        return [self.train_dataset[number] for number in self.own(chosen, len(rows))]

    def advantages(self, rollout: Rollout) -> Tensor:
        rewards = self._normalised(rollout.gathered)
        if self.opponents is not None:
            rewards = self._wins(rollout, rewards)
        step = self._prompt_step if self.args.tracker == "prompt" else self._global_step
        return self.own(step(rollout, rewards).to(rollout.rewards), len(rollout.rows))

    def _prompt_step(self, rollout: Rollout, rewards: Tensor) -> Tensor:
        numbers = torch.tensor(self.gathered([row[PROMPT_NUMBER] for row in rollout.rows]))
        divergences = self._divergences(rollout)
        rewards = rewards.double().cpu()
        rewarded = ~rewards.isnan()
        if not rewarded.any():
            return torch.zeros_like(rewards)
        baselines = self.tracker.baselines(numbers)
        rho = self.tracker.update(numbers[rewarded], rewards[rewarded], divergences[rewarded])
        self._store(rollout, self.own(rewarded, len(rollout.rows)))
        differences = rewards - baselines
        self._describe(rho.mean().item(), baselines, rewards)
        mean, deviation = differences[rewarded].mean(), differences[rewarded].std(correction=0)
        return ((differences - mean) / (deviation + 1e-8)).nan_to_num(0)

    def _global_step(self, rollout: Rollout, rewards: Tensor) -> Tensor:
        low, high = self.reward_range if self.opponents is None else (0.0, 1.0)
        rewards, baseline = rewards.double().cpu(), self.tracker.baseline()
        sums = self.total(torch.stack([(rollout.logps * rollout.mask).sum(), rollout.mask.sum()]).double()).tolist()
        if rewards.isnan().all() or not sums[1]:  # no answer has a reward, or all of them are masked
            return torch.zeros_like(rewards)
        rho = self.tracker.update(rewards.nanmean().item(), sums[0] / sums[1])
        self._describe(rho, torch.full_like(rewards, baseline), rewards, high - low)
        return ((rewards - baseline) * (high - low)).clamp(-5, 5).nan_to_num(0)

    def _describe(self, rho: float, baselines: Tensor, rewards: Tensor, scale: float = 1.0) -> None:
        rewarded = ~rewards.isnan()
        differences = rewards[rewarded] - baselines[rewarded]
        self.record(
            rho=rho,
            baseline=baselines[rewarded].mean(),
            baseline_brier=differences.square().mean(),
            advantage_mean=scale * differences.mean(),
            advantage_std=scale * differences.std(correction=0),
        )

    # Rewards

    def _declared_range(self) -> tuple[float, float]:
        """Lowest and highest weighted sum of the rewards."""
        if self.args.reward_range is not None:
            return tuple(self.args.reward_range)
        low = high = 0.0
        self._ends = []
        for name, function, weight in zip(self.reward_func_names, self.reward_funcs, self.reward_weights, strict=True):
            ends = sorted(weight.item() * getattr(function, end, math.nan) for end in ("low", "high"))
            if not all(map(math.isfinite, ends)):
                raise InputError(f"the range of reward {name} is not known: give --reward_range LOWEST HIGHEST")
            self._ends.append(ends)
            low, high = low + ends[0], high + ends[1]
        if low == high:
            raise InputError(f"all rewards are {low:g}: nothing to learn from")
        return low, high

    def _normalised(self, gathered: Tensor) -> Tensor:
        """(N,) weighted sums, mapped to [0, 1]; NaN where there is no reward."""
        sums, (lows, highs) = self.weighted(gathered), self._bounds(gathered)
        outside = (sums < lows - 1e-6) | (sums > highs + 1e-6)
        if outside.any():
            row = int(outside.nonzero()[0])
            low, high = lows[row].item(), highs[row].item()
            parts = ", ".join(f"{n} {v:g}" for n, v in zip(self.reward_func_names, gathered[row].tolist(), strict=True))
            raise InputError(
                f"the reward {sums[row].item():g} ({parts}) is outside --reward_range {low:g} {high:g}: widen it, or "
                "clip the reward"
            )
        return ((sums - lows) / (highs - lows)).clamp(0, 1)

    def _bounds(self, gathered: Tensor) -> tuple[Tensor, Tensor]:
        """(N,) lowest and highest sum of the functions that gave the rewards; a `--reward_range` is for all alike."""
        if self._ends is None:
            return tuple(torch.full_like(gathered[:, 0], end) for end in self.reward_range)
        ends = torch.tensor(self._ends, dtype=gathered.dtype, device=gathered.device)
        return tuple(((~gathered.isnan()) * ends[:, side]).sum(1) for side in (0, 1))

    def _wins(self, rollout: Rollout, rewards: Tensor) -> Tensor:
        """1, 1/2 or 0 where an answer beats, equals or loses to an opponent's to the same prompt; see `wins_over`."""
        index = int(torch.randint(len(self.opponents.snapshots), (1,), generator=self._draws))
        step, _ = self.opponents.snapshots[index]
        theirs = self._opponent_rewards(index, rollout.rows, rollout.tokens, self.temperature)
        wins = wins_over(theirs, rewards)
        rate = wins.nanmean()
        self.record(win_rate=rate, opponent_age=self.state.global_step - step)
        if step == 0:
            self.record(**{"win_rate/initial": rate})
        if index == len(self.opponents.snapshots) - 1:
            self.record(**{"win_rate/latest": rate})
        return wins

    def _opponent_rewards(self, index: int, rows: list[dict], tokens: dict[str, Any], temperature: float) -> Tensor:
        """(N,) of all processes, in [0, 1]."""
        opponent = self.opponents.playing(index).to(self.accelerator.device)
        asked = [
            ids[kept.bool()].tolist() for ids, kept in zip(tokens["prompt_ids"], tokens["prompt_mask"], strict=True)
        ]
        with self._sampling(temperature):
            said = self.complete(opponent, asked)
        return self._normalised(self.rewards_of(rows, said))

    # What the policy said last

    def _divergences(self, rollout: Rollout) -> Tensor:
        """(N,) nats per token between the policy that last answered each prompt and this one; 0 for a first answer."""
        stored = [self._answers.get(row[PROMPT_NUMBER]) for row in rollout.rows]
        mine = [0.0] * len(stored)
        if any(self.gathered([any(stored)])):
            # A stand-in for those without: all processes go forward equally often, as a sharded model must.
            moved = self._moved([answer or ([0], [0], [0.0]) for answer in stored])
            mine = [value if answer else 0.0 for value, answer in zip(moved, stored, strict=True)]
        return torch.tensor(self.gathered(mine), dtype=torch.float64)

    def _moved(self, answers: list[tuple[list[int], list[int], list[float]]]) -> list[float]:
        prompts, completions, then = ([torch.tensor(part) for part in parts] for parts in zip(*answers, strict=True))
        fill, device = self._tokenizer.pad_token_id, self.accelerator.device

        def padded(parts: list[Tensor], value: float, side: str) -> Tensor:
            return pad(parts, padding_value=value, padding_side=side).to(device)

        tokens = {
            "prompt_ids": padded(prompts, fill, "left"),
            "prompt_mask": padded([torch.ones_like(ids) for ids in prompts], 0, "left"),
            "completion_ids": padded(completions, fill, "right"),
            "completion_mask": padded([torch.ones_like(ids) for ids in completions], 0, "right"),
        }
        now, _ = self.logps_of(self.model, tokens)
        mask, shift = tokens["completion_mask"], now - padded(then, 0.0, "right")
        return ((k3(shift) * mask).sum(1) / mask.sum(1).clamp(min=1)).tolist()

    def _store(self, rollout: Rollout, counted: Tensor) -> None:
        tokens, mine = rollout.tokens, []
        for place, row in enumerate(rollout.rows):
            asked = tokens["prompt_ids"][place][tokens["prompt_mask"][place].bool()].tolist()
            length = int(tokens["completion_mask"][place].sum())
            if not length or not counted[place]:  # masked because it was cut off, or without a reward
                continue
            said = tokens["completion_ids"][place][:length].tolist()
            mine.append((row[PROMPT_NUMBER], (asked, said, rollout.logps[place][:length].tolist())))
        self._answers.update(self.gathered(mine))

    @torch.no_grad()
    def _initialise(self) -> None:
        """Ask every prompt `init_rollouts` times, as evaluation does, and start the tracker there."""
        rows, count = list(self.train_dataset), self.args.init_rollouts
        with self._apart(), self._sampling(self.temperature):
            answered = self._answered([row for row in rows for _ in range(count)])
        self._metrics["eval"].clear()
        self.tracker.initialise(self._normalised(answered["rewards"]).view(-1, count).cpu())
        self._initialised = True

    # Evaluation

    def rollout_figures(self, rollout: Rollout) -> dict[str, Tensor]:
        if self.opponents is None:
            return {}
        ours = self._normalised(rollout.gathered)
        theirs = self._opponent_rewards(0, rollout.rows, rollout.tokens, self.args.eval_temperature)
        return {"wins": self.own(wins_over(theirs, ours), len(rollout.rows))}

    def summary(self, figures: dict[str, Tensor]) -> dict[str, float]:
        return {"win_rate": figures["wins"].nanmean().item()} if "wins" in figures else {}

    # State

    def trainer_state(self) -> dict[str, Any]:
        return {
            "tracker": self.tracker.state(),
            "answers": self._answers,
            "draws": self._draws.get_state(),
            "opponents": self.opponents and self.opponents.state(),
            "initialised": self._initialised,
        }

    def load_trainer_state(self, state: dict[str, Any]) -> None:
        self.tracker.load(state["tracker"])
        self._answers, self._initialised = state["answers"], state["initialised"]
        self._draws.set_state(state["draws"].cpu())
        if self.opponents is not None:
            self.opponents.load(state["opponents"])


class _KeepOpponents(TrainerCallback):
    def __init__(self, trainer: SPOTrainer):
        self.trainer = trainer

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step % args.opponent_interval == 0:
            policy = self.trainer.accelerator.unwrap_model(self.trainer.model)
            self.trainer.opponents.add(policy, state.global_step)


def wins_over(theirs: Tensor, ours: Tensor) -> Tensor:
    """1 where our reward is higher, 1/2 where they are equal, 0 where theirs is; NaN where one of them is none."""
    wins = (ours > theirs + 1e-6).float() + 0.5 * ((ours - theirs).abs() <= 1e-6).float()
    return wins.masked_fill(ours.isnan() | theirs.isnan(), math.nan)
