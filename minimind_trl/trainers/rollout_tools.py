"""Tools in rollouts: what each answer may call, what its calls come to, and what is counted."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ..internals import Generation, GRPOHooks
from ..rewards import declared_range
from ..tokenization import decode_tools, escape_control_tokens, with_calls
from ..tools import OfferedTools, ToolFailure, environment_tools, failure_of, offered_names
from .rollout import Rollout, weighted_sums

TEMPLATE_KWARGS = "chat_template_kwargs"  # the column with a prompt's own arguments for the chat template

TOOL_COUNTS = ("calls", "repeated_calls", *ToolFailure.KINDS, "cut_results")


class RolloutTools(GRPOHooks):
    """Tool calls for GRPOTrainer that cost no more than their completion, whatever is called and comes back.

    A row with the column `tools` (JSON schemas) is shown these and may call the functions of these names; other rows
    may call all of the trainer's `tools`. Methods of a row's environment come on top. A call that cannot be read, names
    no tool, has wrong arguments, or fails, gets a short error as its result. Results are cut to
    `max_tool_result_length` characters, and control tokens in them are broken up.
    """

    def shown_tools(self, row: dict) -> list[dict | Callable]:
        """What a row's prompt says about tools: schemas, or functions that have one."""
        shown = (decode_tools(row.get("tools")) if self.tools else None) or self.tools_without_environments()
        environment = self.environment_of(row)
        return [*shown, *(getattr(environment, name) for name in environment_tools(type(environment)))]

    def offered_tools(self, row: dict, tools: list[Callable]) -> OfferedTools:
        if names := offered_names(row.get("tools")):
            names += environment_tools(type(self.environment_of(row)))
            tools = [tool for tool in tools if tool.__name__ in names]
        return OfferedTools(tools, self.args.max_tool_result_length, self._without_control_tokens)

    def _without_control_tokens(self, text: str) -> str:
        return escape_control_tokens({"text": text}, self.text_tokenizer)[0]["text"]

    def template_kwargs_of(self, row: dict) -> dict[str, Any]:
        return self.chat_template_kwargs | (row.get(TEMPLATE_KWARGS) or {})

    def parse_answer(self, tokenizer, ids: list[int], prefix: list[int] | None = None, tools=None) -> dict[str, Any]:
        try:
            message = super().parse_answer(tokenizer, ids, prefix, tools)
        except RecursionError:  # JSON that is nested too deep
            message = {"role": "assistant", "content": tokenizer.decode(ids, skip_special_tokens=True)}
        text = tokenizer.decode(ids)
        if not self.tools or "<tool_call>" not in text:
            return message
        turn = tokenizer.decode(prefix or []).rpartition("<think>")
        is_thinking = bool(turn[1]) and "</think>" not in turn[2]
        return with_calls(message, text, is_thinking, bool(ids) and ids[-1] in self.eos_token_ids)

    def tool_use(self, generation: Generation) -> dict[str, Tensor] | None:
        """Counts of each answer: `TOOL_COUNTS`, `turns` of the policy, and `environment_failures` (0 or 1).

        They are recorded for the next log, those of calls as a share of all calls.
        """
        if generation.offered is None:
            return None
        turns = [sum(message["role"] == "assistant" for message in one) for one in generation.completions]
        failures = [failure_of(environment) is not None for environment in self.environments or ()]
        counts = {name: [tools.counts[name] for tools in generation.offered] for name in TOOL_COUNTS}
        counts |= {"turns": turns, "environment_failures": failures or [False] * len(turns)}
        device = self.accelerator.device
        use = {name: torch.tensor(values, dtype=torch.float32, device=device) for name, values in counts.items()}
        self._record_tool_use(use)
        return use

    def _record_tool_use(self, use: dict[str, Tensor]) -> None:
        names = [*use]
        sums = self.sum_over_processes(torch.stack([*(values.sum() for values in use.values()), self._count_of(use)]))
        totals = dict(zip([*names, "answers"], sums.tolist(), strict=True))
        calls = totals["calls"] or float("nan")
        self.record(**{f"tools/{name}": totals[name] / calls for name in TOOL_COUNTS if name != "calls"})
        self.record(**{f"tools/{name}": totals[name] / totals["answers"] for name in ("turns", "environment_failures")})

    @staticmethod
    def _count_of(use: dict[str, Tensor]) -> Tensor:
        turns = use["turns"]
        return torch.tensor(float(len(turns)), device=turns.device)

    # Evaluation

    def tool_columns(self, rollout: Rollout) -> dict[str, Tensor]:
        """Figures of the answers of a rollout, a row for each; {} without tools."""
        if rollout.tool_use is None:
            return {}
        use = rollout.tool_use
        columns = {f"tools/{name}": use[name] for name in ("calls", "repeated_calls", "turns")}
        columns["tools/failed_calls"] = torch.stack([use[kind] for kind in ToolFailure.KINDS]).sum(0)
        names = self._environment_names()
        if len(names) > 1:
            places = [names.index(row["environment"]) for row in rollout.rows]
            columns["environment"] = torch.tensor(places, device=use["calls"].device)
        return columns

    def tool_figures(self, columns: dict[str, Tensor]) -> dict[str, float]:
        """Held-out means an answer, over all answers and by environment.

        An answer is a success if its reward is the highest that the functions which scored it declare.

        Args:
            columns: of all answers, with those from `tool_columns`.
        """
        means = {name: column for name, column in columns.items() if name.startswith("tools/")}
        if not means:
            return {}
        rewards = weighted_sums(columns["rewards"], self.reward_weights)
        highs = [
            declared_range([one], [weight])[1]
            for one, weight in zip(self.reward_funcs, self.reward_weights.tolist(), strict=True)
        ]
        highest = torch.tensor(highs, device=rewards.device).masked_fill(columns["rewards"].isnan(), 0).sum(1)
        if highest.isfinite().all():
            means["success"] = (rewards >= highest - 1e-6).float()
        figures = {name: column.mean().item() for name, column in means.items()}
        for place, environment in enumerate(self._environment_names() if "environment" in columns else ()):
            own = columns["environment"] == place
            parts = means | {"reward": rewards}
            figures |= {f"{environment}/{name}": column[own].nanmean().item() for name, column in parts.items()}
        return figures

    def _environment_names(self) -> list[str]:
        return [*(self.environment_factories or ())]
