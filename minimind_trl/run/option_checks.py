"""Check a recipe's options before its configs are built."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from ..trainers.option_ranges import check_ranges, problem_line

# Options that would have no effect or break the recipe, and why.
REFUSED = {
    "model_init_kwargs": "not used, the recipe loads the model; give --preset or --from_weight",
    "eval_steps": "is set by --eval_interval N (steps; 0 is off)",
    "eval_strategy": "is set by --eval_interval N (steps; 0 is off)",
    "resume_from_checkpoint": "is set by --resume auto or --resume CHECKPOINT",
    "trust_remote_code": "no code that comes with a checkpoint is run; MiniMind's own is in this package",
    "use_liger_kernel": "Liger has no kernels for MiniMind models",
    "liger_kernel_config": "Liger has no kernels for MiniMind models",
    "dataset_text_field": "the mixture says which column is the text: text_field of a source",
    "dataset_kwargs": "the recipe prepares the rows",
    "completion_only_loss": "the loss counts on the assistant's turns by --assistant_only_loss",
    "eval_packing": "evaluation never packs rows",
    "eos_token": "is the tokenizer's: set eos_token in its tokenizer_config.json, and give that by --tokenizer",
    "pad_token": "is the tokenizer's: set pad_token in its tokenizer_config.json, and give that by --tokenizer",
    "label_names": "the recipe's rows have the names that its trainer wants",
    "parallelism_config": "cannot be given as text; these models fit on one device",
    "bf16_full_eval": "evaluation has training's precision: --bf16",
    "fp16_full_eval": "evaluation has training's precision: --fp16",
    "do_predict": "a recipe trains and evaluates",
    "enable_jit_checkpoint": "SIGTERM saves a checkpoint in any case",
    "include_for_metrics": "which metrics there are is the recipe's",
    "batch_eval_metrics": "which metrics there are is the recipe's",
    "use_transformers_paged": "is an old name: set --use_transformers_continuous_batching true",
    "teacher_model_init_kwargs": "not used, the recipe loads the teacher",
}


def check_options(config: type, values: Mapping[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """Check the values of a config's fields before it is built; defaults are not checked.

    Args:
        config: a dataclass of options.
        values: by field; those from YAML may have another type.

    Returns:
        The values converted to their fields' types, and one line for each invalid value.
    """
    fields = {field.name: field for field in dataclasses.fields(config) if field.init}
    # `save_strategy: no` is false to YAML
    values = {name: "no" if name.endswith("_strategy") and value is False else value for name, value in values.items()}
    given = {name: value for name, value in values.items() if not _is_default(fields[name], value)}
    refused = _refused(config)
    problems = {name: refused[name] for name in given if refused.get(name)}
    missing = [name for name, value in given.items() if value is None and _is_required(fields[name])]
    problems |= dict.fromkeys(missing, "must be given")
    texts = {name: value for name, value in given.items() if isinstance(value, str)}
    problems |= {name: "must not be empty" for name, text in texts.items() if not text.strip()}
    problems |= {name: "must not hold a null byte" for name, text in texts.items() if "\0" in text}
    checked = {name: value for name, value in given.items() if name not in problems}
    checked, out_of_range = check_ranges(config, checked)
    problems |= out_of_range
    return {**values, **checked}, [problem_line(name, given[name], why) for name, why in problems.items()]


def _is_default(field: dataclasses.Field, value: Any) -> bool:
    if field.default is not dataclasses.MISSING:
        return type(value) is type(field.default) and value == field.default
    return field.default_factory is not dataclasses.MISSING and value == field.default_factory()


def _is_required(field: dataclasses.Field) -> bool:
    return field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING


def _refused(config: type) -> dict[str, str | None]:
    return REFUSED | getattr(config, "refused_options", {})
