"""The valid range of every training option, in one table by name.

A config whose option of the same name has another meaning overrides the table in its own `option_ranges`. Types and
choices come from the configs' fields.
"""

import dataclasses
import json
import os
from collections.abc import Mapping
from functools import cache
from types import UnionType
from typing import Annotated, Any, Union, get_args, get_origin, get_type_hints

from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id
from peft import TaskType
from pydantic import AfterValidator, BeforeValidator, ConfigDict, Field, TypeAdapter, ValidationError, with_config
from transformers.generation.configuration_utils import ALL_CACHE_IMPLEMENTATIONS
from transformers.trainer_utils import HubStrategy, IntervalStrategy, SaveStrategy, SchedulerType
from transformers.training_args import OptimizerNames
from typing_extensions import TypedDict

from ..errors import nearest

AT_LEAST_0, AT_LEAST_1, MORE_THAN_0 = Field(ge=0), Field(ge=1), Field(gt=0)
SHARE = Field(ge=0, le=1)
_BELOW_1 = Field(ge=0, lt=1)
_PORT = Field(ge=1, le=65535)
_SEED = Field(ge=0, lt=2**32)  # numpy's
_PROCESSES = max(16, 4 * (os.cpu_count() or 1))  # hundreds of workers use up a machine's memory before the first step
_LARGEST_FLOAT, _LARGEST_INT = 3.4e38, 2**31 - 1  # torch raises OverflowError beyond these
_SECRETS = ("hub_token",)
_JSON_OR_FILE = ("accelerator_config", "fsdp_config", "deepspeed")


def one_of(*choices: Any) -> AfterValidator:
    """Accept a value, or a list of values, from these choices."""
    known = [str(getattr(choice, "value", choice)) for choice in choices]

    def check(value: Any) -> Any:
        for part in value if isinstance(value, list) else [value]:
            if part is not None and str(getattr(part, "value", part)) not in known:
                raise ValueError(f"must be one of {', '.join(known)}{nearest(str(part), known)}")
        return value

    return AfterValidator(check)


def _at_most(largest: float) -> AfterValidator:
    # not a Field, which would replace another bound of the option
    def check(value: float | None) -> float | None:
        if value is not None and abs(value) > largest:
            raise ValueError(f"must be at most {largest}")
        return value

    return AfterValidator(check)


def _steps_or_share(value: float) -> float:
    if value <= 0 or (value > 1 and value != int(value)):
        raise ValueError("must be a whole number of steps, or a share of all steps between 0 and 1")
    return value


def _max_steps(value: int) -> int:
    if value < 1 and value != -1:
        raise ValueError("must be at least 1, or -1 to go by --num_train_epochs")
    return value


def _padding(value: int | str | None) -> int | str | None:
    number = str(value).lower()
    if number not in ("auto", "none", "null") and (not number.isdecimal() or not 1 <= int(number) < 2**31):
        raise ValueError("must be auto, none or at least 1")
    return value


def _repository(value: str | None) -> str | None:
    try:
        validate_repo_id(value)
    except HFValidationError as error:
        raise ValueError("must be owner/name, of letters, digits, '-', '_' and '.'") from error
    return value


def _reward_scale(value: Any) -> Any:
    return {"true": "group", "false": "none"}.get(str(value).lower(), value)  # TRL's older spelling


RANGES: dict[str, Any] = {
    # batch sizes, lengths and steps
    **dict.fromkeys(
        (
            *("per_device_train_batch_size", "per_device_eval_batch_size", "gradient_accumulation_steps"),
            *("eval_batches", "max_length", "max_new_tokens", "max_completion_length", "longest_row", "num_processes"),
            *("save_total_limit", "torch_empty_cache_steps", "eval_accumulation_steps", "dataloader_prefetch_factor"),
            *("ddp_bucket_cap_mb", "precompute_ref_batch_size", "ref_model_sync_steps"),
            *("num_generations", "num_generations_eval", "generation_batch_size", "steps_per_generation"),
            *("num_iterations", "max_tool_calling_iterations", "num_completions_to_print"),
            *("vllm_max_model_length", "vllm_tensor_parallel_size", "num_attention_heads", "lora_r", "lora_alpha"),
            *("num_ppo_epochs", "num_mini_batches", "opponent_pool", "opponent_interval"),
            *("max_tool_result_length", "tool_memory"),
        ),
        AT_LEAST_1,
    ),
    **dict.fromkeys(("eval_interval", "eval_delay", "warmup_steps", "init_rollouts"), AT_LEAST_0),
    **dict.fromkeys(("num_train_epochs", "device_memory", "tool_timeout"), MORE_THAN_0),
    **dict.fromkeys(("logging_steps", "save_steps"), AfterValidator(_steps_or_share)),
    "max_steps": AfterValidator(_max_steps),
    "dataloader_num_workers": Field(ge=0, le=_PROCESSES),
    "dataset_num_proc": Field(ge=1, le=_PROCESSES),
    "pad_to_multiple_of": AfterValidator(_padding),
    # optimizer and schedule
    **dict.fromkeys(
        (
            *("learning_rate", "critic_learning_rate", "weight_decay", "adam_epsilon", "max_grad_norm"),
            *("neftune_noise_alpha",),
        ),
        AT_LEAST_0,
    ),
    **dict.fromkeys(
        ("adam_beta1", "adam_beta2", "label_smoothing_factor", "label_smoothing", "lora_dropout"), _BELOW_1
    ),
    "lr_scheduler_type": one_of(*SchedulerType),
    "optim": one_of(*OptimizerNames),
    # sampling
    **dict.fromkeys(("temperature", "repetition_penalty"), MORE_THAN_0),
    **dict.fromkeys(("top_k", "eval_temperature"), AT_LEAST_0),
    "top_p": Field(gt=0, le=1),
    "min_p": SHARE,
    "cache_implementation": one_of(*ALL_CACHE_IMPLEMENTATIONS),
    # losses
    **dict.fromkeys(
        (
            *("beta", "epsilon", "epsilon_high", "router_aux_loss_coef", "center_rewards_coefficient"),
            *("entropy_coef_min", "entropy_coef_max", "entropy_coef_delta", "entropy_target"),
            *("kl_coef", "vf_coef", "vespo_k_pos", "vespo_k_neg"),
        ),
        AT_LEAST_0,
    ),
    **dict.fromkeys(
        (
            *("delta", "discopop_tau", "sapo_temperature_neg", "sapo_temperature_pos", "off_policy_mask_threshold"),
            *("vespo_lambda_pos", "vespo_lambda_neg", "cliprange", "cliprange_value", "target_kl"),
            *("rho_half_life", "sampling_floor"),
        ),
        MORE_THAN_0,
    ),
    **dict.fromkeys(
        (
            *("ld_alpha", "ref_model_mixup_alpha", "top_entropy_quantile"),
            *("gamma", "lam", "lmbda", "rho_min", "rho_max", "thinking_ratio"),
        ),
        SHARE,
    ),
    **dict.fromkeys(
        ("entropy_coef", "missing_eos_penalty", "f_alpha_divergence_coef", "zero_stage"), Field()
    ),  # any finite number
    "scale_rewards": [BeforeValidator(_reward_scale), one_of("group", "batch", "none")],
    "multi_objective_aggregation": one_of("sum_then_normalize", "normalize_then_sum"),
    "f_divergence_type": one_of("reverse_kl", "forward_kl", "js_divergence", "alpha_divergence"),
    "truncation_mode": one_of("keep_start"),  # TRL deprecates the other, and evaluation cuts at the end
    "kl_estimator": one_of("k1", "k3"),
    "tracker": one_of("prompt", "global"),
    "rho_divergence": one_of("abs", "k3"),
    "opponent": one_of("snapshot"),
    "lora_task_type": one_of(*TaskType),
    # vLLM
    "vllm_mode": one_of("server", "colocate"),
    "vllm_model_impl": one_of("vllm", "transformers", "auto"),
    "vllm_importance_sampling_mode": one_of("token_truncate", "token_mask", "sequence_truncate", "sequence_mask"),
    **dict.fromkeys(("vllm_server_port", "vllm_group_port"), _PORT),
    "vllm_gpu_memory_utilization": Field(gt=0, le=1),
    **dict.fromkeys(
        ("vllm_server_timeout", "vllm_importance_sampling_clip_max", "vllm_importance_sampling_cap"), MORE_THAN_0
    ),
    "vllm_importance_sampling_clip_min": AT_LEAST_0,
    # the rest
    **dict.fromkeys(("seed", "data_seed"), _SEED),
    "ddp_timeout": Field(ge=1, le=10**9),
    "local_rank": Field(ge=-1),
    "logging_strategy": one_of(*IntervalStrategy),
    "save_strategy": one_of(*SaveStrategy),
    "hub_strategy": one_of(*HubStrategy),
    **dict.fromkeys(("hub_model_id", "log_completions_hub_repo", "trackio_space_id"), AfterValidator(_repository)),
}


def check_ranges(config: type, values: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, str]]:
    """Convert values of options to their fields' types, and say what is wrong with those out of range.

    Args:
        config: a dataclass of options.
        values: by field; those from YAML may have another type.
    """
    problems: dict[str, str] = {}
    try:
        return _adapter(config, frozenset(values)).validate_python(dict(values)), problems
    except ValidationError as error:
        for found in error.errors(include_url=False, include_context=False):
            problems.setdefault(found["loc"][0], _in_words(found))
        return {}, problems


def range_problems(config: Any) -> list[str]:
    """One line for each option out of range that a config of this package adds to TRL's or defines anew."""
    ours = (kind for kind in type(config).__mro__ if kind.__module__.startswith(__package__))
    added = {name for kind in ours for name in vars(kind).get("__annotations__", {})} | {*config.option_ranges}
    fields = [field.name for field in dataclasses.fields(config) if field.name in added]
    given = {name: getattr(config, name) for name in fields if getattr(config, name) is not None}
    return [problem_line(name, given[name], why) for name, why in check_ranges(type(config), given)[1].items()]


def problem_line(name: str, value: Any, why: str) -> str:
    """`--name value: why`, without the value of a secret."""
    return f"--{name}{_shown(name, value)}: {why}"


@cache
def _adapter(config: type, names: frozenset[str]) -> TypeAdapter:
    hints, ranges = _hints(config), RANGES | getattr(config, "option_ranges", {})
    fields = [field for field in dataclasses.fields(config) if field.name in names]
    types = {field.name: _annotated(field, hints[field.name], ranges.get(field.name)) for field in fields}
    settings = ConfigDict(allow_inf_nan=False, coerce_numbers_to_str=True)
    return TypeAdapter(with_config(settings)(TypedDict(config.__name__, types, total=False)))


@cache
def _hints(config: type) -> dict[str, Any]:
    return get_type_hints(config)


def _annotated(field: dataclasses.Field, hint: Any, wanted: Any) -> Any:
    rules = list(wanted) if isinstance(wanted, list) else [] if wanted is None else [wanted]
    if choices := field.metadata.get("choices"):
        rules.append(one_of(*choices))
    is_union = get_origin(hint) in (Union, UnionType)
    parts = {get_origin(part) or part for part in (get_args(hint) if is_union else [hint])}
    if list in parts and str not in parts:
        rules.append(BeforeValidator(_as_list))
    if int in parts and not parts & {float, str} and field.name not in ("seed", "data_seed"):
        rules.append(_at_most(_LARGEST_INT))
    if float in parts:
        rules.append(_at_most(_LARGEST_FLOAT))
    if {dict, str} <= parts and field.name not in _JSON_OR_FILE:
        rules.append(AfterValidator(_json))
    if parts & {int, float} and bool not in parts:
        rules.append(BeforeValidator(_no_bool))
    for rule in rules:
        hint = Annotated[hint, rule]
    return hint


def _json(value: Any) -> Any:
    if not isinstance(value, str):
        return value
    try:
        content = json.loads(value)
    except json.JSONDecodeError:
        content = None
    if not isinstance(content, dict):
        raise ValueError('must be JSON, such as {"name": 1}')
    return content


def _as_list(value: Any) -> Any:
    return [value] if isinstance(value, (str, int, float)) else value


def _no_bool(value: Any) -> Any:
    if isinstance(value, bool):
        raise ValueError("must be a number")
    return value


def _in_words(error: Mapping[str, Any]) -> str:
    words = {
        "Input should be ": "must be ",
        "greater than or equal to": "at least",
        "less than or equal to": "at most",
        "greater than": "more than",
        "Value error, ": "",
    }
    text = error["msg"]
    for theirs, ours in words.items():
        text = text.replace(theirs, ours)
    return text


def _shown(name: str, value: Any) -> str:
    if name in _SECRETS or value is True or value is None:
        return ""
    if isinstance(value, list):
        return f" {' '.join(map(str, value))}"
    if isinstance(value, float):  # 7 as the user wrote it, not 7.0
        return f" {value:g}" if float(f"{value:g}") == value else f" {value}"
    return f" {value!r}" if isinstance(value, str) and not value.strip() else f" {value}"
