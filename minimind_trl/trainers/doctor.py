"""What is going wrong in online RL, in plain sentences, from the figures that are logged anyway."""

import math
from collections.abc import Iterator
from statistics import mean, median

from transformers import TrainerCallback


class RLDoctor(TrainerCallback):
    """Prints each complaint once, when the figures say so in two logs one after the other; `said` keeps them.

    At the top of the rewards' range equal rewards, little entropy, short or cut off answers and a critic that explains
    nothing are no faults. A resumed run knows what was normal and what was said from the logs before it.

    Args:
        reward_range: lowest and highest reward; a `RolloutTrainer` tells its doctor where it is not given.

    Attributes:
        said: `{name of the complaint: sentence}`.
    """

    _FIRST = 3  # logs that tell what is normal
    _LATER = 5  # logs before a critic should know something; of its figures the median of as many counts
    _TOP = 0.05  # of the range, from which on a task is solved
    _SPREAD = 0.1  # of the first rewards' deviation, below which there is hardly anything to explain

    def __init__(self, reward_range: tuple[float, float] | None = None):
        self.reward_range = reward_range
        self._forget()

    def _forget(self) -> None:
        self.said: dict[str, str] = {}
        self._first: dict[str, list[float]] = {}
        self._before: set[str] = set()  # what the last log complained of
        self._explained: list[float] = []
        self._logs = 0

    def on_train_begin(self, args, state, control, **kwargs):
        self._forget()
        for logs in state.log_history:  # of the run that is resumed
            self._hear(args, logs)

    def on_log(self, args, state, control, logs=None, **kwargs):
        for sentence in self._hear(args, logs):
            if state.is_world_process_zero:
                print(f"doctor, step {state.global_step}: {sentence}")

    def _hear(self, args, logs: dict[str, float] | None) -> list[str]:
        """What is to be said for the first time."""
        if not logs or "loss" not in logs or "reward" not in logs:
            return []
        logs = {name: value for name, value in logs.items() if isinstance(value, int | float) and math.isfinite(value)}
        self._logs += 1
        if self._logs <= self._FIRST:
            for name in ("completions/mean_length", "entropy", "reward", "reward_std"):
                if name in logs:
                    self._first.setdefault(name, []).append(logs[name])
        complaints = dict(self._complaints(args, logs))
        new = {name: complaints[name] for name in complaints if name in self._before and name not in self.said}
        self._before = set(complaints)
        self.said |= new
        return list(new.values())

    def _complaints(self, args, logs: dict[str, float]) -> Iterator[tuple[str, str]]:
        if unrewarded := logs.get("frac_reward_none"):
            yield (
                "no reward",
                f"{unrewarded:.1%} of the completions have no reward, as every reward function returned None for them: "
                "nothing is learned from those; see which rows they are, or add a reward that always applies",
            )
        # PPO's kl is to the rollout's policy.
        distance = logs.get("kl_ref", 0.0 if "approx_kl" in logs else logs.get("kl", 0.0))
        if abs(distance) > 1:
            yield (
                "KL blow-up",
                f"the policy is {distance:.2f} nats per token from its reference: lower the learning rate or raise the "
                "weight of the KL",
            )
        length, usual = logs.get("completions/mean_length", 0.0), self._usual("completions/mean_length")
        if usual and length > 2 * usual and logs.get("reward", 0.0) > (self._usual("reward") or 0.0):
            yield (
                "length hacking",
                f"completions have {length:.1f} tokens, at first {usual:.1f}, while the reward rises: it may pay for "
                "length; look at the answers, and add a length reward",
            )
        if not self._is_solved(logs):
            yield from self._obstacles(args, logs)

    def _obstacles(self, args, logs: dict[str, float]) -> Iterator[tuple[str, str]]:
        """What keeps a reward from rising that still can."""
        equal = logs.get("frac_reward_zero_std", 0.0)
        if equal > 0.5:
            yield (
                "equal rewards",
                f"{equal:.0%} of the groups have equal rewards: no gradient comes from them; raise --temperature, use "
                "a graded reward, or try SPO",
            )
        truncated = logs.get("completions/clipped_ratio", 0.0)
        if truncated > 0.3:
            yield (
                "truncation",
                f"{truncated:.0%} of the completions are cut off at {args.max_completion_length} tokens: raise "
                "--max_completion_length, or reward those that end",
            )
        length, usual = logs.get("completions/mean_length"), self._usual("completions/mean_length")
        if usual and length is not None and length < 0.3 * usual:
            yield (
                "length collapse",
                f"completions have {length:.1f} tokens, at first {usual:.1f}: the reward may not ask for more",
            )
        entropy, usual = logs.get("entropy"), self._usual("entropy")
        if usual and entropy is not None and entropy < 0.1 * usual:
            yield (
                "entropy collapse",
                f"entropy is {entropy:.3g}, a tenth of what it was: the policy hardly tries anything new; lower the "
                "learning rate, add --entropy_coef or a KL to the reference",
            )
        if (explained := self._explained_variance(logs)) is not None and explained <= 0:
            yield (
                "dead critic",
                f"the critic explains nothing of the returns (explained variance {explained:.2f}): raise "
                "--critic_learning_rate or --vf_coef, or start it from a reward model with --critic_model",
            )

    def _explained_variance(self, logs: dict[str, float]) -> float | None:
        """The median of the last few, of those logs whose rewards still differ; None while there are too few."""
        usual = self._usual("reward_std")
        varied = not usual or logs.get("reward_std", usual) > self._SPREAD * usual
        if "explained_variance" in logs and varied and self._logs > 1:
            self._explained = [*self._explained, logs["explained_variance"]][-self._LATER :]
        return median(self._explained) if varied and len(self._explained) == self._LATER else None

    def _is_solved(self, logs: dict[str, float]) -> bool:
        low, high = self.reward_range or (-math.inf, math.inf)
        return math.isfinite(high - low) and "reward" in logs and logs["reward"] >= high - self._TOP * (high - low)

    def _usual(self, name: str) -> float | None:
        values = self._first.get(name)
        return mean(values) if values and self._logs > self._FIRST else None
