"""What is going wrong in online RL, in plain sentences, from the figures that are logged anyway."""

from transformers import TrainerCallback


class RLDoctor(TrainerCallback):
    """Prints each complaint once, when the figures first say so; `said` keeps them.

    Attributes:
        said: `{name of the complaint: sentence}`.
    """

    _FIRST = 3  # logs that tell what is normal
    _LATER = 5  # logs before a critic should know something

    def __init__(self):
        self.said: dict[str, str] = {}
        self._first: dict[str, list[float]] = {}
        self._logs = 0

    def on_log(self, args, state, control, logs=None, **kwargs):
        if not logs or "loss" not in logs or "reward" not in logs:
            return
        self._logs += 1
        if self._logs <= self._FIRST:
            for name in ("completions/mean_length", "entropy", "reward"):
                if logs.get(name) is not None:
                    self._first.setdefault(name, []).append(logs[name])
        for name, sentence in self._complaints(args, logs):
            if name not in self.said:
                self.said[name] = sentence
                if state.is_world_process_zero:
                    print(f"doctor, step {state.global_step}: {sentence}")

    def _complaints(self, args, logs):
        equal = logs.get("frac_reward_zero_std")
        if equal is not None and equal > 0.5:
            yield (
                "equal rewards",
                f"{equal:.0%} of the groups have equal rewards: no gradient comes from them; raise --temperature, use "
                "a graded reward, or try SPO",
            )
        unrewarded = logs.get("frac_reward_none")
        if unrewarded:
            yield (
                "no reward",
                f"{unrewarded:.1%} of the completions have no reward, as every reward function returned None for them: "
                "nothing is learned from those; see which rows they are, or add a reward that always applies",
            )
        truncated = logs.get("completions/clipped_ratio")
        if truncated is not None and truncated > 0.3:
            yield (
                "truncation",
                f"{truncated:.0%} of the completions are cut off at {args.max_completion_length} tokens: raise "
                "--max_completion_length, or reward those that end",
            )
        yield from self._lengths(logs)
        entropy, usual = logs.get("entropy"), self._usual("entropy")
        if entropy is not None and usual and entropy < 0.1 * usual:
            yield (
                "entropy collapse",
                f"entropy is {entropy:.3g}, a tenth of what it was: the policy hardly tries anything new; lower the "
                "learning rate, add --entropy_coef or a KL to the reference",
            )
        distance = logs.get("kl_ref" if "approx_kl" in logs else "kl")  # PPO's kl is to the rollout's policy
        if distance is not None and abs(distance) > 1:
            yield (
                "KL blow-up",
                f"the policy is {distance:.2f} nats per token from its reference: lower the learning rate or raise the "
                "weight of the KL",
            )
        explained = logs.get("explained_variance")
        if explained is not None and self._logs > self._LATER and explained <= 0:
            yield (
                "dead critic",
                f"the critic explains nothing of the returns (explained variance {explained:.2f}): raise "
                "--critic_learning_rate or --vf_coef, or start it from a reward model with --critic_model",
            )

    def _lengths(self, logs):
        length, usual = logs.get("completions/mean_length"), self._usual("completions/mean_length")
        if length is None or not usual:
            return
        if length < 0.3 * usual:
            yield (
                "length collapse",
                f"completions have {length:.1f} tokens, at first {usual:.1f}: the reward may not ask for more",
            )
        if length > 2 * usual and (logs["reward"] or 0) > (self._usual("reward") or 0):
            yield (
                "length hacking",
                f"completions have {length:.1f} tokens, at first {usual:.1f}, while the reward rises: it may pay for "
                "length; look at the answers, and add a length reward",
            )

    def _usual(self, name: str) -> float | None:
        values = self._first.get(name)
        return sum(values) / len(values) if values and self._logs > self._FIRST else None
