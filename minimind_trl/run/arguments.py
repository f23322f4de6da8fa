"""What a recipe can be told: our options, TRL's with defaults that suit the machine, LoRA; and how they are read."""

import argparse
import dataclasses
import importlib.util
import os
import re
import signal
import sys
import traceback
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import datasets
import torch
import yaml
from transformers import Trainer, get_scheduler
from transformers import logging as transformers_logging
from transformers.trainer_utils import IntervalStrategy, SaveStrategy
from transformers.utils import CHAT_TEMPLATE_FILE
from trl import DPOConfig, ModelConfig, RewardConfig, SFTConfig, TrlParser
from trl.scripts._hf_argparser import string_to_bool

from ..errors import InputError, TrainingError, TrainingInterrupted, described, first_line, nearest, one_line
from ..files import full_disk
from ..hardware import has_fast_bf16
from ..models import PRESETS
from ..models.adapters import is_native
from ..yaml_files import load_yaml
from .learning_rates import WARMUP
from .option_ranges import MORE_THAN_0, check_options, one_of
from .output_folder import holds_output_folder, release_output_folders
from .processes import ending_on_signals, launch_problems, launched_precision, load_models_whole, refuse_other_launch
from .secrets import keep_token, take_out_secrets
from .services import folder_problem, service_problems


@dataclass
class RecipeArguments:
    """Options of every recipe, beside all of TRL's own."""

    _argument_group_name = "minimind-trl"

    data_config: str = field(metadata={"help": "Mixture file, such as data_configs/tiny/sft.yaml."})
    preset: str | None = field(
        default=None, metadata={"help": "Train from scratch: nano, tiny, minimind2-small, minimind2, minimind3, ..."}
    )
    from_weight: str | None = field(
        default=None,
        metadata={"help": "Start from a checkpoint: a directory, a Hub id, a LoRA adapter or upstream's .pth file."},
    )
    tokenizer: str | None = field(
        default=None,
        metadata={"help": "Directory or Hub id. Default: the checkpoint's; for --preset tiny the one we ship."},
    )
    num_attention_heads: int | None = field(
        default=None, metadata={"help": "Of a MiniMind2 .pth file, which does not tell it (default 8)."}
    )
    use_prepared: bool = field(
        default=False,
        metadata={"help": "Reuse the mixture prepared in --prepared_dir while nothing it was made from has changed."},
    )
    prepared_dir: str = field(
        default="prepared", metadata={"help": "Where --use_prepared keeps mixtures, a folder PHASE_CONFIG for each."}
    )
    eval_interval: int = field(default=500, metadata={"help": "Steps between evaluations; 0 switches them off."})
    eval_batches: int = field(default=100, metadata={"help": "Batches per evaluation and process, at most."})
    resume: str | None = field(
        default=None, metadata={"help": "'auto': the last whole checkpoint of --output_dir, if any; or a checkpoint."}
    )
    dry_run: bool = field(default=False, metadata={"help": "Check everything, print the plan, train nothing."})
    use_wandb: bool = field(default=False, metadata={"help": "Report to Weights & Biases; short for --report_to."})
    wandb_project: str | None = field(
        default=None, metadata={"help": "With --use_wandb. Default: MiniMind-SFT, MiniMind-DPO, ..."}
    )

    chat_template: str | None = field(default=None, init=False)  # the text of --chat_template_path

    def __post_init__(self):
        raise_all(self.problems())

    def problems(self) -> Iterator[str]:
        """One line for each combination of options that makes no sense."""
        if (self.preset is None) == (self.from_weight is None):
            yield "give exactly one of --preset (train from scratch) and --from_weight (a checkpoint)"
        if self.preset is not None and self.preset not in PRESETS:
            hint = nearest(self.preset, PRESETS)
            yield f"--preset {self.preset!r} is unknown{hint}; choose one of {', '.join(PRESETS)}"
        if self.num_attention_heads is not None and not (self.from_weight and is_native(self.from_weight)):
            yield "--num_attention_heads is for a native .pth file; everything else tells its head count"
        if self.prepared_dir != "prepared" and not self.use_prepared:
            yield "--prepared_dir is for a run with --use_prepared"
        if self.wandb_project and not self.use_wandb:
            yield "--wandb_project is for a run with --use_wandb"


_LORA = [
    f for f in dataclasses.fields(ModelConfig) if f.name.startswith(("use_peft", "use_rslora", "use_dora", "lora_"))
]


def _refuse_unused_lora(lora) -> None:
    unused = [name for name, value in vars(lora).items() if value != vars(_NO_LORA)[name]]
    if unused and not lora.use_peft:
        raise InputError(f"{', '.join(f'--{name}' for name in unused)}: for a run with --use_peft")


_NO_LORA = ModelConfig()
LoraArguments = dataclasses.make_dataclass(
    "LoraArguments",
    [(f.name, f.type, field(default=f.default, default_factory=f.default_factory, metadata=f.metadata)) for f in _LORA],
    namespace={
        "_argument_group_name": "LoRA (of TRL's ModelConfig)",
        "__doc__": "TRL's options for LoRA.",
        "__post_init__": _refuse_unused_lora,
    },
)


@dataclass
class Machine:
    """Defaults that suit small models and the machine at hand, to put before one of TRL's configs.

    A recipe's config has a `stage`, by which its learning rate is found.
    """

    _argument_group_name = "TRL and transformers"

    learning_rate: float | None = field(
        default=None, metadata={"help": "Default: by recipe and size of the model, printed before training."}
    )
    warmup_steps: float = field(
        default=WARMUP, metadata={"help": "Steps in which the learning rate rises, or below 1 the share of all steps."}
    )
    gradient_checkpointing: bool = field(
        default=False, metadata={"help": "Trade compute for memory; models of this size fit without."}
    )
    report_to: list[str] = field(  # transformers reads a single one from the command line
        default_factory=lambda: ["none"],
        metadata={"help": "Trackers, one or more: tensorboard, trackio, wandb, ...; all that are installed; or none."},
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
            self.activation_checkpointing = self.gradient_checkpointing  # the new name, which transformers warns to use
        try:
            super().__post_init__()
        except InputError:
            raise
        except _REFUSALS as error:
            raise InputError(one_line(error)) from error
        given = self.learning_rate  # where there is none, the model's size tells it later; any will do for the checks
        self.learning_rate = 1e-3 if given is None else given
        problems = list(self.late_problems())
        self.learning_rate = given
        raise_all(problems)
        refuse_other_launch(self)
        load_models_whole()

    def problems(self) -> Iterator[str]:
        """One line for each combination of options that makes no sense, or that the launcher contradicts."""
        yield from launch_problems(self)
        if self.save_strategy == SaveStrategy.BEST and self.metric_for_best_model is None:
            self.metric_for_best_model = "loss"  # as transformers takes it for --load_best_model_at_end
        yield from self._best_model_problems()
        if self.dataloader_num_workers == 0:
            for name in ("persistent_workers", "prefetch_factor", "multiprocessing_context"):
                if getattr(self, f"dataloader_{name}"):
                    yield f"--dataloader_{name} is for a run with --dataloader_num_workers 1 or more"
        backend = self.torch_compile_backend
        if backend is not None and backend not in (known := torch.compiler.list_backends(exclude_tags=())):
            yield f"--torch_compile_backend {backend!r} is not known{nearest(backend, known, listed=True)}"

    def machine_problems(self) -> Iterator[str]:
        """One line for each option that this machine cannot follow; a plan may be for another one."""
        if problem := folder_problem(self.output_dir):
            yield f"--output_dir {self.output_dir}: {problem}"
        if self.use_cpu and self.fp16:
            yield "--fp16: a CPU cannot train in it; leave it out (bf16 is on where the CPU is fast at it)"
        if self.use_cpu and getattr(self, "activation_offloading", False):
            yield "--activation_offloading moves activations from a GPU to the CPU, and there is no GPU"
        if getattr(self, "use_vllm", False) and importlib.util.find_spec("vllm") is None:
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
        """What transformers would say when training begins: makes the optimizer and its schedule, for one number."""
        for key in set(self.activation_checkpointing_kwargs or ()) - set(_CHECKPOINTING):
            hint = nearest(str(key), _CHECKPOINTING, listed=True)
            yield f"--activation_checkpointing_kwargs: {key!r} is not known{hint}"
        number = torch.nn.Parameter(torch.zeros(1))
        try:
            make, options = Trainer.get_optimizer_cls_and_kwargs(self)
            make([number], **options)
        except ImportError as error:
            yield f"--optim {self.optim.value}: {first_line(error)}"
        except Exception as error:  # whatever a package makes of options that are not its own
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


# What transformers, TRL and torch.utils.checkpoint know of `activation_checkpointing_kwargs`.
_CHECKPOINTING = (
    *("every_n_layers", "offload", "selective", "use_reentrant"),
    *("preserve_rng_state", "context_fn", "determinism_check", "debug", "early_stop"),
)
BY_EVALUATION = ("reduce_lr_on_plateau", "greedy")
# What TRL, transformers and accelerate raise for options that they refuse.
_REFUSALS = (ImportError, ValueError, TypeError, OSError, RuntimeError, LookupError, AssertionError)


def raise_all(problems: Iterable[str]) -> None:
    """Raise `InputError` where there are any, one line each."""
    if lines := list(problems):
        raise InputError("\n".join(lines))


@dataclass
class MachineDefaults(Machine):
    """The same, for trainers on rows of a given length."""

    max_length: int | None = field(
        default=None, metadata={"help": "Tokens per row. Default: the mixture's max_seq_length, else 1024."}
    )


# Of the recipes that evaluate by themselves, so that figures are weighted by tokens and `eval` repeats them.
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
class PretrainConfig(MachineDefaults, SFTConfig):
    """Plain text: the loss counts on every token."""

    stage: ClassVar[str] = "pretrain"  # of the table of learning rates
    project: ClassVar[str] = "Pretrain"  # of --use_wandb, by default
    refused_options: ClassVar[dict[str, str | None]] = OWN_EVALUATION | {
        "assistant_only_loss": "is for recipes/sft.py: plain text has no turns",
        "chat_template_path": "is for recipes/sft.py: plain text has no turns",
    }

    packing: bool = field(
        default=True, metadata={"help": "Several rows in one of max_length, which do not see each other: no padding."}
    )

    def problems(self) -> Iterator[str]:
        yield from super().problems()
        if self.padding_free and not self.packing:
            yield "--padding_free without --packing would not cut rows at --max_length: add --packing"


@dataclass
class ConversationConfig(PretrainConfig):
    """Conversations: the loss counts on the assistant's turns."""

    stage: ClassVar[str] = "sft"
    project: ClassVar[str] = "SFT"
    refused_options: ClassVar[dict[str, str | None]] = OWN_EVALUATION

    assistant_only_loss: bool = field(default=True, metadata={"help": "Loss on the assistant's turns only."})


@dataclass
class PreferenceConfig(MachineDefaults, DPOConfig):
    """Direct preference optimisation."""

    stage = "dpo"
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
class RewardModelConfig(MachineDefaults, RewardConfig):
    """A reward model from preferences."""

    stage = "reward"

    option_ranges: ClassVar[dict[str, Any]] = _PAIRS
    refused_options: ClassVar[dict[str, str | None]] = NO_LENGTHS | {
        "label_smoothing_factor": "has no effect on preferences",
    }


class _Parser(TrlParser):
    """TrlParser that tells of everything wrong at once, and checks what a YAML file says as well."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.problems: list[str] = []
        for each in (each for kind in self.dataclass_types for each in dataclasses.fields(kind)):
            if each.init and each.default is not dataclasses.MISSING:
                self.set_defaults(**{each.name: each.default})  # transformers' parser forgets that of a list
        for action in self._actions:
            if action.type is string_to_bool:  # `--bf16` as well as `--bf16 true`, whatever the default
                action.nargs, action.const = "?", True

    def error(self, message: str):
        raise InputError("\n".join([*self.problems, message]))

    def _get_value(self, action: argparse.Action, text: str) -> Any:
        try:
            return super()._get_value(action, text)
        except (argparse.ArgumentError, ValueError, TypeError):
            return text  # `check_options` says what is wrong with it

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        pass  # as well

    def set_defaults_with_config(self, **values) -> list[str]:
        unknown = super().set_defaults_with_config(**values)
        self._refuse_unknown(unknown[::2])
        return []

    def parse_args_into_dataclasses(self, args: list[str], return_remaining_strings: bool = False) -> tuple:
        for action in self._actions:
            action.required = False  # `check_options` asks for what must be given
        namespace, unknown = self.parse_known_args(args)
        self._refuse_unknown(option for option in unknown if option.startswith("-"))
        if unknown and not self.problems:
            self.problems.append(f"{unknown[0]!r} belongs to no option")
        values = []
        for kind in self.dataclass_types:
            names = [each.name for each in dataclasses.fields(kind) if each.init]
            checked, problems = check_options(kind, {name: getattr(namespace, name) for name in names})
            values.append(checked)
            self.problems += problems
        raise_all(self.problems)
        return self._made(values)

    def _made(self, values: list[dict[str, Any]]) -> tuple:
        interval = values[0]["eval_interval"]
        made = []
        for kind, fields in zip(self.dataclass_types, values, strict=True):
            if interval and "eval_strategy" in fields:  # here, because much of what transformers checks depends on it
                fields |= {"eval_strategy": "steps", "eval_steps": interval}
            if "hub_token" in fields:
                fields["hub_token"] = keep_token(fields["hub_token"])
            try:
                made.append(kind(**fields))
            except InputError as error:
                self.problems.append(str(error))
        raise_all(self.problems)
        return tuple(made)

    def _refuse_unknown(self, options) -> None:
        known = [option for action in self._actions for option in action.option_strings]
        names = [option.lstrip("-").partition("=")[0] for option in options]
        self.problems += [f"unknown option --{name}{nearest(f'--{name}', known)}" for name in names]


def parse_arguments(
    config: type, *, lora: bool = True, arguments: type = RecipeArguments, options: list[str] | None = None
) -> tuple:
    """Command line and `--config FILE` (YAML) into `arguments`, the config and, with `lora`, `LoraArguments`.

    The command line wins. `options` are in place of the program's own. A Hub token among them becomes the
    environment's HF_TOKEN and stays nowhere else.

    Raises:
        InputError: one line for each option that does not exist (with the nearest one that does) or cannot have its
            value, for each combination that makes no sense, for a tracker or the Hub that cannot be reached; or an
            unreadable config file.
    """
    wanted = (arguments, config, LoraArguments) if lora else (arguments, config)
    about = (sys.modules["__main__"].__doc__ or "").partition("\n")[0]
    usage = "%(prog)s [--config FILE.yaml] [--option VALUE ...]"
    # without allow_abbrev, `--learning_rat` would pass for `--learning_rate`
    parser = _Parser(wanted, allow_abbrev=False, usage=usage, description=about)
    words = [part for word in (sys.argv[1:] if options is None else options) for part in _split_config(word)]
    if options is None:
        take_out_secrets(sys.argv)
    given, words = _config_file(words)
    try:
        parser.set_defaults_with_config(**given)
        args, config, *rest = parser.parse_args_into_dataclasses(words)
    except (TypeError, ValueError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(first_line(error)) from error
    if getattr(config, "chat_template_path", None):
        args.chat_template, config.chat_template_path = _chat_template(config.chat_template_path), None
    if arguments is RecipeArguments:
        raise_all([*config.machine_problems(), *service_problems(config, args.use_wandb)])
    return (args, config, *rest)


def _split_config(word: str) -> list[str]:
    return ["--config", word.removeprefix("--config=")] if word.startswith("--config=") else [word]


def _os_reason(error: OSError) -> str:
    return "no such file" if isinstance(error, FileNotFoundError) else (error.strerror or first_line(error)).lower()


def _chat_template(path: str) -> str:
    """The template of `--chat_template_path`: a Jinja file, or a folder that has one, such as a tokenizer's."""
    file = Path(path) / CHAT_TEMPLATE_FILE if Path(path).is_dir() else Path(path)
    try:
        return file.read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        reason = _os_reason(error) if isinstance(error, OSError) else first_line(error)
        raise InputError(f"--chat_template_path {file}: {reason}; give a .jinja file, or a folder with one") from error


def _config_file(options: list[str]) -> tuple[dict[str, Any], list[str]]:
    """The values in the file of `--config`, their paths found; and the options that are left.

    Raises:
        InputError: there is no such file, or it is no YAML mapping of options.
    """
    if "--config" not in options:
        return {}, options
    at = options.index("--config")
    if at + 1 == len(options):
        raise InputError("--config needs a file")
    path = Path(options[at + 1])
    if path.exists() and not (path.is_file() or path.is_fifo()):
        raise InputError(f"--config {path} is {'a folder' if path.is_dir() else 'a device'}; give a file")
    try:
        _, values = load_yaml(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise InputError(f"--config {path}: no such file") from error
    except OSError as error:
        raise InputError(f"--config {path}: cannot be read: {error.strerror}") from error
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise InputError(f"--config {path}: not valid YAML: {' '.join(str(error).split())}") from error
    if not isinstance(values, dict) or not all(isinstance(name, str) for name in values):
        raise InputError(f"--config {path}: must be a mapping of options, each as name: value")
    environment = values.pop("env", None) or {}  # as of TRL's own scripts
    if not isinstance(environment, dict):
        raise InputError(f"--config {path}: env must be a mapping of names to values")
    os.environ.update({str(name): str(value) for name, value in environment.items()})
    return found_from(path, values), [*options[:at], *options[at + 2 :]]


# Options that name a file or folder that is read, if not something of the Hub.
_READ = (
    *("data_config", "from_weight", "tokenizer", "resume", "teacher_model_name_or_path", "critic_model"),
    *("reward_funcs", "chat_template_path", "deepspeed", "fsdp_config", "accelerate_config"),
)
_REWARD_MODEL = re.compile(r"((?:reward_model:|minimind\d:reward_model=)?)([^,]+)(.*)", re.DOTALL)


def found_from(config_file: Path, values: dict[str, Any]) -> dict[str, Any]:
    """The values of a config file with the paths to what is read where that is.

    They count from the working directory; where nothing is there, from the nearest folder above the config file that
    has it. So the configs of a repository work from everywhere. What is written counts from the working directory.
    """
    folders = config_file.resolve().parents

    def found(name: str) -> str:
        if not name or Path(name).is_absolute() or Path(name).exists():
            return name
        return next((str(folder / name) for folder in folders if (folder / name).exists()), name)

    def reward(spec: Any) -> Any:
        parts = _REWARD_MODEL.fullmatch(spec) if isinstance(spec, str) else None
        return f"{parts[1]}{found(parts[2])}{parts[3]}" if parts else spec

    def value_of(name: str, value: Any) -> Any:
        if name == "reward_funcs" and isinstance(value, str | list):
            return reward(value) if isinstance(value, str) else [reward(spec) for spec in value]
        return found(value) if name in _READ and isinstance(value, str) else value

    return {name: value_of(name, value) for name, value in values.items()}


def report_to_wandb(args: RecipeArguments, config, recipe: str) -> None:
    """Turn `--use_wandb` into transformers' settings; the project can only be given by the environment."""
    if not args.use_wandb:
        return
    config.report_to = [*(name for name in config.report_to if name not in ("none", "wandb")), "wandb"]
    os.environ["WANDB_PROJECT"] = args.wandb_project or f"MiniMind-{recipe}"


def name_project(args: RecipeArguments, config, recipe: str) -> None:
    """Name the project as WandB's for trackers that take it from `--project`, such as trackio, unless that is given."""
    if config.project == type(config).__dataclass_fields__["project"].default:
        config.project = args.wandb_project or f"MiniMind-{recipe}"


def run_recipe(main: Callable[[], None]) -> None:
    """Run a recipe's `main` and exit: 0 when done, 2 on bad input and 1 where training broke off, both with a message.

    A signal ends it with 128 + its number (130 for Ctrl-C), once the state is saved where there is one. All else,
    `sys.exit()` in a function of the user's included, ends with 1 and says where it came from.
    """
    transformers_logging.disable_progress_bar()
    if not sys.stderr.isatty():
        datasets.disable_progress_bars()
    try:
        with ending_on_signals():
            main()
    except (InputError, TrainingError) as error:
        if unexpected := getattr(error, "unexpected", None):
            traceback.print_exception(unexpected)
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2 if isinstance(error, InputError) else 1)
    except KeyboardInterrupt as stop:
        number = getattr(stop, "number", signal.SIGINT)
        when = " before the first step; there was nothing to save" if holds_output_folder() else ""
        print(f"stopped by {signal.Signals(number).name}{when}", file=sys.stderr)
        sys.exit(128 + number)
    except SystemExit as end:
        if isinstance(end, TrainingInterrupted) or not (caller := _caller_of_exit(end)):
            raise
        print(f"error: {described(end)} in {caller}, before the run was done", file=sys.stderr)
        sys.exit(1)
    except Exception as error:
        if not (told := full_disk(error)):  # such as of the cache in which TRL keeps its tokens
            raise
        print(f"error: {told}", file=sys.stderr)
        sys.exit(1)
    finally:
        release_output_folders()


def _caller_of_exit(end: SystemExit) -> str | None:
    """Where sys.exit() was called; None for `--help`, which ends so."""
    frames = traceback.extract_tb(end.__traceback__)
    *_, last = [frame for frame in frames if "_sitebuiltins" not in frame.filename]  # exit() itself
    return None if Path(last.filename).name == "argparse.py" else f"{last.name} ({last.filename}:{last.lineno})"
