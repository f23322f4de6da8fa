"""The configs of the supervised recipes: TRL's own, with defaults that suit small models and the machine at hand."""

import importlib.util
import os
import shutil
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from transformers.trainer_utils import IntervalStrategy, SaveStrategy
from trl import DPOConfig, RewardConfig, SFTConfig

from ..errors import InputError, first_line, nearest, one_line, raise_all
from ..hardware import has_fast_bf16
from ..trainers.option_ranges import MORE_THAN_0, one_of
from .learning_rates import WARMUP
from .processes import launch_problems, launched_precision, refuse_other_launch
from .services import folder_problem

# The `activation_checkpointing_kwargs` of transformers, TRL and torch.utils.checkpoint.
_CHECKPOINTING = (
    *("every_n_layers", "offload", "selective", "use_reentrant"),
    *("preserve_rng_state", "context_fn", "determinism_check", "debug", "early_stop"),
)
BY_EVALUATION = ("reduce_lr_on_plateau", "greedy")
_COMPILE_MODES = ("default", "reduce-overhead", "max-autotune", "max-autotune-no-cudagraphs")  # of `torch.compile`
# The errors with which TRL, transformers and accelerate refuse options.
_REFUSALS = (ImportError, ValueError, TypeError, OSError, RuntimeError, LookupError, AssertionError)


@dataclass
class RecipeConfig:
    """A mixin for TRL's configs: defaults that suit small models and the machine at hand.

    A recipe's config also has a `stage`, the key of its default learning rate, and a `project_name` for trackers.
    """

    _argument_group_name = "TRL and transformers"

    learning_rate: float | None = field(
        default=None, metadata={"help": "Default: chosen by recipe and model size, and printed."}
    )
    warmup_steps: float = field(default=WARMUP, metadata={"help": "Warm-up steps; below 1, a share of all steps."})
    gradient_checkpointing: bool = field(
        default=False, metadata={"help": "Trade compute for memory; models of this size fit without."}
    )
    report_to: list[str] = field(  # a list, of which transformers' parser would read one
        default_factory=lambda: ["none"],
        metadata={
            "help": "One or more trackers (tensorboard, trackio, wandb, ...), all for every installed one, or none."
        },
    )

    option_ranges: ClassVar[dict[str, Any]] = {}
    """Values of options that mean something else here than in the table of `option_ranges.py`."""
    refused_options: ClassVar[dict[str, str | None]] = {}
    """Options that have no place here, and why; None for one that has, unlike in other recipes."""

    def __post_init__(self):
        if not (torch.cuda.is_available() or torch.backends.mps.is_available()):
            self.use_cpu = True
        raise_all(self.problems())
        self.report_to = "none" if self.report_to is None else self.report_to
        self.fp16 = self.fp16 or launched_precision() == "fp16"
        if self.bf16 is None and not self.fp16:
            launched = launched_precision()
            self.bf16 = launched == "bf16" or (launched == "no" and has_fast_bf16(self.use_cpu))
        if self.activation_checkpointing is None:
            self.activation_checkpointing = self.gradient_checkpointing  # the new name of it
        try:
            super().__post_init__()
        except InputError:
            raise
        except _REFUSALS as error:
            raise InputError(one_line(error)) from error
        given = self.learning_rate  # the default depends on the model; the checks need any number
        self.learning_rate = 1e-3 if given is None else given
        problems = list(self.late_problems())
        self.learning_rate = given
        raise_all(problems)
        refuse_other_launch(self)

    def problems(self) -> Iterator[str]:
        """One line for each combination of options that contradicts itself or the launcher."""
        yield from launch_problems(self)
        if self.save_strategy == SaveStrategy.BEST and self.metric_for_best_model is None:
            self.metric_for_best_model = "loss"  # transformers' default for --load_best_model_at_end
        yield from self._best_model_problems()
        if self.dataloader_num_workers == 0:
            for name in ("persistent_workers", "prefetch_factor", "multiprocessing_context"):
                if getattr(self, f"dataloader_{name}"):
                    yield f"--dataloader_{name} is for a run with --dataloader_num_workers 1 or more"
        backend = self.torch_compile_backend
        if backend is not None and backend not in (known := torch.compiler.list_backends(exclude_tags=())):
            yield f"--torch_compile_backend {backend!r} is not known{nearest(backend, known, listed=True)}"
        mode = self.torch_compile_mode
        if mode is not None and mode not in _COMPILE_MODES:
            yield f"--torch_compile_mode {mode!r} is not known{nearest(mode, _COMPILE_MODES, listed=True)}"

    def machine_problems(self) -> Iterator[str]:
        """One line for each option that does not work on this machine; `plan` may be for another machine."""
        if problem := folder_problem(self.output_dir):
            yield f"--output_dir {self.output_dir}: {problem}"
        if self.use_cpu and self.fp16:
            yield "--fp16: a CPU cannot train in it; leave it out (bf16 is on where the CPU is fast at it)"
        if self.use_cpu and getattr(self, "activation_offloading", False):
            yield "--activation_offloading moves activations from a GPU to the CPU, and there is no GPU"
        if self.torch_compile and self.torch_compile_backend == "inductor" and (missing := _missing_compiler(self)):
            yield f"--torch_compile needs {missing}; install it, or leave the option out"
        if getattr(self, "use_vllm", False):
            yield from self._vllm_problems()

    def _vllm_problems(self) -> Iterator[str]:
        if self.use_cpu:
            yield "--use_vllm needs a GPU: TRL cannot hand trained weights to vLLM on a CPU; leave it out"
        if importlib.util.find_spec("vllm") is None:
            yield "--use_vllm: vLLM is not installed: pip install 'minimind-trl[vllm]'"

    def _best_model_problems(self) -> Iterator[str]:
        evaluates = self.eval_strategy != IntervalStrategy.NO
        wants = [f"--lr_scheduler_type {self.lr_scheduler_type}"] * (self.lr_scheduler_type in BY_EVALUATION)
        wants += ["--save_strategy best"] * (self.save_strategy == SaveStrategy.BEST)
        wants += ["--load_best_model_at_end"] * self.load_best_model_at_end
        if wants and not evaluates:
            yield f"{', '.join(wants)} goes by evaluations: set --eval_interval N"
            return
        if not self.load_best_model_at_end or self.save_strategy == SaveStrategy.BEST:
            return
        if self.save_strategy != IntervalStrategy.STEPS:
            yield "--load_best_model_at_end needs checkpoints to choose from: --save_strategy steps or best"
        elif self.save_steps < 1 or self.save_steps % self.eval_steps:
            fitting = max(round(self.save_steps / self.eval_steps), 1) * int(self.eval_steps)
            yield (
                f"--save_steps {self.save_steps:g} is no multiple of --eval_interval {self.eval_steps:g}, as "
                f"--load_best_model_at_end needs it: set --save_steps {fitting}, or --save_strategy best"
            )

    def late_problems(self) -> Iterator[str]:
        """What transformers would refuse when training begins, by building optimizer and schedule for one number."""
        from transformers import Trainer, get_scheduler  # with `datasets`: a second that `--help` need not wait

        for key in set(self.activation_checkpointing_kwargs or ()) - set(_CHECKPOINTING):
            hint = nearest(str(key), _CHECKPOINTING, listed=True)
            yield f"--activation_checkpointing_kwargs: {key!r} is not known{hint}"
        number = torch.nn.Parameter(torch.zeros(1))
        try:
            make, options = Trainer.get_optimizer_cls_and_kwargs(self)
            make([number], **options)
        except ImportError as error:
            yield f"--optim {self.optim.value}: {first_line(error)}"
        except Exception as error:  # packages refuse foreign options in any way
            if not self.optim.value.startswith(("galore", "apollo", "lomo", "adalomo")):  # made from the model's layers
                given = f" --optim_args {self.optim_args}" if self.optim_args else ""
                yield f"--optim {self.optim.value}{given}: {first_line(error)}"
        steps = self.max_steps if self.max_steps > 0 else 10**6
        try:
            get_scheduler(
                self.lr_scheduler_type,
                torch.optim.SGD([number], lr=self.learning_rate),
                num_warmup_steps=self.get_warmup_steps(steps),
                num_training_steps=steps,
                scheduler_specific_kwargs=self.lr_scheduler_kwargs,
            )
        except (TypeError, ValueError, ArithmeticError, AttributeError) as error:
            kwargs = f" --lr_scheduler_kwargs {self.lr_scheduler_kwargs}" if self.lr_scheduler_kwargs else ""
            yield f"--lr_scheduler_type {self.lr_scheduler_type.value}{kwargs}: {first_line(error)}"


def _missing_compiler(config: RecipeConfig) -> str | None:
    """What torch's inductor calls on this machine and does not find; None if all is there."""
    if not config.use_cpu and importlib.util.find_spec("triton") is None:
        return "Triton on a GPU (pip install triton), and it is not there"
    name = ("CXX", "clang++" if sys.platform == "darwin" else "g++") if config.use_cpu else ("CC", "gcc")
    compiler = os.environ.get(*name)
    return None if shutil.which(compiler) else f"a compiler, and there is no {compiler} ({name[0]} names another one)"


@dataclass
class SupervisedConfig(RecipeConfig):
    """The same for trainers on rows, which have a maximal length."""

    max_length: int | None = field(
        default=None, metadata={"help": "Tokens per row. Default: the mixture's max_seq_length, else 1024."}
    )


# For recipes whose evaluation is our own: it weighs figures by tokens, and `eval` repeats it.
OWN_EVALUATION = dict.fromkeys(
    ("prediction_loss_only", "eval_accumulation_steps", "eval_do_concat_batches", "eval_use_gather_object"),
    "evaluation is the recipe's own: --eval_interval, --eval_batches, --per_device_eval_batch_size",
)
NO_LENGTHS = {"length_column_name": "pairs have no one length to group them by"}
_PAIRS = {"train_sampling_strategy": one_of("random", "sequential")}
_DPO_LOSSES = (
    *("sigmoid", "hinge", "ipo", "exo_pair", "nca_pair", "robust", "bco_pair", "sppo_hard", "aot", "aot_unpaired"),
    *("apo_zero", "apo_down", "discopop", "sft", "sigmoid_norm"),
)


@dataclass
class PretrainRecipeConfig(SupervisedConfig, SFTConfig):
    """SFTConfig for plain text, with the loss on every token."""

    stage: ClassVar[str] = "pretrain"  # in the table of learning rates
    project_name: ClassVar[str] = "Pretrain"  # for trackers, after "MiniMind-"
    refused_options: ClassVar[dict[str, str | None]] = OWN_EVALUATION | {
        "assistant_only_loss": "is for recipes/sft.py: plain text has no turns",
        "chat_template_path": "is for recipes/sft.py: plain text has no turns",
    }

    packing: bool = field(
        default=True,
        metadata={
            "help": "Pack several rows into one of max_length, without padding. Packed rows do not see each other."
        },
    )

    def problems(self) -> Iterator[str]:
        yield from super().problems()
        if self.padding_free and not self.packing:
            yield "--padding_free without --packing would not cut rows at --max_length: add --packing"


@dataclass
class SFTRecipeConfig(PretrainRecipeConfig):
    """SFTConfig for conversations, with the loss on the assistant's turns."""

    stage: ClassVar[str] = "sft"
    project_name: ClassVar[str] = "SFT"
    refused_options: ClassVar[dict[str, str | None]] = OWN_EVALUATION

    assistant_only_loss: bool = field(default=True, metadata={"help": "Loss on the assistant's turns only."})


@dataclass
class DPORecipeConfig(SupervisedConfig, DPOConfig):
    """DPOConfig, on pairs of answers."""

    stage: ClassVar[str] = "dpo"
    project_name: ClassVar[str] = "DPO"
    option_ranges: ClassVar[dict[str, Any]] = _PAIRS | {"beta": MORE_THAN_0, "loss_type": one_of(*_DPO_LOSSES)}
    refused_options: ClassVar[dict[str, str | None]] = NO_LENGTHS | {
        "label_smoothing_factor": "has no effect here: use --label_smoothing",
        "padding_free": "has no effect: TRL's DPO pads in any case",
    }

    def problems(self) -> Iterator[str]:
        yield from super().problems()
        if "robust" in self.loss_type and self.label_smoothing >= 0.5:
            yield f"--label_smoothing {self.label_smoothing}: must be below 0.5 for --loss_type robust"


@dataclass
class RewardRecipeConfig(SupervisedConfig, RewardConfig):
    """RewardConfig, on pairs of answers."""

    stage: ClassVar[str] = "reward"
    project_name: ClassVar[str] = "Reward"

    option_ranges: ClassVar[dict[str, Any]] = _PAIRS
    refused_options: ClassVar[dict[str, str | None]] = NO_LENGTHS | {
        "label_smoothing_factor": "has no effect on preferences",
    }
