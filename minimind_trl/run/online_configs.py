"""The configs of the online recipes: GRPO, PPO and SPO."""

import inspect
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, ClassVar

from transformers import GenerationConfig, PreTrainedTokenizerBase
from transformers.trainer_utils import IntervalStrategy, SaveStrategy
from transformers.utils import is_hqq_available, is_optimum_quanto_available

from ..errors import InputError, nearest
from ..internals import replaced
from ..rewards.registry import reward_name
from ..tools import ToolLimits
from ..trainers.ppo_config import PPOConfig
from ..trainers.rollout_config import RolloutConfig
from ..trainers.spo_config import SPOConfig
from .option_checks import check_options
from .recipe_configs import BY_EVALUATION, OWN_EVALUATION, RecipeConfig


@dataclass
class OnlineConfig(RecipeConfig):
    """What the online recipes add to their configs.

    A rollout has 64 answers in each process by default; TRL's 8 are too few to tell a good answer from a lucky one.
    """

    gradient_accumulation_steps: int = field(
        default=8, metadata={"help": "Batches per step. A rollout has as many (PPO: times --num_mini_batches)."}
    )
    reward_funcs: list[str] = field(
        default_factory=list,
        metadata={
            "help": "exact_match, position_match, math_accuracy, ..., a reward model's folder, or module:function; "
            "parameters as in length:low=5,high=20. Weights: --reward_weights."
        },
    )
    watch: list[str] = field(
        default_factory=list,
        metadata={
            "help": "What the reward does not see, named as for --reward_funcs, and measured in every evaluation as "
            "eval_watch/NAME. The doctor warns if one falls while the reward rises; the best checkpoint goes by the "
            "first."
        },
    )
    thinking_ratio: float = field(
        default=0.0,
        metadata={
            "help": "Share of prompts that end with an open <think> (MiniMind-3's template; its configs use 0.9)."
        },
    )
    tools: list[str] = field(
        default_factory=list,
        metadata={
            "help": "What the policy may call: calculator, unit_convert, ..., minimind3 (upstream's six), or "
            "module:function. See docs/agents.md."
        },
    )
    environment: list[str] = field(
        default_factory=list,
        metadata={
            "help": "module:Class, whose methods the policy may call (TRL's environment_factory). With several, the "
            "rows' column `environment` has the class's name."
        },
    )
    tool_timeout: float = field(default=5.0, metadata={"help": "Seconds for a call of your own tool or environment."})
    tool_memory: int = field(
        default=512, metadata={"help": "Megabytes for your own tools, on top of their imports (Linux)."}
    )
    allow_equal_rewards: bool = field(
        default=False,
        metadata={"help": "Start even if the reward seems to be constant."},
    )

    option_ranges: ClassVar[dict[str, Any]] = RolloutConfig.option_ranges
    refused_options: ClassVar[dict[str, str | None]] = OWN_EVALUATION | {
        "remove_unused_columns": "rewards read the columns of the rows",
        "label_smoothing_factor": "has no effect on rewards",
        "train_sampling_strategy": "prompts are drawn by the trainer",
        "length_column_name": "prompts are drawn by the trainer",
    }

    def __post_init__(self):
        chooses = self.load_best_model_at_end or self.save_strategy == SaveStrategy.BEST
        if self.metric_for_best_model is None and chooses:  # the loss says nothing about how good the policy is
            self.metric_for_best_model = f"watch/{reward_name(self.watch[0])}" if self.watch else "reward"
        # TRL requires evaluation batches of whole groups; our evaluation takes prompts one by one.
        with replaced(self, num_generations_eval=1):
            try:
                super().__post_init__()
            except InputError as error:
                raise InputError(f"{error}{self._hint(str(error))}") from error

    def problems(self) -> Iterator[str]:
        yield from super().problems()
        if self.max_completion_length is None:
            yield "--max_completion_length none: an answer must end somewhere; give a number of tokens"
        if not 0 <= self.thinking_ratio <= 1:
            yield f"--thinking_ratio {self.thinking_ratio}: a share, between 0 and 1"
        if self.watch and self.eval_strategy == IntervalStrategy.NO:
            yield f"--watch {' '.join(self.watch)} is measured in evaluations: set --eval_interval N"
        for spec in set(self.watch) & set(self.reward_funcs):
            yield f"--watch {spec}: the reward sees it; watch what it does not see"
        yield from ToolLimits(self.tool_timeout, self.tool_memory).problems()
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
class GRPORecipeConfig(OnlineConfig, RolloutConfig):
    """Group relative policy optimisation: TRL's GRPOTrainer with our evaluation."""

    stage: ClassVar[str] = "grpo"
    project_name: ClassVar[str] = "GRPO"


@dataclass
class PPORecipeConfig(OnlineConfig, PPOConfig):
    """Proximal policy optimisation."""

    stage: ClassVar[str] = "ppo"
    project_name: ClassVar[str] = "PPO"


@dataclass
class SPORecipeConfig(OnlineConfig, SPOConfig):
    """Single-stream policy optimisation."""

    stage: ClassVar[str] = "spo"
    project_name: ClassVar[str] = "SPO"
