"""What a recipe can be told: our options, TRL's with defaults that suit the machine, LoRA; and how they are read."""

import dataclasses
import os
import re
import signal
import sys
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import datasets
import torch
import yaml
from transformers import logging as transformers_logging
from transformers.trainer_utils import IntervalStrategy
from trl import DPOConfig, ModelConfig, RewardConfig, SFTConfig, TrlParser

from ..errors import InputError, TrainingError, TrainingInterrupted, described, nearest
from ..files import full_disk
from ..hardware import has_fast_bf16
from ..models import PRESETS
from ..models.adapters import is_native
from ..yaml_files import load_yaml
from .learning_rates import WARMUP
from .output_folder import holds_output_folder, release_output_folders
from .processes import ending_on_signals, load_models_whole, refuse_other_launch


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

    def __post_init__(self):
        if (self.preset is None) == (self.from_weight is None):
            raise InputError("give exactly one of --preset (train from scratch) and --from_weight (a checkpoint)")
        if self.preset is not None and self.preset not in PRESETS:
            hint = nearest(self.preset, PRESETS)
            raise InputError(f"--preset {self.preset!r} is unknown{hint}; choose one of {', '.join(PRESETS)}")
        if self.num_attention_heads is not None and not (self.from_weight and is_native(self.from_weight)):
            raise InputError("--num_attention_heads is for a native .pth file; everything else tells its head count")
        if self.eval_interval < 0:
            raise InputError(f"--eval_interval {self.eval_interval}: must be 0 (off) or more")
        if self.eval_batches < 1:
            raise InputError(f"--eval_batches {self.eval_batches}: must be at least 1; --eval_interval 0 switches off")
        if self.prepared_dir != "prepared" and not self.use_prepared:
            raise InputError("--prepared_dir is for a run with --use_prepared")
        if self.wandb_project and not self.use_wandb:
            raise InputError("--wandb_project is for a run with --use_wandb")


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

    def __post_init__(self):
        if not (torch.cuda.is_available() or torch.backends.mps.is_available()):
            self.use_cpu = True
        if self.bf16 is None and not self.fp16:
            self.bf16 = has_fast_bf16(self.use_cpu)
        if self.activation_checkpointing is None:
            self.activation_checkpointing = self.gradient_checkpointing  # the new name, which transformers warns to use
        if self.model_init_kwargs:
            raise InputError(
                "--model_init_kwargs is not used, the recipe loads the model; give --preset or --from_weight"
            )
        if self.eval_steps is not None or self.eval_strategy not in ("no", IntervalStrategy.NO):
            raise InputError("--eval_steps and --eval_strategy are set by --eval_interval N (steps; 0 is off)")
        if self.resume_from_checkpoint is not None:
            raise InputError("--resume_from_checkpoint is set by --resume auto or --resume CHECKPOINT")
        try:
            super().__post_init__()
        except (ImportError, ValueError) as error:  # an ImportError where an engine's package is missing
            raise InputError(str(error)) from error
        refuse_other_launch(self)
        load_models_whole()


@dataclass
class MachineDefaults(Machine):
    """The same, for trainers on rows of a given length."""

    max_length: int | None = field(
        default=None, metadata={"help": "Tokens per row. Default: the mixture's max_seq_length, else 1024."}
    )


@dataclass
class PretrainConfig(MachineDefaults, SFTConfig):
    """Plain text: the loss counts on every token."""

    stage: ClassVar[str] = "pretrain"  # of the table of learning rates
    project: ClassVar[str] = "Pretrain"  # of --use_wandb, by default

    packing: bool = field(
        default=True, metadata={"help": "Several rows in one of max_length, which do not see each other: no padding."}
    )


@dataclass
class ConversationConfig(PretrainConfig):
    """Conversations: the loss counts on the assistant's turns."""

    stage: ClassVar[str] = "sft"
    project: ClassVar[str] = "SFT"

    assistant_only_loss: bool = field(default=True, metadata={"help": "Loss on the assistant's turns only."})


@dataclass
class PreferenceConfig(MachineDefaults, DPOConfig):
    """Direct preference optimisation."""

    stage = "dpo"


@dataclass
class RewardModelConfig(MachineDefaults, RewardConfig):
    """A reward model from preferences."""

    stage = "reward"


def parse_arguments(
    config: type, *, lora: bool = True, arguments: type = RecipeArguments, options: list[str] | None = None
) -> tuple:
    """Command line and `--config FILE` (YAML) into `arguments`, the config and, with `lora`, `LoraArguments`.

    The command line wins. `options` are in place of the program's own.

    Raises:
        InputError: an option that does not exist (with the nearest one that does), or an unreadable config file.
    """
    wanted = (arguments, config, LoraArguments) if lora else (arguments, config)
    about = (sys.modules["__main__"].__doc__ or "").partition("\n")[0]
    usage = "%(prog)s [--config FILE.yaml] [--option VALUE ...]"
    # without allow_abbrev, `--learning_rat` would pass for `--learning_rate`
    parser = TrlParser(wanted, allow_abbrev=False, usage=usage, description=about)
    given, options = _config_file(sys.argv[1:] if options is None else options)
    try:
        unknown = parser.set_defaults_with_config(**given)
        args, config, *rest = parser.parse_args_into_dataclasses(options)
        if unknown:
            raise ValueError(f"unknown arguments in the config file: {unknown}")
    except ValueError as error:
        if isinstance(error, InputError):
            raise
        known = [option for action in parser._actions for option in action.option_strings]
        unknown = re.findall(r"'--?([\w-]+)", str(error)) if "argument" in str(error) else []
        hints = [f"--{name}{nearest(f'--{name}', known)}" for name in unknown]
        raise InputError(f"unknown option {'; '.join(hints)}" if hints else str(error)) from error
    return (args, config, *rest)


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
    try:
        import wandb  # noqa: F401
    except ImportError as error:
        raise InputError("--use_wandb needs WandB: pip install 'minimind-trl[wandb]'") from error
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
