"""Warnings about online RL that goes wrong, from the figures that are logged anyway."""

import math
from collections import defaultdict
from statistics import mean, median

from transformers import TrainerCallback

_FIRST = 3  # logs at the start, whose means are what is normal
_LATEST = 5  # logs, whose median explained variance counts
_TOP = 0.05  # of the rewards' range: from here on a task is solved
_VARIED = 0.1  # of the first rewards' deviation: below, there is hardly anything for a critic to explain


class RLDoctor(TrainerCallback):
    """Prints each warning once, after two logs in a row show its symptom.

    Near the top of the rewards' range, equal rewards, low entropy, short or truncated answers and a critic that
    explains nothing are no faults. A resumed run reads what is normal, and what was printed, from the logs before it.

    Args:
        reward_range: lowest and highest reward; by default a `RolloutTrainer` sets it.

    Attributes:
        said: `{name of the warning: sentence}`.
    """

    def __init__(self, reward_range: tuple[float, float] | None = None):
        self.reward_range = reward_range
        self._reset()

    def _reset(self) -> None:
        self.said: dict[str, str] = {}
        self._first: dict[str, list[float]] = defaultdict(list)
        self._last_symptoms: set[str] = set()
        self._explained: list[float] = []
        self._log_count = 0

    def on_train_begin(self, args, state, control, **kwargs):
        self._reset()
        for logs in state.log_history:
            self._examine(args, logs)

    def on_log(self, args, state, control, logs=None, **kwargs):
        for sentence in self._examine(args, logs):
            if state.is_world_process_zero:
                print(f"doctor, step {state.global_step}: {sentence}")

    def _examine(self, args, logs: dict[str, float] | None) -> list[str]:
        """The new warnings."""
        if not logs or "loss" not in logs or "reward" not in logs:
            return []
        logs = {name: value for name, value in logs.items() if isinstance(value, int | float) and math.isfinite(value)}
        self._log_count += 1
        if self._log_count <= _FIRST:
            for name in ("completions/mean_length", "entropy", "reward", "reward_std"):
                self._first[name] += [logs[name]] if name in logs else []
        symptoms = self._symptoms(args, logs)
        new = {name: symptoms[name] for name in symptoms if name in self._last_symptoms and name not in self.said}
        self._last_symptoms = set(symptoms)
        self.said |= new
        return list(new.values())

    def _symptoms(self, args, logs: dict[str, float]) -> dict[str, str]:
        found = {}
        if unrewarded := logs.get("frac_reward_none"):
            found["no reward"] = (
                f"{unrewarded:.1%} of the completions have no reward, as every reward function returned None for them: "
                "nothing is learned from those; see which rows they are, or add a reward that always applies"
            )
        # PPO's kl is to the rollout's policy.
        distance = logs.get("kl_ref", 0.0 if "approx_kl" in logs else logs.get("kl", 0.0))
        if abs(distance) > 1:
            found["KL blow-up"] = (
                f"the policy is {distance:.2f} nats per token from its reference: lower the learning rate or raise the "
                "weight of the KL"
            )
        length, normal = logs.get("completions/mean_length", math.nan), self._normal("completions/mean_length")
        if length > 2 * normal and logs.get("reward", 0.0) > self._normal("reward", 0.0):
            found["length hacking"] = (
                f"completions have {length:.1f} tokens, at first {normal:.1f}, while the reward rises: it may pay for "
                "length; look at the answers, and add a length reward"
            )
        low, high = self.reward_range or (-math.inf, math.inf)
        if math.isfinite(high - low) and logs.get("reward", -math.inf) >= high - _TOP * (high - low):
            return found  # solved; the symptoms below are what keeps a reward from rising
        if (equal := logs.get("frac_reward_zero_std", 0.0)) > 0.5:
            found["equal rewards"] = (
                f"{equal:.0%} of the groups have equal rewards: no gradient comes from them; raise --temperature, use "
                "a graded reward, or try SPO"
            )
        if (truncated := logs.get("completions/clipped_ratio", 0.0)) > 0.3:
            found["truncation"] = (
                f"{truncated:.0%} of the completions are cut off at {args.max_completion_length} tokens: raise "
                "--max_completion_length, or reward those that end"
            )
        if length < 0.3 * normal:
            found["length collapse"] = (
                f"completions have {length:.1f} tokens, at first {normal:.1f}: the reward may not ask for more"
            )
        if (entropy := logs.get("entropy", math.nan)) < 0.1 * self._normal("entropy"):
            found["entropy collapse"] = (
                f"entropy is {entropy:.3g}, less than a tenth of what it was: the policy hardly tries anything new; "
                "lower the learning rate, add --entropy_coef or a KL to the reference"
            )
        if (explained := self._explained_variance(logs)) <= 0:
            found["dead critic"] = (
                f"the critic explains nothing of the returns (explained variance {explained:.2f}): raise "
                "--critic_learning_rate or --vf_coef, or start it from a reward model with --critic_model"
            )
        return found

    def _explained_variance(self, logs: dict[str, float]) -> float:
        """Median of the latest logs whose rewards still differ; NaN while there are too few."""
        normal = self._normal("reward_std", 0.0)
        varied = not normal or logs.get("reward_std", normal) > _VARIED * normal
        if "explained_variance" in logs and varied and self._log_count > 1:
            self._explained = [*self._explained, logs["explained_variance"]][-_LATEST:]
        return median(self._explained) if varied and len(self._explained) == _LATEST else math.nan

    def _normal(self, name: str, default: float = math.nan) -> float:
        """Mean over the first logs; the default (NaN compares as False) while there are too few, or none has it."""
        values = self._first[name]
        return mean(values) if values and self._log_count > _FIRST else default
