"""`minimind-trl plan`: what a recipe will need per device, before anything is bought or started."""

import argparse
import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import psutil
import torch
import yaml
from accelerate.commands.config.config_args import load_config_from_file
from rich.console import Console
from rich.table import Table

from ..data import load_mixture
from ..errors import InputError, nearest
from ..models import MiniMindConfig, load_model
from ..rewards import load_rewards
from ..run import (
    DPORecipeConfig,
    PretrainRecipeConfig,
    RecipeArguments,
    RewardRecipeConfig,
    SFTRecipeConfig,
    parse_arguments,
)
from ..run.loading import load_or_create_model, load_tokenizer
from ..run.memory import ONLINE, Memory, Work
from ..run.online_configs import GRPORecipeConfig, PPORecipeConfig, SPORecipeConfig
from ..yaml_files import load_yaml

RECIPES = {
    "pretrain": PretrainRecipeConfig,
    "midtrain": PretrainRecipeConfig,  # its own defaults are about the learning rate
    "sft": SFTRecipeConfig,
    "distill": None,  # TRL's experimental part, which is loaded only where it is asked for
    "dpo": DPORecipeConfig,
    "reward": RewardRecipeConfig,
    "grpo": GRPORecipeConfig,
    "ppo": PPORecipeConfig,
    "spo": SPORecipeConfig,
}
MIB = 2**20
# DeepSpeed's reduce_bucket_size, in elements: a buffer as large as this, whatever the size of the model.
_ZERO_BUCKET = 500_000_000
# What is sharded like the trained model; reward models and earlier policies stay whole in every process.
_SHARDED_TOO = ("reference model", "teacher model")
_CUDA_CONTEXT = 500 * MIB  # of a process on a GPU before its first tensor: about, it differs between drivers
_NOT_COUNTED = {
    "use_vllm": "vLLM takes the share of the device that --vllm_gpu_memory_utilization says",
    "use_liger_kernel": "its kernels need a GPU",
    "activation_offloading": "what is moved when depends on the device",
    "torch_compile": "what the compiler fuses is not known before it has run",
}


@dataclass
class PlanArguments(RecipeArguments):
    """Options of every recipe, of which a plan needs fewer, and of the plan."""

    data_config: str | None = field(default=None, metadata={"help": "Mixture file, for its max_seq_length."})
    longest_row: int | None = field(
        default=None,
        metadata={
            "help": "Tokens of the longest row, or prompt. Default: --max_length, else the mixture's, else 1024."
        },
    )
    accelerate_config: str | None = field(
        default=None, metadata={"help": "The file that accelerate launch is given: tells processes and sharding."}
    )
    num_processes: int | None = field(default=None, metadata={"help": "Processes (devices) that train together."})
    zero_stage: int | None = field(default=None, metadata={"help": "DeepSpeed's ZeRO stage: 1, 2 or 3."})
    device_memory: float | None = field(
        default=None, metadata={"help": "GiB of a device that is not at hand, to see whether it fits."}
    )

    def __post_init__(self):
        if self.preset is not None:
            self.from_weight = None  # of --config: a checkpoint that need not be there yet, of the preset's shape
        super().__post_init__()

    def problems(self) -> Iterator[str]:
        yield from super().problems()
        if self.zero_stage not in (None, 1, 2, 3):
            yield f"--zero_stage {self.zero_stage}: 1, 2 or 3; leave it out for DDP"
        elif self.zero_stage and self.accelerate_config:
            yield "--zero_stage and --accelerate_config both say how to shard: give one of them"
        elif self.zero_stage and not self.num_processes:
            yield f"--zero_stage {self.zero_stage} shards over processes: give --num_processes N"


@dataclass(frozen=True)
class Sharding:
    """How a model is spread over processes: `none`, `ddp`, `fsdp2`, `zero1`, `zero2` or `zero3`."""

    kind: str = "none"
    processes: int = 1
    offload_optimizer: bool = False
    offload_parameters: bool = False
    reshard: bool = True  # FSDP2: free a layer's gathered weights after its forward pass
    mixed_precision: str = "no"

    @property
    def is_zero(self) -> bool:
        return self.kind.startswith("zero")


def read_sharding(args: PlanArguments) -> Sharding:
    """From an accelerate file or the options.

    Raises:
        InputError: the file cannot be read, or shards in a way that is not known here.
    """
    count = args.num_processes or 1
    if args.accelerate_config is None:
        kind = f"zero{args.zero_stage}" if args.zero_stage else "ddp" if count > 1 else "none"
        return Sharding(kind, count)
    name = args.accelerate_config
    try:
        if Path(name).suffix != ".json":
            load_yaml(Path(name).read_text(encoding="utf-8"))  # whose aliases accelerate would follow without an end
        launch = load_config_from_file(name)
    except FileNotFoundError as error:
        raise InputError(f"--accelerate_config {name}: no such file") from error
    except OSError as error:
        raise InputError(f"--accelerate_config {name}: cannot be read: {error.strerror}") from error
    except (ValueError, TypeError, AttributeError, yaml.YAMLError) as error:
        raise InputError(f"--accelerate_config {name}: {' '.join(str(error).split())}") from error
    kind = str(getattr(launch.distributed_type, "value", launch.distributed_type))
    precision = launch.mixed_precision or "no"
    if kind == "NO":
        return Sharding(mixed_precision=precision)
    count = args.num_processes or _processes(launch.num_processes, name)
    if kind.startswith("MULTI_"):
        return Sharding("ddp" if count > 1 else "none", count, mixed_precision=precision)
    if kind == "DEEPSPEED":
        return _deepspeed(launch.deepspeed_config, count, precision, name)
    if kind == "FSDP" and int(launch.fsdp_config.get("fsdp_version", 1)) == 2:
        offload = bool(launch.fsdp_config.get("fsdp_offload_params", False))
        reshard = launch.fsdp_config.get("fsdp_reshard_after_forward", True) in (True, "true", "FULL_SHARD")
        return Sharding("fsdp2", count, offload, offload, reshard, precision)
    raise InputError(
        f"--accelerate_config {name}: {kind} is not known here; DDP, FSDP with fsdp_version 2, DEEPSPEED are"
    )


def _processes(written, name: str) -> int:
    if isinstance(written, int) and written > 0:
        return written
    if written == "gpu" and torch.cuda.is_available():
        return torch.cuda.device_count()
    raise InputError(f"--accelerate_config {name} does not say how many processes there are: give --num_processes N")


def _deepspeed(settings: dict, count: int, precision: str, name: str) -> Sharding:
    if "deepspeed_config_file" in settings:
        raise InputError(
            f"--accelerate_config {name}: a deepspeed_config_file is not read; give its stage as zero_stage"
        )
    stage = int(settings.get("zero_stage", 2))
    if stage not in (1, 2, 3):
        raise InputError(f"--accelerate_config {name}: zero_stage {stage} is not known here; 1, 2 and 3 are")
    optimizer, parameters = (
        settings.get(f"offload_{what}_device", "none") != "none" for what in ("optimizer", "param")
    )
    return Sharding(f"zero{stage}", count, optimizer, parameters and stage == 3, mixed_precision=precision)


def spread(whole: Memory, sharding: Sharding) -> tuple[dict[str, dict[str, int]], int]:
    """Bytes of one process at each moment, by what they are for; and what it keeps in the memory of the CPU instead.

    DDP keeps everything, and its buckets hold the gradients once more (torch's default, gradient_as_bucket_view=False).
    ZeRO divides optimizer states (1), gradients (2) and weights (3) by the processes (Rajbhandari et al., arXiv
    1910.02054, section 5); its weights and gradients are of the width of the computation, beside a float32 copy of the
    trained weights that the optimizer keeps, and it reserves a buffer of `reduce_bucket_size` elements. ZeRO-3 gathers
    weights and, below a billion parameters (`stage3_max_reuse_distance`), keeps them until the backward pass.
    FSDP2 divides all three and gathers a layer at a time, the next one ahead, and what is outside of layers.
    """
    count, width, kind = sharding.processes, whole.width, sharding.kind
    weights, gradients, then, models = whole.parameters, whole.gradients, whole.gradients_then, dict(whole.models)
    optimizer, buffers, gathered = whole.optimizer, 0, 0
    if kind == "ddp":
        buffers = gradients
    if sharding.is_zero:
        optimizer, buffers = optimizer + 4 * whole.trained, _ZERO_BUCKET * width
    if sharding.is_zero or kind == "fsdp2":
        optimizer = -(-optimizer // count)
    if kind in ("zero2", "zero3", "fsdp2"):
        gradients = then = -(-gradients // count)
    if kind in ("zero3", "fsdp2"):
        spread_too = [name for name in models if name in _SHARDED_TOO]
        gathered = _gathered(whole, sharding, [models[name] for name in spread_too])
        models |= {name: -(-models[name] // count) for name in spread_too}
        weights = -(-weights // count)
    host = 0
    if sharding.offload_optimizer:
        host, optimizer = optimizer, 0
        if kind != "zero1":  # whose gradients are whole, and stay
            host, gradients, then = host + gradients, 0, 0
    if sharding.offload_parameters:
        host, weights = host + weights, 0
    kept = {"parameters": weights, "optimizer states": optimizer, **models}
    moments = {
        "training": {
            "gradients": then,
            "activations": whole.activations,
            "logits and loss": whole.head,
            "gathered parameters": gathered,
            "communication buffers": buffers,
        },
        "optimizer step": {"gradients": gradients, "temporary": -(-whole.optimizer_step // count)},
        "evaluation": {"activations": whole.evaluation, "gathered parameters": gathered},
    }
    if whole.kv_cache:
        gathered = whole.parameters if kind == "zero3" else gathered  # --ds3_gather_for_generation
        moments["generation"] = {
            "KV cache": whole.kv_cache,
            "activations": whole.generation,
            "gathered parameters": gathered,
        }
    return {name: kept | parts for name, parts in moments.items()}, host


def _gathered(whole: Memory, sharding: Sharding, others: list[int]) -> int:
    """Whole weights that are there for a moment, in the width of the computation."""
    if sharding.kind == "zero3":
        return whole.parameters + sum(others)
    if sharding.reshard:
        return (whole.outside_layers * (1 + len(others)) + 3 * whole.largest_layer) * whole.width
    return (whole.parameters + sum(others)) // 4 * whole.width


@dataclass
class Plan:
    """What a recipe needs. `moments` and `host` are as of `spread`; `work` is what was counted."""

    work: Work
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
    args, config, lora = parse_arguments(_config_class(recipe), arguments=PlanArguments, options=options)
    given = [f"--{name} cannot be counted: {why}" for name, why in _NOT_COUNTED.items() if getattr(config, name, False)]
    if given:
        raise InputError("; ".join(given))
    if config.learning_rate is None:
        config.learning_rate = 1e-3  # which no memory depends on, and no optimizer is made without
    sharding = read_sharding(args)
    if sharding.mixed_precision in ("bf16", "fp16") and not (config.bf16 or config.fp16):
        setattr(config, sharding.mixed_precision, True)  # accelerate's, as where the recipe does not say
    work = Work(
        recipe,
        config,
        lora,
        _model_config(args),
        _longest_row(args, config),
        zero_stage=int(sharding.kind[-1]) if sharding.is_zero else 0,
        teacher=load_model(config.teacher_model_name_or_path).config if recipe == "distill" else None,
    )
    return _counted(work, sharding, args.device_memory)


def _counted(work: Work, sharding: Sharding, device_memory: float | None) -> Plan:
    whole, config = work.measure(), work.config
    kept_by_host = 0
    if getattr(config, "reward_funcs", None):
        models = [
            getattr(reward.function, "model", None)
            for reward in load_rewards(config.reward_funcs, config.reward_weights)[0]
        ]
        whole.models["reward models"] = sum(4 * model.num_parameters() for model in models if model is not None)
    if getattr(config, "opponent", None):
        whole.models["earlier policy"] = whole.parameters
        kept_by_host = config.opponent_pool * 4 * whole.trained
    moments, host = spread(whole, sharding)
    return Plan(work, sharding, device_memory, moments, host + kept_by_host)


def _config_class(recipe: str) -> type:
    if recipe != "distill":
        return RECIPES[recipe]
    from ..run.distill_config import DistillRecipeConfig

    return DistillRecipeConfig


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
    """A table in MiB, and whether it fits.

    Args:
        base: bytes that a process holds before it has a model.
    """
    console = Console(highlight=False, soft_wrap=True)
    config, sharding, device = plan.work.config, plan.sharding, plan.work.config.device.type
    precision = "bf16" if config.bf16 else "fp16" if config.fp16 else "fp32"
    spread_over = f"{sharding.kind} over {sharding.processes} processes" if sharding.kind != "none" else "one process"
    answers = f" and {config.max_completion_length} of the answer" if plan.work.recipe in ONLINE else ""
    console.print(
        f"{plan.work.recipe}: {config.per_device_train_batch_size} rows of {plan.work.length} tokens{answers} in "
        f"{precision}, {spread_over}"
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
    what = "imports and data sets" if device == "cpu" else "CUDA's context, a rough figure"
    console.print(f"peak: {plan.peak / MIB:,.0f} MiB, beside about {base / MIB:,.0f} MiB of the process ({what})")
    if plan.host:
        console.print(f"in the memory of the CPU: {plan.host / MIB:,.0f} MiB per process")
    if device == "cpu":
        console.print(
            "glibc's heap can hold up to twice the activations, in freed pieces; in an environment with "
            "MALLOC_MMAP_THRESHOLD_=65536 it does not"
        )
    console.print(_verdict(plan, base))


def _verdict(plan: Plan, base: int) -> str:
    device, config = plan.work.config.device.type, plan.work.config
    here = plan.sharding.processes if device == "cpu" and plan.device_memory is None else 1  # they share it
    room = _room(device) if plan.device_memory is None else int(plan.device_memory * 1024 * MIB)
    where = f"{room / MIB:,.0f} MiB " + ("of --device_memory" if plan.device_memory else f"free on {device} here")

    def needed(some: Plan) -> int:
        return here * (some.peak + base + (some.host if device == "cpu" else 0))

    if needed(plan) <= room:
        return f"fits: {needed(plan) / MIB:,.0f} of {where}"
    answer = f"does not fit: {needed(plan) / MIB:,.0f} of {where}"
    if plan.work.recipe in ONLINE:
        return f"{answer}; lower --per_device_train_batch_size or --max_completion_length"
    rows = config.per_device_train_batch_size
    while rows > 1:
        rows //= 2
        config.per_device_train_batch_size = rows
        if needed(_counted(plan.work, plan.sharding, plan.device_memory)) <= room:
            return f"{answer}; --per_device_train_batch_size {rows} would fit"
    return f"{answer}, nor does a single row: take a smaller model, --max_length, --gradient_checkpointing, or shard"


def _room(device: str) -> int:
    return torch.cuda.mem_get_info()[0] if device == "cuda" else psutil.virtual_memory().available


def run(options: list[str]) -> None:
    """`minimind-trl plan OPTIONS`.

    Raises:
        InputError: of `make_plan`.
    """
    common = {option.name for option in dataclasses.fields(RecipeArguments)}
    own = [option for option in dataclasses.fields(PlanArguments) if option.name not in common]
    listed = "".join(f"  --{option.name}: {option.metadata['help']}\n" for option in own)
    parser = argparse.ArgumentParser(
        prog="minimind-trl plan",
        description="Counts the memory of a recipe per device, and says whether it fits. Starts nothing.",
        epilog=f"options of the plan, beside all of the recipe's (python recipes/NAME.py --help):\n{listed}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--recipe", required=True, help=", ".join(RECIPES))
    args, others = parser.parse_known_args(options)
    used = psutil.Process().memory_info().rss  # this process has imported what a recipe imports
    plan = make_plan(args.recipe, others)
    print_plan(plan, base=used if plan.work.config.device.type == "cpu" else _CUDA_CONTEXT)
