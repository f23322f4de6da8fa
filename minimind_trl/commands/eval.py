"""`minimind-trl eval CHECKPOINT`: the figures of training again, and answers to held-out prompts."""

import argparse
import json
import math
import sys
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table

from ..errors import InputError
from ..evaluation.measures import short_number
from ..files import write_json

if TYPE_CHECKING:
    import torch
    from datasets import Dataset
    from transformers import PreTrainedTokenizerBase

    from ..data import DatasetMixer
    from ..evaluation.comparison import LoadedCheckpoint, Measures

_AS_TRAINED = ("max_length", "batch_size", "eval_batches", "bf16", "assistant_only_loss", "beta")
_HARNESS_OPTIONS = ("apply_chat_template", "num_fewshot", "limit")  # as lm-eval's own command line has them
_ANSWERED = ("sft", "distill", "rlaif")  # phases whose rows have a prompt for --generate


def add_cli(verbs: argparse._SubParsersAction) -> None:
    """Add the `eval` verb."""
    what = "measure a checkpoint on the held-out rows of a mixture, and on standard benchmarks"
    parser = verbs.add_parser("eval", help=what, description=what)
    parser.add_argument("checkpoint", metavar="CHECKPOINT", help="directory, Hub id, LoRA adapter or upstream's .pth")
    parser.add_argument(
        "--data_config", metavar="FILE", help="mixture file, or the name of a shipped one; its validation split is used"
    )
    parser.add_argument(
        "--tokenizer",
        help="directory or Hub id; 'tiny' is the one that comes with the package (default: the checkpoint's)",
    )
    parser.add_argument("--baseline", metavar="CHECKPOINT", help="measured too; in phase dpo also the reference")
    parser.add_argument("--num_attention_heads", type=int, help="of MiniMind2 .pth files, which do not record it")
    as_trained = parser.add_argument_group("how", "Default: as in the checkpoint's training, where recorded.")
    as_trained.add_argument(
        "--eval_batches", type=int, help="look at the first eval_batches x batch_size rows (else 100)"
    )
    as_trained.add_argument("--batch_size", type=int, help="rows or pairs per forward pass (else 16)")
    as_trained.add_argument("--max_length", type=int, help="tokens per row (else the mixture's, or 1024)")
    on_or_off = argparse.BooleanOptionalAction
    as_trained.add_argument("--bf16", action=on_or_off, help="compute in bfloat16 (else if the device is fast at it)")
    as_trained.add_argument(
        "--assistant_only_loss",
        action=on_or_off,
        help="of conversations count only the assistant's turns (else yes)",
    )
    as_trained.add_argument("--beta", type=float, help="of the implicit reward in phase dpo (else 0.1)")
    parser.add_argument("--generate", type=int, metavar="N", help="greedy answers to N held-out prompts")
    parser.add_argument(
        "--tools",
        action="store_true",
        help="calls of the named tools, and answers from their results: 40 prompts that come with the package, or the "
        "held-out rows of a mixture of phase rlaif with the columns tools and gt",
    )
    parser.add_argument("--max_new_tokens", type=int, help="per answer (64), or with --tools per turn (256)")
    parser.add_argument("--lm_eval", metavar="TASK[,TASK]", help="standard benchmarks, if lm-eval is installed")
    parser.add_argument("--suite", metavar="NAME", help="benchmarks of lm-eval that are reported together: minimind")
    parser.add_argument("--lm_eval_include_path", metavar="DIR", help="folder with lm-eval task files of your own")
    parser.add_argument(
        *("--apply_chat_template", "--lm_eval_apply_chat_template"),
        action="store_true",
        help="ask lm-eval's questions as a user of the chat template, as chat models are measured",
    )
    parser.add_argument(
        *("--num_fewshot", "--lm_eval_num_fewshot"),
        type=int,
        metavar="N",
        help="solved examples before each of lm-eval's questions (else as the task says)",
    )
    parser.add_argument(
        *("--limit", "--lm_eval_limit"),
        type=float,
        metavar="N",
        help="only the first N questions of each of lm-eval's tasks, or below 1 that share of them",
    )
    parser.add_argument("--output", type=Path, metavar="FILE.json", help="write the figures as JSON, too")
    parser.set_defaults(run=_run)


def _run(args: argparse.Namespace) -> None:
    report = evaluate(args)
    Console(width=None if sys.stdout.isatty() else 120).print(_table(report))
    for line in chance_lines(report["figures"]):
        print(line)
    if args.output:
        write_json(args.output, report)
        print(f"written to {args.output}")


def evaluate(args: argparse.Namespace) -> dict[str, Any]:
    """What `minimind-trl eval` prints and writes.

    Returns:
        `checkpoint`, `baseline`, `data_config`, `options` and `figures`: of "model", "baseline" (if one is given) and
        "chance" (where it is known), `{name: {"value", "low"?, "high"?, "count"?}}`.

    Raises:
        InputError: the options, the checkpoint, its tokenizer, the mixture or a benchmark cannot be used.
    """
    _check_options(args)
    import datasets

    from ..data import DatasetMixer
    from ..evaluation.harness import check_installed

    if args.lm_eval:
        check_installed()
    datasets.disable_progress_bars()
    mixer = DatasetMixer.from_yaml(args.data_config) if args.data_config else None
    phase = mixer.mixture.metadata.phase if mixer else None
    _check_phase(args, phase)
    checkpoints = {"model": _load(args.checkpoint, args, phase)}
    if args.baseline:
        checkpoints = {"baseline": _load(args.baseline, args, phase, checkpoints["model"].tokenizer)} | checkpoints
    _fill_in_options(args, phase, mixer)
    figures: dict[str, Measures] = {name: {} for name in (*checkpoints, "chance")}
    rows = _held_out_rows(args, mixer, checkpoints["model"].tokenizer) if mixer else None
    if mixer:
        figures = _held_out(args, mixer, checkpoints, rows)
    if args.tools:
        _add_tools(args, checkpoints, figures, rows)
    if args.lm_eval:
        _add_benchmarks(args, checkpoints, figures)
    reported = (*_AS_TRAINED, "max_new_tokens", *(_HARNESS_OPTIONS if args.lm_eval else ()))
    return {
        **{name: getattr(args, name) for name in ("checkpoint", "baseline", "data_config")},
        "options": {"phase": phase, **{name: getattr(args, name) for name in reported}},
        "figures": {
            name: {figure: measure.as_dict() for figure, measure in figures[name].items()}
            for name in ("model", "baseline", "chance")
            if name in figures
        },
    }


def _held_out_rows(args: argparse.Namespace, mixer: "DatasetMixer", tokenizer: "PreTrainedTokenizerBase") -> "Dataset":
    if mixer.mixture.validation is None:
        raise InputError(f"{args.data_config} holds out no rows (validation: none): there is nothing to measure on")
    mixer.max_length = args.max_length
    trained = _trained_options(Path(args.checkpoint), mixer.mixture.metadata.phase)
    mixer.on_long = trained.get("on_long") or mixer.on_long
    rows = mixer.build(tokenizer)["validation"]
    if not len(rows):
        raise InputError(f"{args.data_config}: no validation rows")
    return rows


def _held_out(
    args: argparse.Namespace, mixer: "DatasetMixer", checkpoints: dict[str, "LoadedCheckpoint"], rows: "Dataset"
) -> dict[str, "Measures"]:
    from ..evaluation.comparison import EvaluationOptions, compare

    options = EvaluationOptions(
        **{name: getattr(args, name) for name in _AS_TRAINED},
        chunk=mixer.on_long == "chunk",
        max_new_tokens=args.max_new_tokens,
    )
    taken, asked = _first(rows, args), list(islice(rows, args.generate or 0))
    return compare(checkpoints, mixer.mixture.metadata.phase, taken, asked, options)


def _first(rows: "Dataset", args: argparse.Namespace) -> list[dict[str, Any]]:
    return list(islice(rows, args.eval_batches * args.batch_size))


def _add_tools(
    args: argparse.Namespace,
    checkpoints: dict[str, "LoadedCheckpoint"],
    figures: dict[str, "Measures"],
    rows: "Dataset | None",
) -> None:
    from ..evaluation.tool_use import guessing_tools, tool_measures, tool_prompts

    for name, checkpoint in checkpoints.items():
        prompts, left_out = tool_prompts(None if rows is None else _first(rows, args))
        figures[name] |= tool_measures(checkpoint.model, checkpoint.tokenizer, prompts, args.max_new_tokens)
        figures["chance"] |= guessing_tools(prompts)
    if left_out:
        print(f"--tools: {left_out} of {left_out + len(prompts)} rows left out: other tools, or no tools and gt")


def _add_benchmarks(
    args: argparse.Namespace, checkpoints: dict[str, "LoadedCheckpoint"], figures: dict[str, "Measures"]
) -> None:
    from ..evaluation.harness import harness_measures

    for name, checkpoint in checkpoints.items():
        measures, guesses = harness_measures(
            checkpoint.model,
            checkpoint.tokenizer,
            args.lm_eval.split(","),
            include_path=args.lm_eval_include_path,
            batch_size=args.batch_size,
            **{option: getattr(args, option) for option in _HARNESS_OPTIONS},
        )
        figures[name] |= measures
        figures["chance"] |= guesses


# --- loading ----------------------------------------------------------------------------------------------------------


def _load(
    name: str, args: argparse.Namespace, phase: str | None, default: "PreTrainedTokenizerBase | None" = None
) -> "LoadedCheckpoint":
    """Load model and tokenizer of a checkpoint; `default` replaces a tokenizer that it does not bring."""
    from ..data.schemas import PHASES
    from ..evaluation.comparison import LoadedCheckpoint
    from ..models import MiniMindForCausalLM, MiniMindForSequenceClassification, load_model
    from ..models.adapters import is_native
    from ..models.checkpoints import architecture_of, check_vocabulary

    architecture = architecture_of(name)  # None where it is unknown; loading then says why
    is_reward_model = architecture is not None and architecture.endswith("ForSequenceClassification")
    if phase == "reward" and architecture is not None and not is_reward_model:
        raise InputError(f"{name} is a language model; phase reward needs a reward model (recipes/reward.py makes one)")
    if is_reward_model and phase != "reward":
        wanted = f"phase {phase}" if phase else "--tools" if args.tools else "--lm_eval"
        raise InputError(f"{name} is a reward model; {wanted} needs a language model")
    heads = args.num_attention_heads
    model = load_model(
        name,
        MiniMindForSequenceClassification if phase == "reward" else MiniMindForCausalLM,
        config_overrides={"num_attention_heads": heads} if heads and is_native(name) else {},
        merge=False,  # a learned prompt cannot be merged into the weights, and all other adapters compute the same
    )
    if phase == "reward" and model.config.num_labels != 1:
        raise InputError(f"{name}: {model.config.num_labels} labels; a reward model has one")
    tokenizer = _load_tokenizer(name, args, default)
    check_vocabulary(model, tokenizer, name)
    if args.apply_chat_template and not tokenizer.chat_template:
        raise InputError(f"--apply_chat_template: the tokenizer of {name} has no chat template; leave it out")
    needs_template = "--tools" if args.tools else f"phase {phase}" if phase and PHASES[phase][0] != "text" else None
    if needs_template and not tokenizer.chat_template:
        raise InputError(f"the tokenizer of {name} has no chat template, which {needs_template} needs")
    return LoadedCheckpoint(name, model.to(_device()), tokenizer)


def _load_tokenizer(
    name: str, args: argparse.Namespace, default: "PreTrainedTokenizerBase | None"
) -> "PreTrainedTokenizerBase":
    from ..models.checkpoints import load_tokenizer_of, tokenizer_folder
    from ..tokenization import load_tokenizer

    if args.tokenizer:
        return load_tokenizer(args.tokenizer)
    if tokenizer_folder(name) is None:
        if default is not None:
            return default
        raise InputError(f"{name} brings no tokenizer; give --tokenizer DIR")
    return load_tokenizer_of(name)


def _device() -> "torch.device":
    import torch

    return torch.accelerator.current_accelerator() if torch.accelerator.is_available() else torch.device("cpu")


# --- options and report -----------------------------------------------------------------------------------------------


def _check_options(args: argparse.Namespace) -> None:
    if args.suite:
        _expand_suite(args)
    if not (args.data_config or args.lm_eval or args.tools):
        raise InputError("nothing to evaluate on: give --data_config, --lm_eval, --suite or --tools")
    smallest = {"eval_batches": 1, "batch_size": 1, "generate": 1, "max_new_tokens": 1, "max_length": 2}
    for name, least in smallest.items():
        value = getattr(args, name)
        if value is not None and value < least:
            raise InputError(f"--{name} {value}: must be at least {least}")
    unused = [name for name in ("lm_eval_include_path", *_HARNESS_OPTIONS) if getattr(args, name) not in (None, False)]
    if unused and not args.lm_eval:
        raise InputError(f"{', '.join(f'--{name}' for name in unused)}: this is for --lm_eval TASK")
    if args.num_fewshot is not None and args.num_fewshot < 0:
        raise InputError(f"--num_fewshot {args.num_fewshot}: must be 0 or more")
    if args.limit is not None:
        args.limit = _checked_limit(args.limit)
    if args.output and args.output.is_dir():
        raise InputError(f"--output {args.output} is a folder; give a file")


def _expand_suite(args: argparse.Namespace) -> None:
    from ..evaluation.harness import SUITES

    if args.suite not in SUITES:
        raise InputError(f"--suite {args.suite}: choose one of {', '.join(SUITES)}")
    if args.lm_eval:
        raise InputError("--suite and --lm_eval both name benchmarks: give one of them")
    args.lm_eval = ",".join(SUITES[args.suite])


def chance_lines(figures: dict[str, dict]) -> list[str]:
    """One line for each figure of the model whose 95% interval includes the figure of guessing."""
    return [
        f"{name}: {_number(measure['value'])} cannot be told from chance ({_number(chance['value'])})"
        for name, chance in figures.get("chance", {}).items()
        if (measure := figures["model"].get(name))
        and measure.get("low", math.inf) <= chance["value"] <= measure["high"]
    ]


def _checked_limit(limit: float) -> float | int:
    """A count of questions as an integer, or their share between 0 and 1."""
    if not 0 < limit < math.inf or (limit >= 1 and limit != int(limit)):
        raise InputError(f"--limit {limit:g}: a number of questions from 1 on, or a share of them between 0 and 1")
    return int(limit) if limit >= 1 else limit


def _fill_in_options(args: argparse.Namespace, phase: str | None, mixer: "DatasetMixer | None") -> None:
    """Take options that were not given from the training of the checkpoint, if it was of this phase, else defaults."""
    from ..evaluation.comparison import EvaluationOptions
    from ..hardware import has_fast_bf16

    usual = vars(EvaluationOptions(bf16=has_fast_bf16(use_cpu=_device().type == "cpu")))
    if mixer and mixer.mixture.metadata.max_seq_length:
        usual["max_length"] = mixer.mixture.metadata.max_seq_length
    usual |= _trained_options(Path(args.checkpoint), phase)
    if args.max_new_tokens is None:
        args.max_new_tokens = 256 if args.tools else 64
    for name in _AS_TRAINED:
        if getattr(args, name) is None:
            setattr(args, name, usual[name])


def _trained_options(checkpoint: Path, phase: str | None) -> dict[str, Any]:
    """How the recipe that made a checkpoint evaluated: `options` of its metrics.json; {} for another phase or none."""
    try:
        options = json.loads((checkpoint / "metrics.json").read_text(encoding="utf-8")).get("options")
    except (OSError, ValueError, AttributeError):
        return {}
    return options if isinstance(options, dict) and options.get("phase") == phase else {}


def _check_phase(args: argparse.Namespace, phase: str | None) -> None:
    if args.generate and phase not in _ANSWERED:
        given = f"{args.data_config} is of phase {phase}" if phase else "no --data_config is given"
        raise InputError(f"--generate asks the prompts of a mixture of phase {', '.join(_ANSWERED)}; {given}")
    if phase == "rlaif" and not (args.generate or args.tools):
        raise InputError(f"{args.data_config}: phase rlaif has prompts only; give --generate N or --tools")
    if args.tools and phase not in (None, "rlaif"):
        raise InputError(f"--tools asks prompts of a mixture of phase rlaif; {args.data_config} is of phase {phase}")
    if phase == "reward" and args.lm_eval:
        raise InputError("--lm_eval measures language models, phase reward reward models: evaluate them apart")


def _table(report: dict[str, Any]) -> Table:
    figures = report["figures"]
    where = f" on {report['data_config']} (phase {report['options']['phase']})" if report["data_config"] else ""
    table = Table(title=f"{report['checkpoint']}{where}")
    table.add_column("figure")
    for column in figures:
        table.add_column(f"baseline {report['baseline']}" if column == "baseline" else column, justify="right")
        if column != "chance":
            table.add_column("95% interval", justify="right")
    for name in dict.fromkeys(name for column in figures.values() for name in column):
        cells = []
        for column, measures in figures.items():
            measure = measures.get(name, {})
            cells.append(_number(measure.get("value")))
            if column != "chance":
                cells.append(f"{_number(measure['low'])} to {_number(measure['high'])}" if "low" in measure else "")
        table.add_row(name, *cells)
    return table


def _number(value: float | None) -> str:
    return "-" if value is None else short_number(value)
