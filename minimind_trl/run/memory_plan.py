"""The memory that a recipe needs per device, before anything is bought or started; for `minimind-trl plan`."""

from collections.abc import Iterator
from dataclasses import dataclass

import psutil
import torch
from rich.console import Console
from rich.table import Table
from transformers import Trainer

from ..data import load_mixture
from ..errors import InputError, nearest
from ..models import MiniMindConfig, load_model
from ..rewards import load_rewards
from ..trainers import (
    MiniMindDPOTrainer,
    MiniMindGRPOTrainer,
    MiniMindRewardTrainer,
    MiniMindSFTTrainer,
    PPOTrainer,
    SPOTrainer,
)
from .arguments import RecipeArguments, parse_arguments
from .fake_trainers import ONLINE, TrainerSetup
from .loading import load_or_create_model, load_tokenizer
from .online_configs import GRPORecipeConfig, PPORecipeConfig, SPORecipeConfig
from .recipe_configs import DPORecipeConfig, PretrainRecipeConfig, RewardRecipeConfig, SFTRecipeConfig
from .sharding import Sharding, read_accelerate_file, shard_memory

RECIPES: dict[str, tuple[type, type[Trainer]] | None] = {
    "pretrain": (PretrainRecipeConfig, MiniMindSFTTrainer),
    "midtrain": (PretrainRecipeConfig, MiniMindSFTTrainer),  # the recipe's own defaults concern the learning rate
    "sft": (SFTRecipeConfig, MiniMindSFTTrainer),
    "distill": None,  # TRL's experimental part is imported only on demand
    "dpo": (DPORecipeConfig, MiniMindDPOTrainer),
    "reward": (RewardRecipeConfig, MiniMindRewardTrainer),
    "grpo": (GRPORecipeConfig, MiniMindGRPOTrainer),
    "ppo": (PPORecipeConfig, PPOTrainer),
    "spo": (SPORecipeConfig, SPOTrainer),
}
MIB = 2**20
CUDA_CONTEXT = 500 * MIB  # of a process on a GPU before its first tensor; approximate, it differs between drivers
_NOT_COUNTED = {
    "use_vllm": "vLLM takes the share of the device that --vllm_gpu_memory_utilization sets",
    "use_liger_kernel": "its kernels need a GPU",
    "activation_offloading": "what is moved, and when, depends on the device",
    "torch_compile": "what the compiler fuses is not known before it has run",
}


@dataclass
class PlanArguments(RecipeArguments):
    """The recipes' options, of which a plan needs fewer, and the plan's own, which `commands/plan.py` describes."""

    data_config: str | None = None
    longest_row: int | None = None
    accelerate_config: str | None = None
    num_processes: int | None = None
    zero_stage: int | None = None
    device_memory: float | None = None

    def __post_init__(self):
        if self.preset is not None:
            self.from_weight = None  # the preset stands in for --config's checkpoint, which need not exist yet
        super().__post_init__()

    def problems(self) -> Iterator[str]:
        yield from super().problems()
        if self.zero_stage not in (None, 1, 2, 3):
            yield f"--zero_stage {self.zero_stage}: 1, 2 or 3; leave it out for DDP"
        elif self.zero_stage and self.accelerate_config:
            yield "--zero_stage and --accelerate_config both say how to shard: give one of them"
        elif self.zero_stage and not self.num_processes:
            yield f"--zero_stage {self.zero_stage} shards over processes: give --num_processes N"

    def sharding(self) -> Sharding:
        """How the processes share the model.

        Raises:
            InputError: see `read_accelerate_file`.
        """
        if self.accelerate_config is not None:
            return read_accelerate_file(self.accelerate_config, self.num_processes)
        count = self.num_processes or 1
        return Sharding(f"zero{self.zero_stage}" if self.zero_stage else "ddp" if count > 1 else "none", count)


@dataclass
class Plan:
    """What a recipe needs.

    Attributes:
        setup: what was counted.
        device_memory: GiB to plan for; None: what is free here.
        moments: bytes of one process at each moment, by purpose.
        host: bytes of one process that stay in the CPU's memory instead.
    """

    setup: TrainerSetup
    sharding: Sharding
    device_memory: float | None
    moments: dict[str, dict[str, int]]
    host: int

    @property
    def peak(self) -> int:
        """Bytes of one process at its highest moment, beyond what it holds before it has a model."""
        return max(sum(parts.values()) for parts in self.moments.values())


def make_plan(recipe: str, options: list[str]) -> Plan:
    """Count the memory of a recipe.

    Args:
        recipe: a key of `RECIPES`.
        options: of the recipe and of `PlanArguments`, as on a command line.

    Raises:
        InputError: the recipe or an option is not known, or cannot be counted.
    """
    if recipe not in RECIPES:
        hint = nearest(recipe, RECIPES)
        raise InputError(f"--recipe {recipe!r} is unknown{hint}; choose one of {', '.join(RECIPES)}")
    config_class, trainer_class = RECIPES[recipe] or _distillation()
    args, config, lora = parse_arguments(config_class, arguments=PlanArguments, options=options, recipe=recipe)
    given = [f"--{name} cannot be counted: {why}" for name, why in _NOT_COUNTED.items() if getattr(config, name, False)]
    if given:
        raise InputError("; ".join(given))
    if config.learning_rate is None:
        config.learning_rate = 1e-3  # an optimizer needs one, and memory does not depend on it
    sharding = args.sharding()
    if sharding.mixed_precision in ("bf16", "fp16") and not (config.bf16 or config.fp16):
        setattr(config, sharding.mixed_precision, True)  # accelerate's applies where the recipe has none
    setup = TrainerSetup(
        recipe,
        trainer_class,
        config,
        lora,
        _model_config(args),
        _longest_row(args, config),
        zero_stage=sharding.zero_stage,
        teacher=load_model(config.teacher_model_name_or_path).config if recipe == "distill" else None,
    )
    return _count(setup, sharding, args.device_memory)


def _distillation() -> tuple[type, type[Trainer]]:
    from ..trainers.gkd_trainer import MiniMindGKDTrainer
    from .distill_config import DistillRecipeConfig

    return DistillRecipeConfig, MiniMindGKDTrainer


def _count(setup: TrainerSetup, sharding: Sharding, device_memory: float | None) -> Plan:
    whole, config = setup.count(), setup.config
    snapshots = 0
    if getattr(config, "reward_funcs", None):
        rewards, _ = load_rewards(config.reward_funcs, config.reward_weights)
        models = [getattr(reward.function, "model", None) for reward in rewards]
        whole.models["reward models"] = sum(4 * model.num_parameters() for model in models if model is not None)
    if getattr(config, "opponent", None):
        whole.models["earlier policy"] = whole.parameters
        snapshots = config.opponent_pool * 4 * whole.trained
    moments, host = shard_memory(whole, sharding)
    return Plan(setup, sharding, device_memory, moments, host + snapshots)


def _model_config(args: PlanArguments) -> MiniMindConfig:
    if args.preset is None:
        return load_or_create_model(args, load_tokenizer(args), seed=0).config
    config = MiniMindConfig.from_preset(args.preset)
    if args.tokenizer or args.preset in ("nano", "tiny"):  # the others have upstream's vocabulary
        config.vocab_size = len(load_tokenizer(args))
    return config


def _longest_row(args: PlanArguments, config) -> int:
    if args.longest_row and getattr(config, "packing", False):
        raise InputError("--longest_row: packed rows all have --max_length tokens; or give --packing false")
    limit = getattr(config, "max_length", None)
    if limit is None and args.data_config:
        limit = load_mixture(args.data_config).metadata.max_seq_length
    limit = limit or 1024
    return args.longest_row or limit if not hasattr(config, "max_length") else min(args.longest_row or limit, limit)


def print_plan(plan: Plan, base: int) -> None:
    """Print a table in MiB, and whether it fits.

    Args:
        base: bytes that a process holds before it has a model.
    """
    console = Console(highlight=False, soft_wrap=True)
    config, sharding, device = plan.setup.config, plan.sharding, plan.setup.config.device.type
    precision = "bf16" if config.bf16 else "fp16" if config.fp16 else "fp32"
    processes = f"{sharding.kind} over {sharding.processes} processes" if sharding.kind != "none" else "one process"
    answers = f" and {config.max_completion_length} of the answer" if plan.setup.recipe in ONLINE else ""
    console.print(
        f"{plan.setup.recipe}: {config.per_device_train_batch_size} rows of {plan.setup.length} tokens{answers} in "
        f"{precision}, {processes}"
    )
    table = Table("MiB per process", *(f"[bold]{name}" for name in plan.moments))
    names = dict.fromkeys(name for parts in plan.moments.values() for name in parts)
    for name in names:
        sizes = [parts.get(name, 0) for parts in plan.moments.values()]
        if any(sizes):
            table.add_row(name, *(f"{size / MIB:,.0f}" if size else "" for size in sizes))
    table.add_section()
    table.add_row("total", *(f"{sum(parts.values()) / MIB:,.0f}" for parts in plan.moments.values()))
    console.print(table)
    overhead = "imports and data sets" if device == "cpu" else "the CUDA context, approximate"
    console.print(
        f"peak: {plan.peak / MIB:,.0f} MiB, plus about {base / MIB:,.0f} MiB of process overhead ({overhead})"
    )
    if plan.host:
        console.print(f"in the CPU's memory: {plan.host / MIB:,.0f} MiB per process")
    if device == "cpu":
        console.print(
            "glibc's heap can hold freed pieces of up to twice the activations; MALLOC_MMAP_THRESHOLD_=65536 in the "
            "environment prevents it"
        )
    console.print(_verdict(plan, base))


def _verdict(plan: Plan, base: int) -> str:
    device, config = plan.setup.config.device.type, plan.setup.config
    sharing = plan.sharding.processes if device == "cpu" and plan.device_memory is None else 1
    room = _room(device) if plan.device_memory is None else int(plan.device_memory * 1024 * MIB)
    where = f"{room / MIB:,.0f} MiB " + ("of --device_memory" if plan.device_memory else f"free on {device} here")

    def needed(some: Plan) -> int:
        return sharing * (some.peak + base + (some.host if device == "cpu" else 0))

    if needed(plan) <= room:
        return f"fits: {needed(plan) / MIB:,.0f} of {where}"
    answer = f"does not fit: {needed(plan) / MIB:,.0f} of {where}"
    if plan.setup.recipe in ONLINE:
        return f"{answer}; lower --per_device_train_batch_size or --max_completion_length"
    rows = config.per_device_train_batch_size
    while rows > 1:
        rows //= 2
        config.per_device_train_batch_size = rows
        if needed(_count(plan.setup, plan.sharding, plan.device_memory)) <= room:
            return f"{answer}; --per_device_train_batch_size {rows} would fit"
    return (
        f"{answer}, nor does a single row: lower --max_length, take a smaller model, --gradient_checkpointing, or shard"
    )


def _room(device: str) -> int:
    return torch.cuda.mem_get_info()[0] if device == "cuda" else psutil.virtual_memory().available
