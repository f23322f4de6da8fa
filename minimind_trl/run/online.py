"""Online RL as the recipes run it: rewards, the trainers of `minimind_trl.trainers`, and a flight check of its own."""

import inspect
import json
import math
import time
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import islice
from typing import Any, ClassVar

import torch
from datasets import DatasetDict, IterableDataset
from rich.console import Console
from transformers import GenerationConfig, PreTrainedTokenizerBase
from transformers.utils import is_hqq_available, is_optimum_quanto_available

from ..data import DatasetMixer
from ..errors import InputError, nearest
from ..evaluation.answers import render_prompt
from ..rewards import Reward, load_rewards
from ..tokenization import compare_prompts
from ..trainers import PPOTrainer, RolloutTrainer, SPOTrainer
from ..trainers.doctor import RLDoctor
from ..trainers.ppo_config import PPOConfig
from ..trainers.rollout_config import RolloutConfig
from ..trainers.rollout_engine import TEMPLATE_KWARGS
from ..trainers.spo_config import SPOConfig
from .arguments import BY_EVALUATION, OWN_EVALUATION, Machine, RecipeArguments
from .flight_check import (
    SAMPLE,
    overlap_problems,
    print_model,
    print_warnings,
    resume_problems,
    tokenizer_problems,
)
from .learning_rates import settle_learning_rate
from .option_ranges import check_options
from .training import adapter_for, capped, refusals, run, settle

_TRIALS = 4  # batches that are answered before training
_EXAMPLES = 2
_LOOKED_AT = 100_000  # prompts whose length is taken
_STREAM_HEAD = 1000  # rows of a stream that are looked at before it starts
_SHOWN = 80  # characters of a value in a message


@dataclass
class OnlineDefaults(Machine):
    """What the online recipes add to their configs; by default a rollout has 64 answers in each process.

    TRL's 8 are too few to tell a good answer from a lucky one.
    """

    gradient_accumulation_steps: int = field(
        default=8, metadata={"help": "Batches of a step; a rollout has as many, in PPO times --num_mini_batches."}
    )
    reward_funcs: list[str] = field(
        default_factory=list,
        metadata={
            "help": "exact_match, position_match, math_accuracy, ..., a reward model's folder, or module:function; "
            "parameters as in length:low=5,high=20. Weights: --reward_weights."
        },
    )
    thinking_ratio: float = field(
        default=0.0,
        metadata={"help": "Share of prompts that end in an open <think> (MiniMind-3's template; its recipes: 0.9)."},
    )
    allow_equal_rewards: bool = field(
        default=False,
        metadata={"help": "Start although the reward seems to be a constant."},
    )

    refused_options: ClassVar[dict[str, str | None]] = OWN_EVALUATION | {
        "remove_unused_columns": "rewards read the columns of the rows",
        "label_smoothing_factor": "has no effect on rewards",
        "train_sampling_strategy": "prompts are drawn by the trainer",
        "length_column_name": "prompts are drawn by the trainer",
    }

    def __post_init__(self):
        if self.metric_for_best_model is None and self.load_best_model_at_end:
            self.metric_for_best_model = "reward"  # the loss of a rollout says nothing about how good the policy is
        # TRL wants evaluation batches of whole groups; ours takes one prompt after the other.
        count, self.num_generations_eval = self.num_generations_eval, 1
        try:
            super().__post_init__()
        except InputError as error:
            raise InputError(f"{error}{self._hint(str(error))}") from error
        self.num_generations_eval = count

    def problems(self) -> Iterator[str]:
        yield from super().problems()
        if self.max_completion_length is None:
            yield "--max_completion_length none: an answer must end somewhere; give a number of tokens"
        if not 0 <= self.thinking_ratio <= 1:
            yield f"--thinking_ratio {self.thinking_ratio}: a share, between 0 and 1"
        if self.thinking_ratio and "open_thinking" in (self.chat_template_kwargs or {}):
            yield "--thinking_ratio sets open_thinking prompt by prompt: leave it out of chat_template_kwargs"
        if self.lr_scheduler_type in BY_EVALUATION:
            yield f"--lr_scheduler_type {self.lr_scheduler_type} goes by a loss that falls, and there is none here"

    def late_problems(self) -> Iterator[str]:
        yield from super().late_problems()
        if self.cache_implementation == "quantized" and not (is_optimum_quanto_available() or is_hqq_available()):
            yield "--cache_implementation quantized: its package is not installed: pip install optimum-quanto"
        own = {"messages", *inspect.signature(PreTrainedTokenizerBase.apply_chat_template).parameters}
        for name in own & {*(self.chat_template_kwargs or ())}:
            yield f"--chat_template_kwargs: {name!r} is the trainer's to give"
        if self.use_vllm or not self.generation_kwargs:
            return  # vLLM knows others
        known = GenerationConfig().to_dict()
        for name in self.generation_kwargs:
            if name not in known:
                yield f"--generation_kwargs: {name!r} is not known{nearest(str(name), known)}"
        for name in {"num_beams", "num_return_sequences"} & self.generation_kwargs.keys():
            yield f"--generation_kwargs: {name} has no place here: an answer is one sample of the policy"
        if "stop_strings" in self.generation_kwargs:
            yield "--generation_kwargs: stop_strings needs the tokenizer, which TRL does not pass on"
        own = {name: value for name, value in self.generation_kwargs.items() if name in self.__dataclass_fields__}
        yield from (
            f"--generation_kwargs: {problem.removeprefix('--')}" for problem in check_options(type(self), own)[1]
        )

    def _hint(self, message: str) -> str:
        if "requires at least 2 generations" in message:
            return " For one completion per prompt use recipes/spo.py or recipes/ppo.py."
        if "must be divisible by num_generations" not in message:
            return ""
        batch = self.generation_batch_size
        fitting = [count for count in range(2, batch + 1) if batch % count == 0]
        closest = min(fitting, key=lambda count: abs(count - self.num_generations), default=None)
        more = -(-batch // self.num_generations) * self.num_generations
        each = f"--per_device_train_batch_size {self.num_generations}"
        return (
            f" Set --num_generations {closest}, or {each} (a batch of {more} would do)" if closest else f" Set {each}"
        )


@dataclass
class GRPORecipeConfig(OnlineDefaults, RolloutConfig):
    """Group relative policy optimisation: TRL's GRPOTrainer with our evaluation."""

    stage = "grpo"


@dataclass
class PPORecipeConfig(OnlineDefaults, PPOConfig):
    """Proximal policy optimisation."""

    stage = "ppo"


@dataclass
class SPORecipeConfig(OnlineDefaults, SPOConfig):
    """Single-stream policy optimisation."""

    stage = "spo"


_TRAINERS = {GRPORecipeConfig: RolloutTrainer, PPORecipeConfig: PPOTrainer, SPORecipeConfig: SPOTrainer}


def load_reward_funcs(config: OnlineDefaults) -> list[Reward]:
    """The rewards that the command line or the YAML names; sets their weights in the config.

    Raises:
        InputError: of `load_rewards`.
    """
    rewards, config.reward_weights = load_rewards(config.reward_funcs, config.reward_weights)
    return rewards


def train_online(args, config, lora, model, rewards, tokenizer, data: DatasetDict, mixer: DatasetMixer) -> dict:
    """Train with the trainer that belongs to the config; of `run`'s arguments and results."""
    trainer_class = _TRAINERS[type(config)]
    settle(args, config, trainer_class.method)
    settle_learning_rate(args, config, lora, model)
    data = _with_tools(config, _with_thinking(config, data, tokenizer), tokenizer)
    problems = [*_column_problems(rewards, data), *_length_problems(config, model, tokenizer, data)]
    if problems:
        raise InputError("\n".join(problems))
    if isinstance(data["train"], IterableDataset):
        config.shuffle_dataset = False  # the mixer has, and rows in a second buffer would be lost to a resumed run
    with refusals(config.output_dir):
        trainer = trainer_class(
            model,
            rewards,
            config,
            train_dataset=data["train"],
            eval_dataset=capped(args, config, data.get("validation")),
            processing_class=tokenizer,
            peft_config=adapter_for(args, lora, model),
        )
    trainer.add_callback(RLDoctor())
    return run(trainer, args, tokenizer, data, mixer, check=online_check)


def online_check(
    trainer: RolloutTrainer,
    args: RecipeArguments,
    tokenizer: PreTrainedTokenizerBase,
    data: DatasetDict,
    mixer: DatasetMixer,
) -> None:
    """Refuse what could not learn; print mixture, two prompts with answers and rewards, plan, memory and time.

    Rewards that were equal in the trial, but may differ, are a warning.

    Raises:
        InputError: one line for each reason.
    """
    boundary = compare_prompts(islice(data["train"], SAMPLE), trainer.processing_class)
    problems = [
        *tokenizer_problems(trainer, args, tokenizer),
        *boundary.problems(),
        *overlap_problems(data),
        *resume_problems(trainer, args, mixer),
        *unscored_problems(trainer, data),
    ]
    if problems:
        raise InputError("\n".join(problems))
    started = time.perf_counter()
    answers = _trial(trainer, data)
    seconds = (time.perf_counter() - started) / len(answers)
    values = _rewards(answers)
    trainer.expect_rewards(torch.tensor(values or [math.nan] * len(answers)))
    problem, warning = reward_problem(trainer.declared_range(), answers)
    if problem and not trainer.args.allow_equal_rewards:
        raise InputError(f"{problem}. --allow_equal_rewards true goes on anyway")
    if trainer.is_world_process_zero():
        _print_plan(trainer, mixer, answers, seconds)
        print_warnings([*filter(None, (problem, warning)), *boundary.warnings()])


def unscored_problems(trainer: RolloutTrainer, data: DatasetDict) -> list[str]:
    """Tell of prompts whose answers a reward cannot score, such as right answers that are no mathematics.

    Returns:
        Why not to start, where a reward can score none of the training prompts.
    """
    problems = []
    for reward in trainer.reward_funcs:
        if getattr(reward, "can_score", None) is None:
            continue
        for split, rows in data.items():
            is_stream = isinstance(rows, IterableDataset)
            looked_at = list(islice(rows, _STREAM_HEAD)) if is_stream else rows.select_columns(reward.columns())
            unscored = reward.unscored(looked_at)
            if not unscored:
                continue
            about = ", ".join(f"{column} {_short(unscored[0][column])}" for column in reward.columns())
            all_of_them = f"the {'first ' * is_stream}{len(looked_at):,} {split} prompts, such as one with {about}"
            if len(unscored) == len(looked_at) and split == "train":
                problems.append(f"reward {reward.__name__} can score none of {all_of_them}")
            elif trainer.is_world_process_zero():
                print(
                    f"warning: reward {reward.__name__} cannot score {len(unscored):,} of {all_of_them}: their answers "
                    "get no reward from it"
                )
    return problems


def reward_problem(reward_range: tuple[float, float], answers: list[dict]) -> tuple[str | None, str | None]:
    """What equal rewards of all trial answers mean: a reason not to start, and a warning; of each at most one line.

    A reward that the range, or a value above 0 without one, shows to be a constant is a problem. Otherwise good answers
    may just be rare: of n answers without one success, the success rate is below `1 - 0.05^(1/n)` with 95% confidence.

    Args:
        reward_range: lowest and highest that is declared; infinite where it is not.
        answers: with `completion` and `reward`, None where there is none.
    """
    low, high = reward_range
    if low == high:
        return f"the reward can only be {low:g}: nothing to learn from; take another reward, or another weight", None
    values = _rewards(answers)
    if not values or max(values) - min(values) >= 1e-9:
        return None, None
    value, count = values[0], len(values)
    at_lowest = value <= low + 1e-6
    if not (at_lowest or math.isfinite(high - low)) and value > 0:
        return (
            f"the reward is {value:g} for all of {count} answers to training prompts: nothing to learn from. The first "
            f"answer is {answers[0]['completion']!r}. Give a reward that differs, and tell its range by the function's "
            "attributes low and high"
        ), None
    if value >= high - 1e-6:
        return None, f"all of {count} trial answers got the highest reward, {value:g}: these prompts teach nothing more"
    seen = 1 - 0.05 ** (1 / count)
    return None, (
        f"all of {count} trial answers got the {'lowest' if at_lowest else 'same'} reward, {value:g}. So many answers "
        f"show a success rate of about {seen:.0%} or more; below that learning begins with the first success. Sooner: "
        "a checkpoint that is sometimes right, easier prompts, a graded reward"
    )


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= _SHOWN else f"{text[: _SHOWN - 3]}..."


def _trial(trainer: RolloutTrainer, data: DatasetDict) -> list[dict[str, Any]]:
    """Answers of the policy to the first prompts, at training's temperature, until two rewards differ."""
    size = trainer.args.per_device_eval_batch_size * trainer.accelerator.num_processes
    answers: list[dict[str, Any]] = []
    prompts = iter(data["train"])
    for _ in range(_TRIALS):
        rows = list(islice(prompts, size))
        if not rows:
            break
        answers += trainer.answer(rows)
        if len(set(_rewards(answers))) > 1:
            break
    return answers


def _rewards(answers: list[dict[str, Any]]) -> list[float]:
    """Of the answers that have one."""
    return [answer["reward"] for answer in answers if answer["reward"] is not None]


def _column_problems(rewards: list[Reward], data: DatasetDict) -> Iterator[str]:
    known = list(next(iter(data["train"])))
    for reward in rewards:
        for column in reward.columns():
            if column not in known:
                yield (
                    f"reward {reward.__name__} needs the column {column!r}{nearest(column, known)}; the mixture's rows "
                    f"have {', '.join(known)} (keep_columns: [{column}] keeps a source's)"
                )


def _length_problems(config, model, tokenizer: PreTrainedTokenizerBase, data: DatasetDict) -> list[str]:
    room = model.config.max_position_embeddings - config.max_completion_length
    longest = f"--max_completion_length {config.max_completion_length} leave no room in"
    if room < 1:
        return [f"{longest} the model's {model.config.max_position_embeddings} positions: set it lower"]
    lengths = [len(ids) for ids in _tokenized(config, tokenizer, islice(data["train"], _LOOKED_AT))]
    over = [length for length in lengths if length > room]
    if not over:
        return []
    return [
        f"{len(over)} of {len(lengths)} prompts have more than {room} tokens (the longest {max(over)}), which with "
        f"{longest} the model's {model.config.max_position_embeddings} positions: drop them with a length filter, or "
        "set it lower"
    ]


def _tokenized(config: OnlineDefaults, tokenizer: PreTrainedTokenizerBase, rows) -> list[list[int]]:
    template = config.chat_template_kwargs or {}
    texts = [row["prompt"] if isinstance(row["prompt"], str) else _asked(row, tokenizer, template) for row in rows]
    return tokenizer(texts, add_special_tokens=False).input_ids


def _asked(row: dict, tokenizer: PreTrainedTokenizerBase, template: dict[str, Any]) -> str:
    return render_prompt(tokenizer, row["prompt"], row.get("tools"), **(template | (row.get(TEMPLATE_KWARGS) or {})))


def _with_thinking(config: OnlineDefaults, data: DatasetDict, tokenizer: PreTrainedTokenizerBase) -> DatasetDict:
    """A share of the prompts with an open think block; which ones, their text and the seed decide.

    Raises:
        InputError: the chat template does not know `open_thinking`.
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


def _with_tools(config: OnlineDefaults, data: DatasetDict, tokenizer: PreTrainedTokenizerBase) -> DatasetDict:
    """Prompts whose rows name tools as text, with the tools in it: TRL renders only those that it runs itself."""
    train = data["train"]
    if "tools" not in next(iter(train)):
        return data
    if isinstance(train, IterableDataset) and not any(row["tools"] for row in islice(train, _STREAM_HEAD)):
        return DatasetDict({split: rows.map(_refuse_tools, remove_columns="tools") for split, rows in data.items()})

    template = config.chat_template_kwargs or {}

    def rendered(row: dict) -> dict:
        # reward models get the messages, and render them by their own template
        return {"prompt": _asked(row, tokenizer, template), "messages": row["prompt"]}

    return DatasetDict({split: rows.map(rendered) for split, rows in data.items()})


def _refuse_tools(row: dict) -> dict:
    if row["tools"]:
        raise InputError(
            f"a prompt of source {row['source']!r} has tools, and none of the stream's first {_STREAM_HEAD} has: all "
            "prompts of a run are text, or all are messages; set streaming: false, or put those with tools first"
        )
    return row


def _print_plan(trainer: RolloutTrainer, mixer: DatasetMixer, answers: list[dict], seconds: float) -> None:
    config, console = trainer.args, Console(highlight=False, soft_wrap=True)
    if mixer.report:
        console.print(mixer.report.table())
    for number, answer in enumerate(answers[:_EXAMPLES], start=1):
        console.rule(f"train prompt {number}, and an answer of the policy as it is")
        said = [_last(answer["prompt"]), answer["completion"]]
        console.print(*(json.dumps(text, ensure_ascii=False) for text in said), sep="\n", markup=False)
        console.print("no reward" if answer["reward"] is None else f"reward {answer['reward']:.3f}")
    print_model(console, trainer)
    if config.thinking_ratio:
        console.print(f"prompts: about {config.thinking_ratio:.0%} of them end in an open think block")
    values = _rewards(answers)
    prompts = config.generation_batch_size // config.num_generations
    updates = config.steps_per_generation * config.num_iterations // config.gradient_accumulation_steps
    console.print(
        f"plan: a rollout answers {prompts} prompts with {config.num_generations} completion(s) each of at most "
        f"{config.max_completion_length} tokens, in {config.world_size} process(es); then {updates or 1} step(s)"
    )
    if values:
        console.print(
            f"rewards: mean {sum(values) / len(values):.3f} of {len(values)} trial answers, from {min(values):.3f} to "
            f"{max(values):.3f}"
        )
    console.print(f"time: about {seconds * config.generation_batch_size:.1f} s a rollout here; the steps come on top")


def _last(prompt: str | list[dict]) -> str:
    return prompt if isinstance(prompt, str) else prompt[-1]["content"]
