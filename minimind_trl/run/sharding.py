"""How DDP, ZeRO and FSDP2 divide a trainer's memory over processes."""

from dataclasses import dataclass
from pathlib import Path

import torch
import yaml
from accelerate.commands.config.config_args import load_config_from_file

from ..errors import InputError
from ..shipped_files import ACCELERATE_CONFIGS, find_config, nearest_config
from ..yaml_files import load_yaml
from .memory import Memory

# DeepSpeed's reduce_bucket_size, in elements: the buffer has this size whatever the size of the model.
_ZERO_BUCKET = 500_000_000
# Models that are sharded like the trained one; reward models and earlier policies stay whole in every process.
_SHARDED_HELPERS = ("reference model", "teacher model")


@dataclass(frozen=True)
class Sharding:
    """How processes share a model: `none`, `ddp`, `fsdp2`, `zero1`, `zero2` or `zero3`."""

    kind: str = "none"
    processes: int = 1
    offload_optimizer: bool = False
    offload_parameters: bool = False
    reshard: bool = True  # FSDP2: free a layer's gathered weights after its forward pass
    mixed_precision: str = "no"

    @property
    def zero_stage(self) -> int:
        return int(self.kind[-1]) if self.kind.startswith("zero") else 0


def shard_memory(whole: Memory, sharding: Sharding) -> tuple[dict[str, dict[str, int]], int]:
    """Bytes of one process at each moment, by purpose, and the bytes that it offloads to the CPU.

    - DDP divides nothing. Its buckets hold the gradients a second time (torch's default,
      gradient_as_bucket_view=False).
    - ZeRO divides optimizer states (stage 1), gradients (2) and weights (3) by the number of processes (Rajbhandari et
      al., arXiv 1910.02054, section 5). Weights and gradients have the width of the computation; the optimizer also
      keeps a float32 copy of the trained weights. A buffer of `reduce_bucket_size` elements is reserved. ZeRO-3 gathers
      all weights and, below a billion parameters (`stage3_max_reuse_distance`), keeps them until the backward pass.
    - FSDP2 divides all three. It gathers one layer at a time, prefetches the next, and gathers what is outside layers.
    """
    count, width, kind = sharding.processes, whole.width, sharding.kind
    weights, gradients, then, models = whole.parameters, whole.gradients, whole.gradients_then, dict(whole.models)
    optimizer, buffers, gathered = whole.optimizer, 0, 0
    if kind == "ddp":
        buffers = gradients
    if sharding.zero_stage:
        optimizer, buffers = optimizer + 4 * whole.trained, _ZERO_BUCKET * width
    if sharding.zero_stage or kind == "fsdp2":
        optimizer = _share(optimizer, count)
    if kind in ("zero2", "zero3", "fsdp2"):
        gradients = then = _share(gradients, count)
    if kind in ("zero3", "fsdp2"):
        sharded = [name for name in models if name in _SHARDED_HELPERS]
        gathered = _gathered(whole, sharding, [models[name] for name in sharded])
        models |= {name: _share(models[name], count) for name in sharded}
        weights = _share(weights, count)
    host = 0
    if sharding.offload_optimizer:
        host, optimizer = optimizer, 0
        if kind != "zero1":  # ZeRO-1 keeps whole gradients on the device
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
        "optimizer step": {"gradients": gradients, "temporary": _share(whole.optimizer_step, count)},
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


def _share(size: int, processes: int) -> int:
    return -(-size // processes)


def _gathered(whole: Memory, sharding: Sharding, helpers: list[int]) -> int:
    """Bytes of whole weights that exist for a moment, in the width of the computation."""
    if sharding.kind == "zero3":
        return whole.parameters + sum(helpers)
    if sharding.reshard:
        return (whole.outside_layers * (1 + len(helpers)) + 3 * whole.largest_layer) * whole.width
    return (whole.parameters + sum(helpers)) // 4 * whole.width


def read_accelerate_file(name: str, num_processes: int | None) -> Sharding:
    """The sharding of a file for `accelerate launch --config_file`.

    Args:
        name: the file, or the name of a shipped one, such as `zero2`.
        num_processes: replaces the file's.

    Raises:
        InputError: the file cannot be read, or its kind of sharding is not known here.
    """
    file = find_config(name, ACCELERATE_CONFIGS)
    try:
        if Path(file).suffix != ".json":
            load_yaml(Path(file).read_text(encoding="utf-8"))  # refuses aliases that accelerate would expand endlessly
        launch = load_config_from_file(file)
    except FileNotFoundError as error:
        hint = nearest_config(name, ACCELERATE_CONFIGS)
        raise InputError(f"--accelerate_config {name}: no such file{hint}") from error
    except OSError as error:
        raise InputError(f"--accelerate_config {name}: cannot be read: {error.strerror}") from error
    except (ValueError, TypeError, AttributeError, yaml.YAMLError) as error:
        raise InputError(f"--accelerate_config {name}: {' '.join(str(error).split())}") from error
    kind = str(getattr(launch.distributed_type, "value", launch.distributed_type))
    precision = launch.mixed_precision or "no"
    if kind == "NO":
        return Sharding(mixed_precision=precision)
    count = num_processes or _processes(launch.num_processes, name)
    if kind.startswith("MULTI_"):
        return Sharding("ddp" if count > 1 else "none", count, mixed_precision=precision)
    if kind == "DEEPSPEED":
        return _deepspeed(launch.deepspeed_config, count, precision, name)
    if kind == "FSDP" and int(launch.fsdp_config.get("fsdp_version", 1)) == 2:
        offload = bool(launch.fsdp_config.get("fsdp_offload_params", False))
        reshard = launch.fsdp_config.get("fsdp_reshard_after_forward", True) in (True, "true", "FULL_SHARD")
        return Sharding("fsdp2", count, offload, offload, reshard, precision)
    raise InputError(
        f"--accelerate_config {name}: {kind} is not known here; DDP, FSDP with fsdp_version 2 and DEEPSPEED are"
    )


def _processes(written, name: str) -> int:
    if isinstance(written, int) and written > 0:
        return written
    if written == "gpu" and torch.cuda.is_available():
        return torch.cuda.device_count()
    raise InputError(f"--accelerate_config {name} has no number of processes: give --num_processes N")


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
