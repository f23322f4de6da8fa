"""What goes wrong in online RL, read off its figures."""

import functools
import math
from collections.abc import Callable
from itertools import islice
from statistics import median

from ..evaluation.measures import Z95
from .figures import Figures
from .finding import Finding, fault, warning
from .run_folder import RunFolder

ONLINE = ("grpo", "ppo", "spo")
_TOP = 0.05  # of the rewards' range: from here on a task is solved
_VARIED = 0.1  # of the first rewards' deviation: below, there is hardly anything for a critic to explain
_NOTHING = 1e-3  # of the returns' variance: a critic that never moved explains that little
_FEW = 4  # answers to a prompt, below which they often get equal rewards
_RARE = 0.02  # calls an answer
_OFTEN = 0.3  # of the calls
_CRITIC_LOGS = 5  # whose median explained variance counts


def is_solved(run: RunFolder, figures: Figures) -> bool:
    """Whether the reward is near the highest there can be, where equal rewards and low entropy are no faults."""
    low, high = reward_range(run)
    return math.isfinite(high - low) and figures.latest("reward") >= high - _TOP * (high - low)


def unless_solved(rule: Callable[[RunFolder, Figures], Finding | None]) -> Callable:
    """The rule, which finds nothing once the task is solved."""

    @functools.wraps(rule)
    def checked(run: RunFolder, figures: Figures) -> Finding | None:
        return None if is_solved(run, figures) else rule(run, figures)

    return checked


def reward_range(run: RunFolder) -> tuple[float, float]:
    """Lowest and highest reward; infinite where they are not known."""
    low, high = run.record.get("reward_range") or (None, None)
    return -math.inf if low is None else low, math.inf if high is None else high


def held_out_noise(figures: Figures, name: str) -> float:
    """How far two held-out means may differ by chance (95%), from the deviation and the number of prompts."""
    deviation, prompts = figures.after(f"{name}_std"), figures.after("prompts")
    return Z95 * math.sqrt(2 / prompts) * deviation if prompts > 0 else math.nan


def reward_hacking(run: RunFolder, figures: Figures) -> Finding | None:
    """A watched measure is below its best so far by more than chance, while the reward is higher than it was then."""
    for name in (name for name in figures.held_out[0] if name.startswith("watch/")) if figures.held_out else ():
        watched, rewards = figures.evaluations(name), figures.evaluations("reward")
        best = max(range(len(watched)), key=watched.__getitem__)
        fell, rose = watched[best] - watched[-1], rewards[-1] - rewards[best]
        if fell > held_out_noise(figures, name) and rose > 0:
            sentence = (
                f"since the evaluation at step {figures.held_out[best]['step']:.0f} the held-out reward rose from "
                f"{rewards[best]:.3f} to {rewards[-1]:.3f}, while {name.removeprefix('watch/')}, which it does not "
                f"see, fell from {watched[best]:.3f} to {watched[-1]:.3f}: the policy exploits the reward; stop here, "
                "take the checkpoint of that step, and mend the reward"
            )
            return fault("reward hacking", sentence)
    return None


@unless_solved
def groups_too_small(run: RunFolder, figures: Figures) -> Finding | None:
    size, equal = run.options.get("num_generations") or math.nan, figures.latest("frac_reward_zero_std")
    if run.method != "grpo" or not (size < _FEW and equal > 0.3):
        return None
    if not figures.latest("reward_std") > 0:
        return None
    sentence = (
        f"{equal:.0%} of the groups of {size} answers have equal rewards, though rewards differ between prompts: most "
        "of what is generated teaches nothing; raise --num_generations to 8 or more"
    )
    return fault("groups too small", sentence)


def no_reward(run: RunFolder, figures: Figures) -> Finding | None:
    unrewarded = figures.latest("frac_reward_none")
    if not unrewarded > 0:
        return None
    sentence = (
        f"{unrewarded:.1%} of the completions have no reward, as every reward function returned None for them: nothing "
        "is learned from those; see which rows they are, or add a reward that always applies"
    )
    return warning("no reward", sentence)


def kl_blow_up(run: RunFolder, figures: Figures) -> Finding | None:
    # PPO's kl is to the rollout's policy.
    distance = figures.latest("kl" if run.method != "ppo" else "kl_ref")
    if not abs(distance) > 1:
        return None
    sentence = (
        f"the policy is {distance:.2f} nats per token from its reference: lower the learning rate or raise the weight "
        "of the KL"
    )
    return fault("KL blow-up", sentence)


def length_hacking(run: RunFolder, figures: Figures) -> Finding | None:
    length, normal = figures.latest("completions/mean_length"), figures.first("completions/mean_length")
    if not (length > 2 * normal and figures.latest("reward") > figures.first("reward")):
        return None
    sentence = (
        f"completions have {length:.1f} tokens, at first {normal:.1f}, while the reward rises: it may pay for length; "
        "look at the answers, and add a length reward"
    )
    return fault("length hacking", sentence)


@unless_solved
def reward_without_spread(run: RunFolder, figures: Figures) -> Finding | None:
    equal = figures.latest("frac_reward_zero_std")
    if not equal > 0.7:
        return None
    sentence = (
        f"{equal:.0%} of the groups have equal rewards: no gradient comes from them; raise --temperature, use a graded "
        "reward, or try SPO"
    )
    return fault("reward without spread", sentence)


@unless_solved
def truncation(run: RunFolder, figures: Figures) -> Finding | None:
    cut = figures.latest("completions/clipped_ratio")
    if not cut > 0.3:
        return None
    sentence = (
        f"{cut:.0%} of the completions are cut off at {run.options.get('max_completion_length')} tokens: raise "
        "--max_completion_length, or reward those that end"
    )
    return fault("truncation", sentence)


@unless_solved
def length_collapse(run: RunFolder, figures: Figures) -> Finding | None:
    length, normal = figures.latest("completions/mean_length"), figures.first("completions/mean_length")
    if not length < 0.3 * normal:
        return None
    sentence = f"completions have {length:.1f} tokens, at first {normal:.1f}: the reward may not ask for more"
    return warning("length collapse", sentence)


@unless_solved
def entropy_collapse(run: RunFolder, figures: Figures) -> Finding | None:
    entropy, normal = figures.latest("entropy"), figures.first("entropy")
    if not entropy < 0.1 * normal:
        return None
    sentence = (
        f"entropy is {entropy:.3g}, at first {normal:.3g}: the policy hardly tries anything new; lower the learning "
        "rate, add --entropy_coef or a KL to the reference"
    )
    return fault("entropy collapse", sentence)


@unless_solved
def dead_critic(run: RunFolder, figures: Figures) -> Finding | None:
    normal = figures.first("reward_std")
    varied = (
        log["explained_variance"]
        for log in reversed(figures.training[1:])
        if "explained_variance" in log and not log.get("reward_std", math.inf) <= _VARIED * normal
    )
    latest = [*islice(varied, _CRITIC_LOGS)]
    still_varied = not figures.latest("reward_std") <= _VARIED * normal
    if not still_varied or len(latest) < _CRITIC_LOGS:
        return None
    explained = median(latest)
    if explained > _NOTHING:
        return None
    sentence = (
        f"the critic explains nothing of the returns (explained variance {explained:.2f}): raise "
        "--critic_learning_rate or --vf_coef, or start it from a reward model with --critic_model"
    )
    return fault("dead critic", sentence)


@unless_solved
def tool_never_called(run: RunFolder, figures: Figures) -> Finding | None:
    calls, normal = figures.latest("tools/call_frequency"), figures.first("tools/call_frequency")
    if not calls < _RARE:
        return None
    before = f", at first {normal:.2f}" if normal >= _RARE else ""
    sentence = (
        f"{calls:.3f} calls of a tool an answer{before}: what is never tried is never learned; show calls in SFT, "
        "raise --temperature, or reward a call that is right"
    )
    return fault("tool never called", sentence)


@unless_solved
def calls_fail(run: RunFolder, figures: Figures) -> Finding | None:
    failed = figures.latest("tools/failure_frequency")
    if not (failed > _OFTEN and figures.latest("tools/call_frequency") >= _RARE):
        return None
    kinds = {name: figures.latest(f"tools/{name}") for name in ("invalid_calls", "errors", "timeouts", "crashes")}
    kinds = {name: share for name, share in kinds.items() if share > 0}
    shares = ", ".join(f"{share:.0%} {name.replace('_', ' ')}" for name, share in kinds.items())
    if kinds.get("timeouts", 0) + kinds.get("crashes", 0) > failed / 2:
        remedy = "look at the tools, or raise --tool_timeout and --tool_memory"
    else:
        remedy = "show more calls in SFT, shorten the tools' descriptions, and look at the rollouts in the report"
    return fault("calls fail", f"{failed:.0%} of the calls of tools fail ({shares}): {remedy}")


@unless_solved
def calls_repeated(run: RunFolder, figures: Figures) -> Finding | None:
    repeated = figures.latest("tools/repeated_calls")
    if not (repeated > _OFTEN and figures.latest("tools/call_frequency") >= _RARE):
        return None
    sentence = (
        f"{repeated:.0%} of the calls of tools repeat one of the same answer: the policy does not use the results, or "
        "is paid for calls; lower --max_tool_calling_iterations, or reward the answer alone"
    )
    return fault("calls repeated", sentence)


# The cause before its consequences.
ONLINE_RULES = (
    *(reward_hacking, tool_never_called, calls_fail, calls_repeated),
    *(entropy_collapse, length_hacking, truncation, kl_blow_up, groups_too_small),
    *(reward_without_spread, dead_critic, length_collapse, no_reward),
)
