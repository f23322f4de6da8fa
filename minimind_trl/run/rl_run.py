"""A run of an online recipe: GRPO, PPO or SPO."""

import json
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from types import MappingProxyType
from typing import Any

import pyarrow.compute as pc
from datasets import Dataset, DatasetDict, IterableDataset
from transformers import PreTrainedTokenizerBase

from ..errors import InputError, nearest, raise_all
from ..evaluation.answers import render_prompt
from ..models.checkpoints import architecture_of
from ..rewards import Reward, load_rewards
from ..tokenization import decode_tools
from ..tools import (
    ToolLimits,
    environment_schemas,
    environment_tools,
    load_environments,
    load_tools,
    offered_names,
    tool_schemas,
)
from ..trainers.rollout_tools import TEMPLATE_KWARGS
from .online_configs import OnlineConfig
from .recipe_run import Run, Splits
from .rl_flight_check import STREAM_HEAD, rl_flight_check

_LOOKED_AT = 100_000  # prompts to measure


class RLRun(Run):
    """A `Run` with prompts as data and reward functions that score the answers.

    Attributes:
        reward_funcs: those of `--reward_funcs`; their weights are set in the config.
        watch_funcs: those of `--watch`.
        tools: functions that the answers may call, of `--tools` and of the mixture's sources; set by `load_data`.
        environment_factory: the class of `--environment`, or several by name; None without.

    Raises:
        InputError: also from `load_rewards`.
    """

    def __init__(self, args, config: OnlineConfig, lora):
        self.limits = ToolLimits(config.tool_timeout, config.tool_memory)
        self.environments = load_environments(config.environment, Path.cwd(), self.limits)
        self.tools = [*load_tools(config.tools, Path.cwd(), self.limits).values()]
        self.reward_funcs = []
        if config.reward_funcs or not any(hasattr(one, "get_reward") for one in self.environments.values()):
            self.reward_funcs, config.reward_weights = load_rewards(config.reward_funcs, config.reward_weights)
        self.watch_funcs = load_rewards(config.watch, option="--watch")[0] if config.watch else []
        super().__init__(args, config, lora)

    @property
    def environment_factory(self) -> type | dict[str, type] | None:
        return next(iter(self.environments.values())) if len(self.environments) == 1 else self.environments or None

    def load_data(self, *phases: str) -> Splits:
        """Load prompts, open think blocks (`--thinking_ratio`) and find the tools that sources name.

        Raises:
            InputError: also if a reward's column is missing, or prompts leave no room for an answer; or if a row has
                tools that are not there.
        """
        splits = super().load_data(*phases)
        self.tools = self._all_tools()
        self.data = _with_thinking(self.config, self.data, self.tokenizer)
        if not (self.tools or self.environments):
            self.data = _with_tools(self.config, self.data, self.tokenizer)
        raise_all(
            [
                *_tool_problems(self.tools, self.environments, self.data),
                *_watch_problems(self.config, self.args),
                *_vllm_problems(self.config, self.args),
                *_column_problems([*self.reward_funcs, *self.watch_funcs], self.data),
                *_length_problems(self.config, self.model, self.tokenizer, self.data, self.tools, self.environments),
            ]
        )
        return Splits(self.data["train"], splits.validation and self.data["validation"])

    def _all_tools(self) -> list[Callable]:
        """The tools of `--tools`, and those of the mixture's sources."""
        named = [name for source in self.mixer.mixture.datasets for name in source.tools or ()]
        named = [name for name in dict.fromkeys(named) if name not in self.config.tools]
        if not named:
            return self.tools
        folder = Path(self.mixer.path).parent.resolve()
        tools = load_tools(named, folder, self.limits, f"{self.args.data_config}: tools")
        return [*self.tools, *(tool for tool in tools.values() if tool.__name__ not in _names(self.tools))]

    def check(self, trainer) -> dict[str, Any]:
        return rl_flight_check(trainer, self)


def _watch_problems(config: OnlineConfig, args) -> Iterator[str]:
    if config.watch and not args.eval_interval:
        yield f"--watch is measured on held-out prompts, and {args.data_config} has none"


def _vllm_problems(config: OnlineConfig, args) -> Iterator[str]:
    """vLLM loads the policy from its folder, before it gets weights, and knows only stock classes."""
    if not config.use_vllm:
        return
    if not args.as_twin:
        yield "--use_vllm needs --as_twin: vLLM knows the stock classes only"
    if config.vllm_mode == "colocate" and _is_minimind(args.from_weight):
        yield (
            f"--use_vllm reads the start from its folder, and {args.from_weight or args.preset} is a MiniMind: give "
            "--from_weight a folder that `minimind-trl convert CHECKPOINT FOLDER --to vllm` wrote"
        )


def _is_minimind(name: str | None) -> bool:
    return name is None or (architecture_of(name) or "").startswith("MiniMind")


def _names(tools: Iterable[Callable]) -> list[str]:
    return [tool.__name__ for tool in tools]


def _tool_problems(tools: list[Callable], environments: dict[str, type], data: DatasetDict) -> Iterator[str]:
    """Rows that offer a tool without a function, or ask for an environment that is not there."""
    rows = data["train"]
    first = next(iter(rows))
    if tools or environments:
        known = [*_names(tools), *(name for one in environments.values() for name in environment_tools(one))]
        offered = (
            {name for value in _values(rows, "tools") for name in offered_names(value)} if "tools" in first else ()
        )
        for name in sorted({*offered} - {*known}, key=str):
            yield (
                f"rows offer the tool {name!r}, and no function has this name{nearest(str(name), known)}: give --tools "
                "module:function, or --tools minimind3 for the tools of upstream's data"
            )
    if len(environments) < 2:
        return
    if "environment" not in first:
        yield (
            f"--environment {' '.join(environments)}: the rows' column `environment` says which one a row is for, and "
            "they have none (keep_columns: [environment] keeps a source's)"
        )
        return
    for name in sorted({*_values(rows, "environment")} - {*environments}, key=str):
        yield f"rows ask for the environment {name!r}{nearest(str(name), environments, listed=True)}"


def _values(rows, column: str) -> set:
    """The different values of a column; of a stream those of its first rows."""
    is_stream = isinstance(rows, IterableDataset)
    return {row[column] for row in islice(rows, STREAM_HEAD)} if is_stream else {*rows.unique(column)}


def _column_problems(rewards: list[Reward], data: DatasetDict) -> Iterator[str]:
    known = list(next(iter(data["train"])))
    for reward in rewards:
        for column in reward.columns():
            if column not in known:
                yield (
                    f"reward {reward.__name__} needs the column {column!r}{nearest(column, known)}; the mixture's rows "
                    f"have {', '.join(known)} (keep_columns: [{column}] keeps a source's)"
                )


def _length_problems(
    config,
    model,
    tokenizer: PreTrainedTokenizerBase,
    data: DatasetDict,
    tools: list[Callable],
    environments: dict[str, type],
) -> list[str]:
    room = model.config.max_position_embeddings - config.max_completion_length
    longest = f"--max_completion_length {config.max_completion_length} leave no room in"
    if room < 1:
        return [f"{longest} the model's {model.config.max_position_embeddings} positions: set it lower"]
    lengths = _prompt_lengths(config, tokenizer, data["train"], tools, environments)
    over = [length for length in lengths if length > room]
    if not over:
        return []
    return [
        f"{len(over)} of {len(lengths)} prompts have more than {room} tokens (the longest {max(over)}), which with "
        f"{longest} the model's {model.config.max_position_embeddings} positions: drop them with a length filter, or "
        "set it lower"
    ]


def _prompt_lengths(
    config: OnlineConfig,
    tokenizer: PreTrainedTokenizerBase,
    rows: Dataset | IterableDataset,
    tools: list[Callable],
    environments: dict[str, type],
) -> list[int]:
    """Tokens of the first prompts; taken from the mixture where it has tokenized them as they are asked."""
    has_ids = isinstance(rows, Dataset) and "prompt_ids" in rows.column_names
    asked_otherwise = tools or environments or config.chat_template_kwargs
    if has_ids and not asked_otherwise and not {"tools", TEMPLATE_KWARGS} & {*rows.column_names}:
        first = rows.select(range(min(len(rows), _LOOKED_AT))).select_columns(["prompt_ids"]).with_format("arrow")
        return pc.list_value_length(first[:]["prompt_ids"]).to_pylist()
    return [len(ids) for ids in _tokenized(config, tokenizer, islice(rows, _LOOKED_AT), tools, environments)]


def _tokenized(
    config: OnlineConfig,
    tokenizer: PreTrainedTokenizerBase,
    rows,
    tools: Sequence[Callable] = (),
    environments: Mapping[str, type] = MappingProxyType({}),
) -> list[list[int]]:
    """Token ids of prompts, without what an environment adds to them."""
    template = config.chat_template_kwargs or {}
    of_all, own = tool_schemas(tools), {name: environment_schemas(one) for name, one in environments.items()}

    def asked(row: dict) -> str:
        if isinstance(row["prompt"], str):
            return row["prompt"]
        environment = row.get("environment") if len(own) > 1 else next(iter(own), None)
        shown = [*(decode_tools(row.get("tools")) or of_all), *own.get(environment, [])]
        return _asked(row | {"tools": shown}, tokenizer, template)

    return tokenizer([asked(row) for row in rows], add_special_tokens=False).input_ids


def _asked(row: dict, tokenizer: PreTrainedTokenizerBase, template: dict[str, Any]) -> str:
    return render_prompt(tokenizer, row["prompt"], row.get("tools"), **(template | (row.get(TEMPLATE_KWARGS) or {})))


def _with_thinking(config: OnlineConfig, data: DatasetDict, tokenizer: PreTrainedTokenizerBase) -> DatasetDict:
    """Open a think block in a share of the prompts, chosen by their text and the seed.

    Raises:
        InputError: the chat template has no `open_thinking`.
    """
    if not config.thinking_ratio:
        return data
    probe = [{"role": "user", "content": "?"}]
    if render_prompt(tokenizer, probe, open_thinking=True) == render_prompt(tokenizer, probe):
        raise InputError(
            f"--thinking_ratio {config.thinking_ratio:g}: the tokenizer's chat template has no open_thinking, as "
            "MiniMind-3's has: leave it out"
        )

    seed, ratio = config.seed, config.thinking_ratio

    def opened(row: dict) -> dict:
        drawn = zlib.crc32(json.dumps([seed, row["prompt"]], sort_keys=True).encode()) / 2**32
        return {TEMPLATE_KWARGS: {"open_thinking": drawn < ratio}}

    return DatasetDict({split: rows.map(opened) for split, rows in data.items()})


def _with_tools(config: OnlineConfig, data: DatasetDict, tokenizer: PreTrainedTokenizerBase) -> DatasetDict:
    """Render prompts with tools to text, because TRL renders only the tools that it runs itself."""
    train = data["train"]
    if "tools" not in next(iter(train)):
        return data
    if isinstance(train, IterableDataset) and not any(row["tools"] for row in islice(train, STREAM_HEAD)):
        return DatasetDict({split: rows.map(_refuse_tools, remove_columns="tools") for split, rows in data.items()})

    template = config.chat_template_kwargs or {}

    def rendered(row: dict) -> dict:
        # reward models render the messages by their own template
        return {"prompt": _asked(row, tokenizer, template), "messages": row["prompt"]}

    return DatasetDict({split: rows.map(rendered) for split, rows in data.items()})


def _refuse_tools(row: dict) -> dict:
    if row["tools"]:
        raise InputError(
            f"a prompt of source {row['source']!r} has tools, and none of the stream's first {STREAM_HEAD} has: all "
            "prompts of a run are text, or all are messages; set streaming: false, or put those with tools first"
        )
    return row
