"""Several processes: checks of the launcher, loading of models, waiting, and signals."""

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta

import torch.distributed as dist
from transformers.integrations.deepspeed import unset_hf_deepspeed_config
from transformers.utils import strtobool

from ..errors import InputError, Interrupted
from ..internals import set_process_group_timeout
from ..trainers.signals import SIGNALS, leave_dead_terminal

_AS_LONG_AS_IT_TAKES = timedelta(days=30)


def refuse_other_launch(config) -> None:
    """Refuse a launch that silently differs from what was requested.

    Raises:
        InputError: accelerate was asked for several processes and started one.
    """
    # The launcher sets a rendezvous address only if several processes were requested.
    alone = "WORLD_SIZE" not in os.environ and config.world_size == 1
    if alone and _is_set("ACCELERATE_USE_CPU") and "MASTER_ADDR" in os.environ:
        raise InputError(
            "accelerate was told to start several processes and started one, as it does for MULTI_CPU and --cpu: "
            "launch with --config_file accelerate_configs/cpu_ddp.yaml --num_processes N"
        )


def launched_precision() -> str:
    """The launcher's `--mixed_precision`: "no", "bf16", "fp16" or "fp8"."""
    return os.environ.get("ACCELERATE_MIXED_PRECISION", "no").lower()


def launch_problems(config) -> Iterator[str]:
    """One line for each option that contradicts the launcher or needs a different one.

    Args:
        config: transformers' settings as given; `bf16` is None if it was not given.
    """
    launched = launched_precision()
    if launched == "bf16" and (config.bf16 is False or config.fp16):
        given = "--fp16" if config.fp16 else "--bf16 false"
        yield f"{given} contradicts the launcher's --mixed_precision bf16: leave one of them out"
    if launched in ("fp16", "fp8") and config.bf16:
        yield f"--bf16 contradicts the launcher's --mixed_precision {launched}: leave one of them out"
    if config.use_cpu and (_is_set("ACCELERATE_USE_FSDP") or config.fsdp):
        yield (
            "FSDP is for accelerators: on a CPU accelerate would train by DDP without a word; launch with "
            "accelerate_configs/cpu/ddp.yaml, or to shard the model with accelerate_configs/cpu/zero3.yaml"
        )
    if config.ddp_backend and "LOCAL_RANK" not in os.environ:
        yield "--ddp_backend is for several processes: start them by accelerate launch or torchrun"
    for engine, name in (("deepspeed", "zero2"), ("fsdp", "fsdp2")):
        if getattr(config, engine) and "LOCAL_RANK" not in os.environ:
            yield (
                f"--{engine} needs a launcher, which starts the processes: accelerate launch --config_file "
                f"accelerate_configs/{name}.yaml, or torchrun"
            )


def load_models_whole() -> None:
    """Load models whole under ZeRO-3 too; the trainer's engine shards them later.

    Otherwise transformers shards each model while loading it, and nothing can run, copy or count it before the engine
    exists.
    """
    unset_hf_deepspeed_config()


def limit_waiting(seconds: float | None) -> None:
    """Set how long a process waits for the others from here on.

    None waits without limit, for when one process prepares data for all. If a process dies, the launcher ends the
    others in any case.
    """
    if dist.is_initialized():
        set_process_group_timeout(_AS_LONG_AS_IT_TAKES if seconds is None else timedelta(seconds=seconds))


@contextmanager
def ending_on_signals() -> Iterator[None]:
    """Inside, SIGTERM and SIGHUP raise `Interrupted`, as Ctrl-C raises KeyboardInterrupt; in training they save.

    Ignored signals, as under nohup, stay ignored. With several processes the default handlers stay, and each process
    ends at once, since one that waits for a failed process could not react.
    """

    def end(number: int, frame) -> None:
        leave_dead_terminal()
        raise Interrupted(number)

    alone = int(os.environ.get("WORLD_SIZE", 1)) == 1 and threading.current_thread() is threading.main_thread()
    others = [number for number in SIGNALS if number != signal.SIGINT and alone]
    caught = [number for number in others if signal.getsignal(number) == signal.SIG_DFL]
    for number in caught:
        signal.signal(number, end)
    try:
        yield
    finally:
        for number in caught:
            signal.signal(number, signal.SIG_DFL)


def _is_set(name: str) -> bool:
    return bool(strtobool(os.environ.get(name, "false")))
