"""What the recipes share: arguments, machine defaults, loading, training with evaluation, saving."""

import math
import re
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

import torch
import yaml
from datasets import DatasetDict
from transformers import AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase, TrainerCallback, set_seed
from transformers.trainer_utils import IntervalStrategy
from trl import SFTConfig, SFTTrainer, TrlParser

from .data import LOCK, DatasetMixer, load_or_prepare
from .errors import InputError, nearest
from .files import write_json
from .models import PRESETS, MiniMindConfig, MiniMindForCausalLM, load_model
from .models.checkpoints import NATIVE_SUFFIXES
from .tokenization import TINY_TOKENIZER_DIR, with_training_template

Arguments = TypeVar("Arguments")


@dataclass
class RecipeArguments:
    """Options of every recipe, beside all of TRL's own."""

    data_config: str = field(metadata={"help": "Mixture file, such as data_configs/tiny/sft.yaml."})
    preset: str | None = field(
        default=None, metadata={"help": "Train from scratch: tiny, minimind2-small, minimind2, minimind3, ..."}
    )
    from_weight: str | None = field(
        default=None, metadata={"help": "Start from a checkpoint: a directory, a Hub id or upstream's .pth file."}
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

    def __post_init__(self):
        if (self.preset is None) == (self.from_weight is None):
            raise InputError("give exactly one of --preset (train from scratch) and --from_weight (a checkpoint)")
        if self.preset is not None and self.preset not in PRESETS:
            raise InputError(f"--preset {self.preset!r} is unknown; choose one of {', '.join(PRESETS)}")
        if self.num_attention_heads is not None and Path(self.from_weight or "").suffix not in NATIVE_SUFFIXES:
            raise InputError("--num_attention_heads is for a native .pth file; everything else tells its head count")
        if self.eval_interval < 0:
            raise InputError(f"--eval_interval {self.eval_interval}: must be 0 (off) or more")
        if self.eval_batches < 1:
            raise InputError(f"--eval_batches {self.eval_batches}: must be at least 1; --eval_interval 0 switches off")


@dataclass
class RecipeSFTConfig(SFTConfig):
    """TRL's SFTConfig with defaults that suit small models and the machine at hand."""

    gradient_checkpointing: bool = field(
        default=False, metadata={"help": "Trade compute for memory; models of this size fit without."}
    )
    max_length: int | None = field(
        default=None, metadata={"help": "Tokens per row. Default: the mixture's max_seq_length, else 1024."}
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
        super().__post_init__()
        _refuse_used_folder(self.output_dir, self.resume_from_checkpoint)


def has_fast_bf16(use_cpu: bool) -> bool:
    """Whether the device computes bfloat16 faster than float32 (on CPUs: AVX512-BF16 or AMX)."""
    if not use_cpu:
        return torch.cuda.is_available() and torch.cuda.is_bf16_supported(including_emulation=False)
    # /proc/cpuinfo names the feature on Linux; elsewhere float32 is the safe choice
    cpuinfo = Path("/proc/cpuinfo")
    return cpuinfo.exists() and re.search(r"\b(avx512_bf16|amx_bf16)\b", cpuinfo.read_text()) is not None


def run_recipe(main: Callable[[], None]) -> None:
    """Run a recipe's `main`: bad input ends in one line on stderr and exit code 2, all else in a traceback and 1."""
    try:
        main()
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)


def parse_arguments(*dataclasses: type) -> tuple:
    """Command line and `--config FILE` (YAML) into dataclasses; the command line wins.

    Raises:
        InputError: an option that does not exist (with the nearest one that does), or an unreadable config file.
    """
    parser = TrlParser(dataclasses, allow_abbrev=False)  # or `--learning_rat` would pass for `--learning_rate`
    try:
        return parser.parse_args_and_config()
    except FileNotFoundError as error:
        raise InputError(f"--config {error.filename}: no such file") from error
    except yaml.YAMLError as error:
        raise InputError(f"--config: not valid YAML: {' '.join(str(error).split())}") from error
    except IndexError as error:
        raise InputError("--config needs a file") from error
    except ValueError as error:
        if isinstance(error, InputError):
            raise
        known = [option for action in parser._actions for option in action.option_strings]
        unknown = re.findall(r"'--?([\w-]+)", str(error)) if "argument" in str(error) else []
        hints = [f"--{name}{nearest(f'--{name}', known)}" for name in unknown]
        raise InputError(f"unknown option {'; '.join(hints)}" if hints else str(error)) from error


def load_tokenizer(args: RecipeArguments) -> PreTrainedTokenizerBase:
    """The tokenizer that belongs to the model.

    Raises:
        InputError: none is known for this model; the message says how to give one.
    """
    if args.from_weight and Path(args.from_weight).suffix in NATIVE_SUFFIXES and not Path(args.from_weight).exists():
        raise InputError(f"--from_weight {args.from_weight}: no such file")
    name = args.tokenizer or args.from_weight
    if Path(name or "").is_absolute() and not Path(name).exists():
        raise InputError(f"{name}: no such file or directory")
    if args.tokenizer is None:
        if args.preset == "tiny":
            name = str(TINY_TOKENIZER_DIR)
        elif args.preset or (not (Path(name) / "tokenizer_config.json").is_file() and Path(name).exists()):
            raise InputError(
                f"{args.preset or name} brings no tokenizer; give --tokenizer DIR (upstream's for its checkpoints, or "
                "one made by `minimind-trl tokenizer train`)"
            )
    try:
        return AutoTokenizer.from_pretrained(name)
    except (OSError, ValueError) as error:
        raise InputError(f"no tokenizer at {name}: {str(error).splitlines()[0]}") from error


def load_or_create_model(args: RecipeArguments, tokenizer: PreTrainedTokenizerBase, seed: int) -> MiniMindForCausalLM:
    """The checkpoint of `--from_weight`, or fresh weights of `--preset` in the tokenizer's vocabulary.

    Raises:
        InputError: the checkpoint cannot be loaded, or its vocabulary is smaller than the tokenizer's.
    """
    if args.preset:
        set_seed(seed)
        config = MiniMindConfig.from_preset(args.preset)
        if config.vocab_size != len(tokenizer):
            print(f"vocabulary: {len(tokenizer)} tokens, the tokenizer's (the preset has {config.vocab_size})")
            config.vocab_size = len(tokenizer)
        return MiniMindForCausalLM(config)
    overrides = {} if args.num_attention_heads is None else {"num_attention_heads": args.num_attention_heads}
    model = load_model(args.from_weight, config_overrides=overrides)
    if len(tokenizer) > model.config.vocab_size:
        raise InputError(
            f"the tokenizer has {len(tokenizer)} tokens, {args.from_weight} only {model.config.vocab_size}: "
            "give --tokenizer the one that the checkpoint was trained with"
        )
    return model


def load_data(
    args: RecipeArguments, config: SFTConfig, tokenizer: PreTrainedTokenizerBase, phases: tuple[str, ...]
) -> tuple[DatasetDict, DatasetMixer]:
    """The mixture's train and validation rows, and the mixer, which tells what became of the others.

    Sets `config.max_length` from the mixture where it is unset.

    Raises:
        InputError: the mixture cannot be built, or is for another phase.
    """
    mixer = DatasetMixer.from_yaml(args.data_config)
    metadata = mixer.mixture.metadata
    if metadata.phase not in phases:
        raise InputError(f"{args.data_config}: phase {metadata.phase!r}, but this recipe trains {' or '.join(phases)}")
    if config.max_length is None:
        config.max_length = metadata.max_seq_length or 1024
    if args.use_prepared:
        data = load_or_prepare(mixer, Path(args.prepared_dir) / mixer.name, tokenizer)
    else:
        data = mixer.build(tokenizer)
    for line in (args.data_config, *mixer.describe().splitlines()):
        print(f"data: {line}")
    return data, mixer


class MixtureLockCallback(TrainerCallback):
    """Puts `mixture.lock.json` into every checkpoint."""

    def __init__(self, mixer: DatasetMixer, tokenizer: PreTrainedTokenizerBase):
        self.lock = mixer.lock(tokenizer)

    def on_save(self, args, state, control, **kwargs):
        if state.is_world_process_zero:
            write_json(Path(args.output_dir) / f"checkpoint-{state.global_step}" / LOCK, self.lock)


def train_sft(
    args: RecipeArguments,
    config: SFTConfig,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    data: DatasetDict,
    mixer: DatasetMixer,
) -> dict[str, dict[str, float]]:
    """Train with TRL's SFTTrainer, evaluating before, during and after; save model, tokenizer and metrics.json.

    Returns:
        `{"before": ..., "after": ...}`, held-out figures (empty with `--eval_interval 0`).

    Raises:
        InputError: no training row has a token to learn from.
    """
    if args.eval_interval:
        config.eval_strategy, config.eval_steps = "steps", args.eval_interval
    trainer = SFTTrainer(
        model=model,
        args=config,
        processing_class=with_training_template(tokenizer) if config.assistant_only_loss else tokenizer,
        train_dataset=data["train"],
        eval_dataset=data["validation"] if args.eval_interval else None,
        callbacks=[MixtureLockCallback(mixer, tokenizer)],
    )
    if len(trainer.train_dataset) == 0:
        raise InputError(f"no training row has a token to learn from within max_length={config.max_length}")
    if args.eval_interval:
        rows = args.eval_batches * config.per_device_eval_batch_size * config.world_size
        trainer.eval_dataset = trainer.eval_dataset.select(range(min(rows, len(trainer.eval_dataset))))
    _print_plan(trainer, rows_given=len(data["train"]))

    metrics = {"before": _evaluate(trainer)} if args.eval_interval else {}
    trainer.train(resume_from_checkpoint=config.resume_from_checkpoint)
    if args.eval_interval:
        metrics["after"] = _evaluate(trainer)
    trainer.save_model()
    if trainer.is_world_process_zero():
        tokenizer.save_pretrained(config.output_dir)  # the inference template, in place of the training twin
        write_json(Path(config.output_dir) / "metrics.json", metrics)
        write_json(Path(config.output_dir) / LOCK, mixer.lock(tokenizer))
        _write_model_card(trainer, mixer)
        _print_result(metrics, config.output_dir)
    trainer.end()
    return metrics


def _refuse_used_folder(output_dir: str, resume: str | None) -> None:
    folder = Path(output_dir)
    if folder.exists() and not folder.is_dir():
        raise InputError(f"--output_dir {output_dir} is a file; give a folder")
    if resume is not None and not Path(resume).is_dir():
        raise InputError(f"--resume_from_checkpoint {resume}: no such folder; give {output_dir}/checkpoint-N")
    if resume is None and folder.is_dir() and any(folder.iterdir()):
        raise InputError(f"--output_dir {output_dir} is not empty; give a new one, or --resume_from_checkpoint")


def _print_plan(trainer: SFTTrainer, rows_given: int) -> None:
    config = trainer.args
    if not config.packing and (dropped := rows_given - len(trainer.train_dataset)):
        trainer.accelerator.print(
            f"data: {dropped} train rows dropped: no token to learn from within max_length={config.max_length}"
        )
    parameters = sum(parameter.numel() for parameter in trainer.model.parameters())
    precision = "bf16" if config.bf16 else "fp16" if config.fp16 else "fp32"
    trainer.accelerator.print(
        f"model: {parameters:,} parameters, {precision} on {config.device.type}, {config.world_size} process(es); "
        f"{len(trainer.train_dataset)} rows of at most {config.max_length} tokens"
    )


def _evaluate(trainer: SFTTrainer) -> dict[str, float]:
    figures = trainer.evaluate()
    loss = figures["eval_loss"]
    return {
        "eval_loss": loss,
        "perplexity": math.exp(min(loss, 50)),
        "token_accuracy": figures.get("eval_mean_token_accuracy", math.nan),
    }


def _print_result(metrics: dict[str, dict[str, float]], output_dir: str) -> None:
    for when, figures in metrics.items():
        print(f"held-out {when} training: " + ", ".join(f"{name} {value:.4f}" for name, value in figures.items()))
    print(f"saved to {output_dir}")


def _write_model_card(trainer: SFTTrainer, mixer: DatasetMixer) -> None:
    trainer.create_model_card()
    card = Path(trainer.args.output_dir) / "README.md"
    card.write_text(f"{card.read_text(encoding='utf-8').rstrip()}\n\n## Training data\n\n{mixer.markdown()}", "utf-8")
