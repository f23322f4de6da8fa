"""Single-stream policy optimisation, and self-play, on GRPOTrainer's rollouts."""

import json
import math
from typing import Any, ClassVar

import torch
from datasets import Dataset, IterableDataset
from torch import Tensor
from transformers import TrainerCallback
from trl.trainer.utils import pad

from ..errors import InputError
from ..rewards import declared_range
from .advantages import k3
from .opponents import OpponentPool
from .rollout_trainer import TEMPLATE_KWARGS, Rollout, RolloutTrainer
from .spo_config import SPOConfig
from .value_tracker import GlobalTracker, PromptTracker

PROMPT_NUMBER = "prompt_number"  # the column that tells which of the different prompts a row has


class SPOTrainer(RolloutTrainer):
    """Single-stream Policy Optimization (arXiv 2509.13232): one completion per prompt against what it used to get.

    Rewards are mapped to [0, 1] from their declared range. A tracker's baseline is subtracted, and with
    `tracker="prompt"` the differences are normalised over the global batch. The loss is TRL's clipped surrogate (0.2
    and 0.28), with an optional KL to the reference. Rows are drawn with weight `sqrt(v (1 - v)) + floor`, without
    replacement within a batch; how often a prompt comes back follows from that and not from epochs. Rows with the same
    prompt share its history (with an environment, which adds to the prompt, rows that are equal in all columns do).

    How far the policy has moved since it last answered a prompt, which decides how much of the prompt's history counts,
    is taken on that answer: the mean over its tokens of the change of their log-probability since then, as in the
    authors' code, or of its k3 (`rho_divergence`). Without `init_rollouts` a prompt starts at Beta(1/2, 1/2), theirs.

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
    needs_logps = shares_state = True

    def __init__(self, model, reward_funcs=None, args: SPOConfig | None = None, train_dataset=None, *rest, **more):
        if train_dataset is None:
            raise ValueError("SPO needs a train_dataset: it keeps a record of every prompt")
        if isinstance(train_dataset, IterableDataset):
            raise InputError("SPO keeps a record of every prompt and cannot train on a stream: set streaming: false")
        super().__init__(model, reward_funcs, args, train_dataset, *rest, **more)
        self._refuse_unequal_games()
        numbers = prompt_numbers(self.train_dataset, whole_rows=self.environment_factories is not None)
        self.train_dataset = self.train_dataset.add_column(PROMPT_NUMBER, numbers)
        self._number_of_row = torch.tensor(numbers)
        self._ends: list[list[float]] | None = None  # lowest and highest weighted reward of each function
        self.reward_range = self._range_of_rewards()
        bounds = {"half_life": args.rho_half_life, "rho_min": args.rho_min, "rho_max": args.rho_max}
        per_prompt = args.tracker == "prompt"
        self.tracker = PromptTracker(max(numbers) + 1, **bounds) if per_prompt else GlobalTracker(**bounds)
        self._answers: dict[int, tuple[Tensor, Tensor]] = {}  # ids and log-probabilities, NaN of a tool's tokens
        self._draws = torch.Generator().manual_seed(args.seed)
        self.opponents = None
        if args.opponent:
            if self.is_deepspeed_enabled or self.is_fsdp_enabled:
                raise InputError("--opponent snapshot needs whole weights in every process: no DeepSpeed, no FSDP")
            self.opponents = OpponentPool(self.accelerator.unwrap_model(self.model), args.opponent_pool)
            self.add_callback(_KeepOpponents(self))
        self._initialised = not (per_prompt and args.init_rollouts)

    def _refuse_unequal_games(self) -> None:
        if self.args.opponent and (self.tools or self.environment_factories is not None or self.rollout_func):
            raise InputError(
                "--opponent snapshot: the opponent answers in one turn, without tools, environments or a rollout_func, "
                "so that a win would not be the policy's: leave those out, or the opponent"
            )

    # Rollouts

    def choose_rows(self, rows: list[dict]) -> list[dict]:
        if not self._initialised:
            self._initialise()
        if self.args.tracker == "global" or not self.args.prioritized_sampling:
            return rows
        weights = self.tracker.weights(self.args.sampling_floor)
        rows_of = torch.bincount(self._number_of_row) * weights
        count = len(rows) * self.accelerator.num_processes
        chosen = torch.multinomial(weights[self._number_of_row], count, generator=self._draws).tolist()
        self.record(effective_prompts=(rows_of.sum() ** 2 / rows_of.square().sum()).item())
        return [self.train_dataset[row] for row in self.own(chosen, len(rows))]

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

    def _range_of_rewards(self) -> tuple[float, float]:
        """Lowest and highest weighted sum of the rewards: `reward_range`, which must hold all that is declared."""
        low, high = self.declared_range()
        given = self.args.reward_range
        if given is not None:
            problems = [f"as low as {low:g}"] * (-math.inf < low < given[0] - 1e-6)
            problems += [f"as high as {high:g}"] * (math.inf > high > given[1] + 1e-6)
            if problems:
                raise InputError(
                    f"--reward_range {given[0]:g} {given[1]:g}: the rewards may be {' and '.join(problems)}, by what "
                    "they declare: widen it, or leave it out"
                )
            return tuple(given)
        self._ends = []
        for name, function, weight in zip(self.reward_func_names, self.reward_funcs, self.reward_weights, strict=True):
            ends = declared_range([function], [weight.item()])
            if not all(map(math.isfinite, ends)):
                raise InputError(f"the range of reward {name} is not known: give --reward_range LOWEST HIGHEST")
            self._ends.append(list(ends))
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
        """(N,) how far the policy is, per token, from the one that last answered each prompt; 0 for a first answer."""
        stored = [self._answers.get(row[PROMPT_NUMBER]) for row in rollout.rows]
        mine = [0.0] * len(stored)
        if any(self.gathered([any(stored)])):
            # A stand-in for those without: all processes go forward equally often, as a sharded model must.
            moved = self._moved(rollout.tokens, [answer or (torch.zeros(1), torch.zeros(1)) for answer in stored])
            mine = [value if answer else 0.0 for value, answer in zip(moved, stored, strict=True)]
        return torch.tensor(self.gathered(mine), dtype=torch.float64)

    def _moved(self, asked: dict[str, Any], answers: list[tuple[Tensor, Tensor]]) -> list[float]:
        device = self.accelerator.device

        def padded(parts: list[Tensor], value: float) -> Tensor:
            return pad(parts, padding_value=value, padding_side="right").to(device)

        tokens = {
            "prompt_ids": asked["prompt_ids"],  # of the same prompts
            "prompt_mask": asked["prompt_mask"],
            "completion_ids": padded([ids.long() for ids, _ in answers], self._tokenizer.pad_token_id),
            "completion_mask": padded([torch.ones(len(ids), dtype=torch.long) for ids, _ in answers], 0),
        }
        then = padded([logps for _, logps in answers], math.nan)
        now, _ = self.logps_of(self.model, tokens)
        mask = ~then.isnan()
        shift = torch.where(mask, now - then, 0.0)
        moved = k3(shift) if self.args.rho_divergence == "k3" else shift.abs()
        return (moved.sum(1) / mask.sum(1).clamp(min=1)).tolist()

    def _store(self, rollout: Rollout, counted: Tensor) -> None:
        tokens, mine = rollout.tokens, []
        logps = rollout.logps.masked_fill(rollout.mask == 0, math.nan)  # of tools, and of padding
        for place, row in enumerate(rollout.rows):
            length = int(tokens["completion_mask"][place].sum())
            if not length or not counted[place]:  # masked because it was cut off, or without a reward
                continue
            ids = tokens["completion_ids"][place, :length].to("cpu", torch.int32, copy=True)
            mine.append((row[PROMPT_NUMBER], (ids, logps[place, :length].to("cpu", torch.float32, copy=True))))
        self._answers.update(self.gathered(mine))

    @torch.no_grad()
    def _initialise(self) -> None:
        """Ask every prompt `init_rollouts` times, as evaluation does, and start the tracker there."""
        first = {number: row for row, number in reversed(list(enumerate(self._number_of_row.tolist())))}
        rows = [self.train_dataset[first[number]] for number in range(len(first))]
        count = self.args.init_rollouts
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
            "answers": dict(self._answers),
            "draws": self._draws.get_state(),
            "opponents": self.opponents and self.opponents.state(),
            "initialised": self._initialised,
        }

    def packed_state(self, state: dict[str, Any]) -> dict[str, Any]:
        return state | {"answers": packed(state["answers"])}

    def load_trainer_state(self, state: dict[str, Any]) -> None:
        self.tracker.load(state["tracker"])
        answers, self._initialised = state["answers"], state["initialised"]
        self._answers = unpacked(answers) if "lengths" in answers else dict(answers)  # of a file, of this run
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


def prompt_numbers(rows: Dataset, whole_rows: bool = False) -> list[int]:
    """A number for each row, from 0, that equal prompts share."""
    columns = rows.column_names if whole_rows else [c for c in ("prompt", TEMPLATE_KWARGS) if c in rows.column_names]
    known: dict[str, int] = {}
    texts = (json.dumps(row, sort_keys=True, default=str) for row in rows.select_columns(columns))
    return [known.setdefault(text, len(known)) for text in texts]


def packed(answers: dict[int, tuple[Tensor, Tensor]]) -> dict[str, Tensor]:
    """Answers as four tensors, 8 bytes a token in a file, without a header for each answer."""
    ids, logps = ([pair[part] for pair in answers.values()] for part in (0, 1))
    return {
        "numbers": torch.tensor(list(answers), dtype=torch.long),
        "lengths": torch.tensor([len(part) for part in ids], dtype=torch.long),
        "ids": torch.cat(ids) if ids else torch.empty(0, dtype=torch.int32),
        "logps": torch.cat(logps) if logps else torch.empty(0),
    }


def unpacked(state: dict[str, Tensor]) -> dict[int, tuple[Tensor, Tensor]]:
    lengths = state["lengths"].tolist()
    pairs = zip(*(state[name].cpu().split(lengths) for name in ("ids", "logps")), strict=True)
    return dict(zip(state["numbers"].tolist(), pairs, strict=True))


def wins_over(theirs: Tensor, ours: Tensor) -> Tensor:
    """1 where our reward is higher, 1/2 where they are equal, 0 where theirs is; NaN where one of them is none."""
    wins = (ours > theirs + 1e-6).float() + 0.5 * ((ours - theirs).abs() <= 1e-6).float()
    return wins.masked_fill(ours.isnan() | theirs.isnan(), math.nan)
