"""The options of a recipe: ours, TRL's and LoRA's, and the parser that reads them."""

import argparse
import dataclasses
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from transformers.utils import CHAT_TEMPLATE_FILE
from trl import ModelConfig, TrlParser

from ..errors import InputError, first_line, nearest, raise_all
from ..internals import reads_boolean
from .config_files import read_config_file
from .option_checks import check_options
from .processes import load_models_whole
from .secrets import keep_token, take_out_secrets
from .services import service_problems


@dataclass
class RecipeArguments:
    """Options that every recipe adds to TRL's."""

    _argument_group_name = "minimind-trl"

    data_config: str = field(metadata={"help": "Mixture file, or the name of a shipped one, such as tiny/sft."})
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
        default=None, metadata={"help": "For a MiniMind2 .pth file, which does not record its head count. Default: 8."}
    )
    as_twin: bool = field(
        default=False,
        metadata={
            "help": "Train the stock Llama or Qwen3 that computes the same, which engines such as vLLM know. The run's "
            "folder gets a MiniMind again, and the stock model in twin/."
        },
    )
    use_prepared: bool = field(
        default=False,
        metadata={"help": "Reuse the mixture in --prepared_dir if nothing it was made from has changed."},
    )
    prepared_dir: str = field(
        default="prepared",
        metadata={"help": "Folder of prepared mixtures, or its URL (s3://); each is in PHASE_CONFIG."},
    )
    eval_interval: int = field(default=500, metadata={"help": "Steps between evaluations; 0 switches them off."})
    eval_batches: int = field(default=100, metadata={"help": "Most batches per evaluation and process."})
    resume: str | None = field(
        default=None,
        metadata={
            "help": "auto: from the last whole checkpoint in --output_dir, if there is one; or a checkpoint's folder."
        },
    )
    report: bool = field(
        default=True,
        metadata={
            "help": "Write samples.jsonl, what the model says at a few moments of training, and report.html, a page "
            "about the run. Both show rows of the mixture, and --push_to_hub uploads them."
        },
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
        """One line for each combination of options that contradicts itself."""
        from ..models import PRESETS
        from ..models.adapters import is_native

        if (self.preset is None) == (self.from_weight is None):
            yield "give exactly one of --preset (train from scratch) and --from_weight (a checkpoint)"
        if self.preset is not None and self.preset not in PRESETS:
            hint = nearest(self.preset, PRESETS)
            yield f"--preset {self.preset!r} is unknown{hint}; choose one of {', '.join(PRESETS)}"
        if self.num_attention_heads is not None and not (self.from_weight and is_native(self.from_weight)):
            yield "--num_attention_heads is for a native .pth file; other checkpoints record their head count"
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


class _Parser(TrlParser):
    """TrlParser that collects all problems, including those of the YAML file, and raises them together."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.problems: list[str] = []
        for each in (each for kind in self.dataclass_types for each in dataclasses.fields(kind)):
            if each.init and each.default is not dataclasses.MISSING:
                self.set_defaults(**{each.name: each.default})  # transformers' parser forgets the default of a list
        for action in self._actions:
            if reads_boolean(action):  # `--bf16` as well as `--bf16 true`, whatever the default
                action.nargs, action.const = "?", True

    def error(self, message: str):
        raise InputError("\n".join([*self.problems, message]))

    def _get_value(self, action: argparse.Action, text: str) -> Any:
        try:
            return super()._get_value(action, text)
        except (argparse.ArgumentError, ValueError, TypeError):
            return text  # `check_options` reports what is wrong with it

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        pass  # `check_options` checks it

    def set_defaults_with_config(self, **values) -> list[str]:
        unknown = super().set_defaults_with_config(**values)
        self._refuse_unknown(unknown[::2])
        return []

    def parse_args_into_dataclasses(self, args: list[str], return_remaining_strings: bool = False) -> tuple:
        for action in self._actions:
            action.required = False  # `check_options` reports what is missing
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
            if interval and "eval_strategy" in fields:  # set here, because transformers' checks depend on it
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
        self.problems += [
            f"unknown option --{name}{_of_launcher(name) or nearest(f'--{name}', known)}" for name in names
        ]


def _of_launcher(name: str) -> str:
    """Where an option that is not a recipe's belongs, if it is the launcher's; otherwise an empty string."""
    from accelerate.commands.launch import launch_command_parser  # slow, and seldom needed

    known = [option for action in launch_command_parser()._actions for option in action.option_strings]
    if f"--{name}" not in (*known, "--accelerate_config"):
        return ""
    return ": it is the launcher's, which gets it from `minimind-trl RECIPE`, or before the recipe's path"


def parse_arguments(
    config: type,
    *,
    lora: bool = True,
    arguments: type = RecipeArguments,
    options: list[str] | None = None,
    recipe: str | None = None,
) -> tuple:
    """Parse the command line and `--config FILE` (YAML) into `arguments`, the config and, with `lora`, `LoraArguments`.

    The command line overrides the file. `options` replace the program's own command line, and `recipe` its name, which
    says whose shipped configs `--config` may name. A Hub token among the options is moved to the environment's HF_TOKEN
    and kept nowhere else.

    Raises:
        InputError: one line for each unknown option (with the nearest known one), for each value out of range, for each
            contradiction, and for a tracker or Hub that cannot be reached; or the config file is unreadable.
    """
    wanted = (arguments, config, LoraArguments) if lora else (arguments, config)
    about = (sys.modules["__main__"].__doc__ or "").partition("\n")[0]
    usage = "%(prog)s [--config FILE.yaml] [--option VALUE ...]"
    # without allow_abbrev, `--learning_rat` would pass for `--learning_rate`
    parser = _Parser(wanted, allow_abbrev=False, usage=usage, description=about)
    words = sys.argv[1:] if options is None else options
    if options is None:
        take_out_secrets(sys.argv)
    given, words = read_config_file(words, recipe or Path(sys.argv[0]).stem)
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
        load_models_whole()
    return (args, config, *rest)


def _os_reason(error: OSError) -> str:
    return "no such file" if isinstance(error, FileNotFoundError) else (error.strerror or first_line(error)).lower()


def _chat_template(path: str) -> str:
    """The template of `--chat_template_path`, which is a Jinja file or a folder with one, such as a tokenizer's."""
    file = Path(path) / CHAT_TEMPLATE_FILE if Path(path).is_dir() else Path(path)
    try:
        return file.read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        reason = _os_reason(error) if isinstance(error, OSError) else first_line(error)
        raise InputError(f"--chat_template_path {file}: {reason}; give a .jinja file, or a folder with one") from error
