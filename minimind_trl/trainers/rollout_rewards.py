"""The rewards of rollouts: reward functions that are checked, their errors, and completions that get no reward."""

import math
import sys
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from trl.data_utils import is_conversational
from trl.trainer.utils import get_callable_name, is_async_callable

from ..errors import InputError
from ..internals import replaced
from ..rewards import Reward, declared_range
from .rollout import Rollout
from .rollout_engine import RolloutEngine

MAX_UNREWARDED = 10  # rollouts in a row without any reward end a run; at the start of a run a single one does


class RolloutRewards(RolloutEngine):
    """Scores completions, and counts or raises what goes wrong with reward functions."""

    watch_funcs: Sequence[Reward] = ()  # what the reward does not see, measured in evaluations
    num_reward_errors = 0
    unrewarded_rollouts = MAX_UNREWARDED - 1  # in a row
    _reported_error = False
    _of_environments = 0  # place of the first reward that an environment gives

    def prepare_reward_funcs(self) -> None:
        """Set how reward functions report their errors."""
        alone = (
            self.accelerator.num_processes == 1
        )  # otherwise all processes must learn of an error before it is raised
        for reward in [*self._checked_rewards(), *self.watch_funcs]:
            reward.on_error = "none" if self.args.reward_errors == "none" else "raise" if alone else "note"

    def check_environment_rewards(self, first: int) -> None:
        """Make the rewards that environments give, from place `first` on, checked ones with their class's range."""
        self._of_environments = first
        classes = {type(environment).__name__: type(environment) for environment in self.one_of_each_environment()}
        for place, name in [*enumerate(self.reward_func_names)][first:]:
            function, owner = self.reward_funcs[place], classes[name]
            if not is_async_callable(function):
                low, high = getattr(owner, "low", -math.inf), getattr(owner, "high", math.inf)
                self.reward_funcs[place] = Reward(function, name, low, high)

    def score_completions(self, rows: list[dict], prompts: list, completions: list, completion_ids: list) -> Tensor:
        """(N, functions) rewards of all processes' completions; NaN where a function gave none.

        Raises:
            InputError: a reward is infinite, or a function failed and `reward_errors` is "raise".
        """
        rewards = super().score_completions(rows, prompts, completions, completion_ids)
        self._handle_reward_errors()
        if rewards.isinf().any():
            raise InputError("a reward is infinite")
        return rewards

    def rewards_of(self, rows: list[dict], completion_ids: list[list[int]]) -> Tensor:
        """(N, functions) rewards of completions that another model wrote, of all processes; nothing is logged."""
        texts = self.text_tokenizer.batch_decode(completion_ids, skip_special_tokens=True)
        rows = self.with_rendered_prompts(rows)
        talk = is_conversational(rows[0])
        completions = [[{"role": "assistant", "content": text}] for text in texts] if talk else texts
        rewards = self.score_completions(rows, [row["prompt"] for row in rows], completions, completion_ids)
        self.discard_reward_logs()
        return rewards

    def watched_scores(self, rollout: Rollout) -> Tensor:
        """(N, watched functions) of all processes' completions of a rollout; nothing is logged."""
        names = [get_callable_name(function) for function in self.watch_funcs]
        functions = {"reward_funcs": self.watch_funcs, "reward_processing_classes": [None] * len(names)}
        with replaced(self, **functions, reward_func_names=names):
            scores = self.score_completions(rollout.rows, rollout.prompts, rollout.completions, rollout.completion_ids)
        self.discard_reward_logs()
        return scores

    def declared_range(self) -> tuple[float, float]:
        """Lowest and highest weighted sum of the rewards; infinite where a function declares no range."""
        functions, weights, first = self.reward_funcs, self.reward_weights.tolist(), self._of_environments
        low, high = declared_range(functions[:first], weights[:first])
        pairs = zip(functions[first:], weights[first:], strict=True)
        ends = [declared_range([one], [weight]) for one, weight in pairs]  # an answer has one environment
        return low + min((end[0] for end in ends), default=0), high + max((end[1] for end in ends), default=0)

    def expect_rewards(self, rewards: Tensor) -> None:
        """Count rollouts without any reward; `rewards` (N, ...) are those of one, NaN for none.

        Raises:
            InputError: no completion has a reward, in the first rollout or in ten in a row.
        """
        if not rewards.isnan().all():
            self.unrewarded_rollouts = 0
            return
        self.unrewarded_rollouts += 1
        if self.unrewarded_rollouts >= MAX_UNREWARDED:
            names, count = ", ".join(self.reward_func_names), len(rewards)
            raise InputError(f"{count} of {count} completions have no reward: {names} returned None for them")

    def _handle_reward_errors(self) -> None:
        """Count the errors that reward functions noted, or raise the first in all processes."""
        noted = [error for reward in self._checked_rewards() for error in reward.noted]
        for reward in self._checked_rewards():
            reward.noted.clear()
        if self.args.reward_errors == "raise":
            self.fail_together(noted[0] if noted else None)
            return
        if noted and not self._reported_error:
            self._reported_error = True
            print(f"--reward_errors none: {noted[0]}; further errors are only counted", file=sys.stderr)
        self.num_reward_errors += int(self.sum_over_processes(torch.tensor(len(noted), device=self.accelerator.device)))

    def _checked_rewards(self) -> list[Reward]:
        return [function for function in self.reward_funcs if isinstance(function, Reward)]


def checked(function: Any) -> Any:
    """A reward function whose results are checked; models and paths, which TRL calls itself, are left as they are."""
    if isinstance(function, (str, nn.Module, Reward)) or is_async_callable(function):
        return function
    if not callable(function):
        raise InputError(f"a reward function is a function, a model or a path, not {function!r}")
    return Reward(function, get_callable_name(function))
