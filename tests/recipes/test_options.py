"""The command line of all recipes: what is refused, all at once and before anything is built, and what is accepted.

`test_refusals.py` starts whole recipes; here the options alone are read, in this process.
"""

import dataclasses
import datetime
import itertools
import json
import math
import os
import pickle
import runpy
import sys
from collections.abc import Iterator
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any, get_args, get_type_hints

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from transformers import TrainingArguments
from wandb.sdk import wandb_setup

from minimind_trl.errors import InputError, first_line, raise_all
from minimind_trl.models.names import check_name, looks_like_path
from minimind_trl.run import (
    DPORecipeConfig,
    LoraArguments,
    PretrainRecipeConfig,
    RecipeArguments,
    RewardRecipeConfig,
    SFTRecipeConfig,
    parse_arguments,
)
from minimind_trl.run.distill_config import DistillRecipeConfig
from minimind_trl.run.flight_check import checkpointing_problems
from minimind_trl.run.loading import load_tokenizer
from minimind_trl.run.online_configs import GRPORecipeConfig, PPORecipeConfig, SPORecipeConfig
from minimind_trl.run.option_checks import REFUSED, check_options
from minimind_trl.run.records import command_line
from minimind_trl.run.secrets import take_out_secrets
from minimind_trl.run.services import service_problems
from minimind_trl.trainers.option_ranges import RANGES
from tests.conftest import REPOSITORY, small_config
from tests.forking import run as run_forked

RECIPES = {
    "pretrain": PretrainRecipeConfig,
    "midtrain": runpy.run_path(str(REPOSITORY / "recipes/midtrain.py"))["MidtrainRecipeConfig"],
    "sft": SFTRecipeConfig,
    "distill": DistillRecipeConfig,
    "dpo": DPORecipeConfig,
    "reward": RewardRecipeConfig,
    "grpo": GRPORecipeConfig,
    "ppo": PPORecipeConfig,
    "spo": SPORecipeConfig,
}
START = ["--preset", "tiny", "--data_config", "data_configs/tiny/sft.yaml", "--report_to", "none"]
NEEDED = {"distill": {"teacher_model_name_or_path": "runs/teacher"}}


@pytest.fixture(autouse=True)
def as_before(monkeypatch):
    """The environment and the program's own options, which some of these change."""
    monkeypatch.setattr(sys, "argv", ["recipes/sft.py"])
    before = dict(os.environ)
    yield
    os.environ.clear()
    os.environ.update(before)


def parsed(recipe: str, *options: str) -> tuple:
    needed = [word for name, value in NEEDED.get(recipe, {}).items() for word in (f"--{name}", value)]
    return parse_arguments(RECIPES[recipe], options=[*START, *needed, *options])


def refusal(recipe: str, *options: str) -> list[str]:
    """The lines of the message."""
    with pytest.raises(InputError) as raised:
        parsed(recipe, *options)
    return str(raised.value).splitlines()


# --- ranges -----------------------------------------------------------------------------------------------------------

OUT_OF_RANGE = [
    ("sft", "--per_device_train_batch_size 0", "must be at least 1"),
    ("sft", "--per_device_eval_batch_size -3", "must be at least 1"),
    ("sft", "--gradient_accumulation_steps 0", "must be at least 1"),
    ("sft", "--max_length -5", "must be at least 1"),
    ("sft", "--max_steps 0", "must be at least 1, or -1 to go by --num_train_epochs"),
    ("sft", "--max_steps -2", "must be at least 1, or -1 to go by --num_train_epochs"),
    ("sft", "--max_steps 3.5", "must be a valid integer, unable to parse string as an integer"),
    ("sft", "--num_train_epochs 0", "must be more than 0"),
    ("sft", "--num_train_epochs inf", "must be a finite number"),
    ("sft", "--learning_rate nan", "must be a finite number"),
    ("sft", "--learning_rate -0.1", "must be at least 0"),
    ("sft", "--weight_decay -5", "must be at least 0"),
    ("sft", "--adam_beta1 1", "must be less than 1"),
    ("sft", "--warmup_steps -1", "must be at least 0"),
    ("sft", "--seed -1", "must be at least 0"),
    ("sft", "--eval_batches 9223372036854775808", "must be at most 2147483647"),
    ("sft", "--seed 4294967296", "must be less than 4294967296"),
    ("sft", "--logging_steps 1.5", "must be a whole number of steps, or a share of all steps between 0 and 1"),
    ("sft", "--save_total_limit 0", "must be at least 1"),
    ("sft", "--lr_scheduler_type cosin", "did you mean 'cosine'?"),
    ("sft", "--optim adam", "must be one of"),
    ("sft", "--pad_to_multiple_of 0", "must be auto, none or at least 1"),
    ("sft", "--bf16 maybe", "must be a valid boolean"),
    ("sft", "--dataset_num_proc 0", "must be at least 1"),
    ("sft", "--dataloader_num_workers 100000", "must be at most "),
    ("sft", "--eval_interval -1", "must be at least 0"),
    ("sft", "--eval_batches 0", "must be at least 1"),
    ("sft", "--loss_type nl", "did you mean 'nll'?"),
    ("distill", "--temperature 0", "must be more than 0"),
    ("distill", "--beta 1.5", "must be at most 1"),
    ("dpo", "--beta 0", "must be more than 0"),
    ("dpo", "--label_smoothing 1", "must be less than 1"),
    ("dpo", "--train_sampling_strategy group_by_length", "must be one of random, sequential"),
    ("dpo", "--loss_type sigmoid ip", "did you mean 'ipo'?"),
    ("dpo", "--f_divergence_type kl", "must be one of reverse_kl"),
    ("reward", "--center_rewards_coefficient -1", "must be at least 0"),
    ("grpo", "--num_generations 0", "must be at least 1"),
    ("grpo", "--max_completion_length 0", "must be at least 1"),
    ("grpo", "--temperature -1", "must be more than 0"),
    ("grpo", "--top_p 7", "must be at most 1"),
    ("grpo", "--top_k -1", "must be at least 0"),
    ("grpo", "--min_p 2", "must be at most 1"),
    ("grpo", "--beta -1", "must be at least 0"),
    ("grpo", "--top_entropy_quantile 1.1", "must be at most 1"),
    ("grpo", "--scale_rewards groups", "did you mean 'group'?"),
    ("grpo", "--vllm_server_port 70000", "must be at most 65535"),
    ("ppo", "--gamma 2", "must be at most 1"),
    ("ppo", "--cliprange_value 1e+300", "must be at most 3.4e+38"),
    ("spo", "--opponent_pool 0", "must be at least 1"),
]


@pytest.mark.parametrize(("recipe", "option", "says"), OUT_OF_RANGE, ids=[f"{r} {o}" for r, o, _ in OUT_OF_RANGE])
def test_a_value_out_of_range_is_one_line(recipe, option, says):
    name, *values = option.split()
    [line] = refusal(recipe, name, *values)
    assert line.startswith(f"{name} {' '.join(values)}: ") and says in line


def test_everything_wrong_is_told_at_once():
    lines = refusal(
        "grpo",
        *("--learning_rate", "nan", "--max_steps", "0", "--top_p", "7", "--output_dir", "", "--lora_r", "0"),
        *("--learning_rat", "1", "--eval_batches", "x"),
    )
    assert [line.split(":")[0] for line in lines] == [
        "unknown option --learning_rat; did you mean '--learning_rate'?",
        "--eval_batches x",
        "--output_dir ''",
        "--max_steps 0",
        "--learning_rate nan",
        "--top_p 7",
        "--lora_r 0",
    ]


def test_what_contradicts_another_option_is_told_at_once():
    lines = refusal("sft", "--wandb_project", "x", "--prepared_dir", "x", "--load_best_model_at_end", "--lora_r", "4")
    assert len(lines) == 3  # the last is of all three groups of options
    lines = refusal("sft", "--eval_interval", "0", "--load_best_model_at_end", "--dataloader_persistent_workers")
    assert lines == [
        "--load_best_model_at_end goes by evaluations: set --eval_interval N",
        "--dataloader_persistent_workers is for a run with --dataloader_num_workers 1 or more",
    ]


ACCEPTED = [
    ("sft", "--max_steps -1"),
    ("sft", "--warmup_steps 0.1"),
    ("sft", "--max_grad_norm 0"),
    ("sft", "--learning_rate 0"),
    ("sft", "--save_steps 0.25"),
    ("sft", "--max_length none"),
    ("sft", "--pad_to_multiple_of 8"),
    ("sft", '--lr_scheduler_type cosine_with_min_lr --lr_scheduler_kwargs {"min_lr_rate":0.1}'),
    ("sft", "--lr_scheduler_type reduce_lr_on_plateau"),
    ("sft", "--optim sgd --optim_args momentum=0.9"),
    ("sft", "--load_best_model_at_end"),
    ("sft", "--save_strategy best"),
    ("sft", "--do_eval --do_train"),
    ("sft", "--use_peft --lora_dropout 0"),
    ("dpo", "--loss_type sigmoid sft --loss_weights 1 0.5"),
    ("dpo", "--load_best_model_at_end --metric_for_best_model rewards/accuracies"),
    ("grpo", "--top_k 0 --min_p none --top_p 1.0 --temperature 1.5"),
    ("grpo", "--delta 5 --epsilon_high 0.28 --num_generations 2 --num_generations_eval 3 --eval_temperature 0.7"),
    ("grpo", "--scale_rewards none"),
    ("grpo", "--scale_rewards false"),
    ("grpo", "--load_best_model_at_end"),
    ("spo", "--load_best_model_at_end"),
    ("ppo", "--target_kl none --missing_eos_penalty 1"),
]


@pytest.mark.parametrize(("recipe", "option"), ACCEPTED, ids=[f"{r} {o}" for r, o in ACCEPTED])
def test_what_users_of_trl_write_is_accepted(recipe, option):
    parsed(recipe, *option.split())


def test_the_best_model_goes_by_what_each_recipe_measures():
    for recipe, metric in (("sft", "loss"), ("dpo", "loss"), ("grpo", "reward")):
        _, config, _ = parsed(recipe, "--load_best_model_at_end", "--eval_interval", "50")
        assert config.metric_for_best_model == metric and config.greater_is_better == (metric == "reward")
        assert config.eval_strategy == "steps" and config.eval_steps == 50
    [line] = refusal("sft", "--load_best_model_at_end", "--eval_interval", "300")
    assert line.endswith("set --save_steps 600, or --save_strategy best")


def test_a_yaml_file_may_have_numbers_for_text_and_one_for_a_list(tmp_path):
    file = tmp_path / "run.yaml"
    settings = {"run_name": 7, "reward_funcs": "exact_match", "max_steps": 3.0, "save_strategy": False, "bf16": 0}
    file.write_text(yaml.safe_dump(settings))
    _, config, _ = parsed("grpo", "--config", str(file))
    assert (config.run_name, config.reward_funcs, config.max_steps, config.bf16) == ("7", ["exact_match"], 3, False)
    assert config.save_strategy == "no"


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("max_steps: true", "--max_steps: must be a number"),
        ("weight_decay: null", "--weight_decay: must be a valid number"),
        ("max_steps: [1, 2]", "--max_steps 1 2: must be a valid integer"),
        ("optim: {a: b}", "--optim {'a': 'b'}: must be "),
        ("optim: 5", "--optim 5: must be one of"),
        ("no_such_option: 5", "unknown option --no_such_option"),
        ("5: 5", "must be a mapping of options"),
        ("- 5", "must be a mapping of options"),
        ("a: [", ": not valid YAML"),
        ('output_dir: "a\\0b"', "must not hold a null byte"),
    ],
)
def test_what_a_yaml_file_says_is_checked_as_the_command_line_is(tmp_path, content, says):
    file = tmp_path / "run.yaml"
    file.write_text(content)
    assert says in refusal("sft", f"--config={file}")[0]


def test_a_config_file_that_cannot_be_read_is_one_line(tmp_path):
    assert refusal("sft", "--config", str(tmp_path)) == [f"--config {tmp_path} is a folder; give a file"]
    (tmp_path / "latin").write_bytes(b"run_name: \xe4")
    assert refusal("sft", "--config", str(tmp_path / "latin"))[0].startswith(
        f"--config {tmp_path / 'latin'}: not valid YAML"
    )


NO_USE = [
    ("sft", "--use_liger_kernel", "--use_liger_kernel: Liger has no kernels for MiniMind models"),
    ("sft", "--trust_remote_code", "no code that comes with a checkpoint is run"),
    ("sft", "--eval_steps 5", "--eval_steps 5: is set by --eval_interval N (steps; 0 is off)"),
    ("sft", "--deepspeed missing.json", "--deepspeed needs a launcher"),
    ("sft", "--fsdp full_shard", "FSDP is for accelerators"),
    ("sft", "--fp16", "--fp16: a CPU cannot train in it"),
    ("sft", "--activation_offloading", "there is no GPU"),
    ("sft", "--lr_scheduler_type cosine_with_min_lr", "--lr_scheduler_type cosine_with_min_lr: "),
    ("sft", '--lr_scheduler_type cosine --lr_scheduler_kwargs {"num_cycle":2}', "unexpected keyword argument"),
    ("sft", "--optim adamw_bnb_8bit", "--optim adamw_bnb_8bit"),
    ("sft", "--optim_args momentum", "--optim_args momentum"),
    ("sft", '--accelerator_config {"no_such":1}', "no_such"),
    ("sft", '--gradient_checkpointing_kwargs {"use_reentrent":1}', "did you mean 'use_reentrant'?"),
    ("sft", "--ddp_backend gloo", "--ddp_backend is for several processes"),
    ("sft", "--torch_compile_backend inducto", "did you mean 'inductor'?"),
    ("ppo", "--torch_compile_mode max-autotunes", "did you mean 'max-autotune'?"),
    ("sft", "--chat_template_path missing.jinja", "--chat_template_path missing.jinja: no such file"),
    ("distill", "--torch_compile", "distillation answers with the model that it trains"),
    ("pretrain", "--assistant_only_loss", "is for recipes/sft.py"),
    ("distill", "--packing", "distillation has no --packing"),
    ("dpo", "--padding_free", "has no effect"),
    ("dpo", "--loss_type robust --label_smoothing 0.5", "must be below 0.5 for --loss_type robust"),
    ("grpo", "--remove_unused_columns", "rewards read the columns"),
    ("grpo", "--max_completion_length none", "an answer must end somewhere"),
    ("grpo", "--num_generations 1", "For one completion per prompt use recipes/spo.py or recipes/ppo.py"),
    ("grpo", "--generation_kwargs text", "must be JSON"),
    ("grpo", '--chat_template_kwargs {"messages":1}', "--chat_template_kwargs: 'messages' is the trainer's to give"),
    ("grpo", '--generation_kwargs {"temperature":-2}', "--generation_kwargs: temperature -2: must be more than 0"),
    ("grpo", '--generation_kwargs {"num_beam":2}', "'num_beam' is not known; did you mean 'num_beams'?"),
    ("grpo", '--generation_kwargs {"num_beams":2}', "num_beams has no place here"),
    ("grpo", '--generation_kwargs {"stop_strings":["a"]}', "stop_strings needs the tokenizer"),
    ("ppo", "--load_best_model_at_end", "--load_best_model_at_end would not load the critic"),
]


@pytest.mark.parametrize(("recipe", "option", "says"), NO_USE, ids=[f"{r} {o}" for r, o, _ in NO_USE])
def test_an_option_that_would_end_in_a_traceback_or_do_nothing_is_refused(recipe, option, says):
    assert says in refusal(recipe, *option.split())[0]


def test_compiling_wants_a_compiler(monkeypatch):
    monkeypatch.setenv("CXX", "no-such-compiler")
    assert refusal("sft", "--torch_compile") == [
        "--torch_compile needs a compiler, and there is no no-such-compiler (CXX names another one); install it, or "
        "leave the option out"
    ]


def test_vllm_wants_a_gpu_and_its_package():
    assert [line.split("--use_vllm")[1] for line in refusal("grpo", "--use_vllm")] == [
        " needs a GPU: TRL cannot hand trained weights to vLLM on a CPU; leave it out",
        ": vLLM is not installed: pip install 'minimind-trl[vllm]'",
    ]


@pytest.mark.parametrize(
    ("launched", "options", "says"),
    [
        ("bf16", "--bf16 false", "--bf16 false contradicts the launcher's --mixed_precision bf16"),
        ("fp16", "--bf16", "--bf16 contradicts the launcher's --mixed_precision fp16"),
    ],
)
def test_another_precision_than_the_launchers_is_refused(monkeypatch, launched, options, says):
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", launched)
    assert says in refusal("sft", *options.split())[0]


def test_the_launchers_precision_holds_where_the_recipe_says_none(monkeypatch):
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "bf16")
    assert parsed("sft")[1].bf16 is True


def test_the_chat_template_of_a_file_becomes_the_tokenizers(tmp_path):
    template = "{% for message in messages %}{{ message.content }}<|im_end|>{% endfor %}"
    (tmp_path / "chat_template.jinja").write_text(template)
    for path in (tmp_path, tmp_path / "chat_template.jinja"):
        args, config, _ = parsed("sft", "--chat_template_path", str(path))
        assert load_tokenizer(args).chat_template == template
        assert config.chat_template_path is None  # or TRL would read it again, into another tokenizer than is saved


# --- trackers, the Hub, and its token ---------------------------------------------------------------------------------


def test_a_tracker_that_cannot_be_reported_to_is_found_first(monkeypatch, tmp_path):
    monkeypatch.setenv("NETRC", str(tmp_path / "none"))
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("WANDB_API_KEY", "WANDB_MODE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(wandb_setup, "_singleton", None)  # which keeps the environment of an earlier test
    assert refusal("sft", "--use_wandb")[0].startswith("--use_wandb: WandB has no key: run `wandb login`")
    assert refusal("sft", "--report_to", "tensorbord")[0].startswith("--report_to tensorbord: no such tracker; did you")
    assert refusal("sft", "--report_to", "comet_ml") == [
        "--report_to comet_ml: its package is not installed: pip install comet_ml"
    ]
    monkeypatch.setenv("WANDB_MODE", "offline")
    parsed("sft", "--use_wandb")


@pytest.mark.parametrize(
    ("mode", "key", "told"),
    [
        ("online", None, "SwanLab has no key: run `swanlab login`, set SWANLAB_API_KEY, or SWANLAB_MODE=offline"),
        ("local", None, "SWANLAB_MODE=local needs SwanLab's dashboard: pip install 'swanlab[dashboard]'"),
        ("online", "a key", None),
        ("offline", None, None),
    ],
)
def test_swanlab_is_asked_how_it_is_set_up(monkeypatch, mode, key, told):
    swanlab = ModuleType("swanlab")
    swanlab.__spec__ = ModuleSpec("swanlab", None)
    swanlab.has_run, swanlab.Settings = None, lambda: SimpleNamespace(mode=mode, api_key=key)
    monkeypatch.setitem(sys.modules, "swanlab", swanlab)
    problems = [*service_problems(SimpleNamespace(report_to=["swanlab"]))]
    assert len(problems) == (told is not None) and all(f"--report_to swanlab: {told}" in line for line in problems)


@pytest.mark.parametrize("option", [["--push_to_hub"], ["--log_completions", "--log_completions_hub_repo", "me/it"]])
def test_the_hub_that_cannot_be_pushed_to_is_found_first(option):
    recipe = "grpo" if len(option) > 1 else "sft"
    [line] = refusal(recipe, *option)
    assert line.startswith(f"{option[-2] if len(option) > 1 else option[0]}: needs the Hub, and HF_HUB_OFFLINE is set")


TOKEN = "hf_aVerySecretToken"


@pytest.mark.parametrize("how", ["option", "dashes", "equals", "yaml", "environment"])
def test_the_hubs_token_is_in_nothing_that_is_saved(monkeypatch, tmp_path, how):
    monkeypatch.delenv("HF_TOKEN", raising=False)
    file = tmp_path / "run.yaml"
    file.write_text(f"hub_token: {TOKEN}")
    words = {
        "option": ["--hub_token", TOKEN],
        "dashes": ["--hub-token", TOKEN],
        "equals": [f"--hub-token={TOKEN}"],
        "yaml": ["--config", str(file)],
        "environment": [],
    }[how]
    if how == "environment":
        monkeypatch.setenv("HF_TOKEN", TOKEN)
    monkeypatch.setattr(sys, "argv", ["recipes/sft.py", *START, *words])
    made = parse_arguments(SFTRecipeConfig)
    assert os.environ["HF_TOKEN"] == TOKEN  # where huggingface_hub finds it
    assert not any(TOKEN in text for text in (*sys.argv, command_line(), json.dumps(made[1].to_dict(), default=str)))
    assert TOKEN.encode() not in pickle.dumps(made[1])


def test_a_folder_that_cannot_be_written_to_is_found_first(tmp_path):
    (tmp_path / "file").touch()
    for folder, says in {
        tmp_path / "file": "is a file; give a folder",
        tmp_path / "file" / "below": "is a file; give a folder",
        Path("/proc/below"): "/proc cannot be written to; give another folder",
        tmp_path / ("x" * 300): "File name too long",
    }.items():
        [line] = refusal("sft", "--output_dir", str(folder))
        assert line.startswith(f"--output_dir {folder}: ") and says in line
    parsed("sft", "--output_dir", str(tmp_path / "a" / "b"))
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_what_a_wrong_option_says_does_not_quote_a_token():
    lines = refusal("sft", "--hub_tokn", TOKEN, "--max_steps", "0")
    assert len(lines) == 2 and not any(TOKEN in line for line in lines)


# --- names of models --------------------------------------------------------------------------------------------------


def test_a_name_with_a_paths_form_is_not_looked_up(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs").mkdir()
    for name in ("/a/b", "./sft", "../sft", "~/sft", "runs/sft", "a/b/c", "a/", "a\\b"):
        assert looks_like_path(name)
        with pytest.raises(InputError, match="no such file or directory"):
            check_name(name, "--from_weight")
    assert not looks_like_path("jingyaogong/MiniMind2") and not looks_like_path("gpt2")
    check_name("runs")


def test_a_name_that_is_nowhere_is_one_line(monkeypatch):
    with pytest.raises(InputError, match="--from_weight no/such: no such folder here, and it is not in the cache"):
        check_name("no/such", "--from_weight")
    with pytest.raises(InputError, match="this is not a valid name of a Hub model"):
        check_name("what is this?")


# --- every field of every config, at its edges ------------------------------------------------------------------------

WORDS = ["", " ", "0", "1", "-1", "2", "0.5", "1e-30", "1e300", "1e400", "nan", "-inf", "9" * 30, "none", "true"]
WORDS += ["abc", "{", "{}", '{"a": 1}', "[1", "/", "é🙂", "-", "--", "a b", "1,2"]
TYPED = [None, True, False, 0, 1, -1, 2, 2.5, -0.0, 1e-30, 1e300, math.nan, math.inf, 10**30, 2**31, 2**63]
TYPED += ["", "abc", "a\0b", [], [None], [1], ["a"], [[1]], {}, {"a": 1}, {1: [2]}, datetime.date(2026, 1, 1)]


def made(kind: type, values: dict[str, Any]) -> Any:
    """As the recipes make a config from a YAML file; None where it is refused."""
    checked, problems = check_options(kind, values)
    try:
        raise_all(problems)
        if "eval_strategy" in checked:
            checked |= {"eval_strategy": "steps", "eval_steps": 500}
        return kind(**checked)
    except InputError as error:
        assert str(error).strip() and all(line.strip() for line in str(error).splitlines()), values
        return None


def fields_of(kind: type) -> Iterator[tuple[str, Any]]:
    """Name and default of each field."""
    for field in dataclasses.fields(kind):
        if field.init:
            missing = field.default_factory is dataclasses.MISSING
            yield field.name, (field.default if missing else field.default_factory())


KINDS = {**RECIPES, "arguments": RecipeArguments, "LoRA": LoraArguments}
NEEDED |= {"arguments": {"preset": "tiny", "data_config": "x"}, "LoRA": {"use_peft": True}}
SHARED = {field.name for field in dataclasses.fields(TrainingArguments)}


@pytest.mark.parametrize("kind", KINDS)
def test_every_field_at_its_edges_is_accepted_or_refused(kind):
    """Values as of YAML; of what all recipes share, each recipe makes its share of the configs."""
    number, count = list(KINDS).index(kind), 0
    defaults = {name: value for name, value in fields_of(KINDS[kind])} | NEEDED.get(kind, {})
    for place, (name, value) in enumerate(itertools.product(defaults, TYPED)):
        if name not in SHARED or place % len(RECIPES) == number:
            made(KINDS[kind], {**defaults, name: value})
            count += 1
    assert count >= 250


@settings(max_examples=120, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.data(), recipe=st.sampled_from(sorted(RECIPES)))
def test_options_drawn_together_are_accepted_or_refused(data, recipe):
    """Words of the command line, for up to six options of the recipe, ours and LoRA's."""
    kinds = (RECIPES[recipe], RecipeArguments, LoraArguments)
    names = sorted({name for kind in kinds for name, _ in fields_of(kind)} - {"push_to_hub", "hub_token", "report_to"})
    drawn = data.draw(st.dictionaries(st.sampled_from(names), st.sampled_from(WORDS), min_size=1, max_size=6))
    try:
        parsed(recipe, *(word for name, value in drawn.items() for word in (f"--{name}", value)))
    except InputError as error:
        assert all(line.strip() for line in str(error).splitlines())


# Unusual, and all accepted: what a run makes of them. Six options at most, so that one does not hide another.
STARTED = [
    ("sft", "--optim sgd --max_grad_norm 0 --neftune_noise_alpha 5 --lr_scheduler_type reduce_lr_on_plateau"),
    ("sft", "--loss_type dft --packing_strategy bfd_split --full_determinism --eval_on_start --save_strategy best"),
    ("sft", "--packing false --train_sampling_strategy group_by_length --remove_unused_columns false"),
    (
        "sft",
        '--gradient_checkpointing --gradient_checkpointing_kwargs {"use_reentrant":true} --label_smoothing_factor 0.1',
    ),
    ("sft", "--load_best_model_at_end --save_strategy steps --save_steps 1 --metric_for_best_model token_accuracy"),
    ("sft", "--save_strategy best --metric_for_best_model nonsense"),
    ("dpo", "--loss_type sigmoid sft --loss_weights 1 0.5 --ld_alpha 0.5 --train_sampling_strategy sequential"),
    ("dpo", "--loss_type exo_pair"),
    ("dpo", "--load_best_model_at_end --save_strategy steps --save_steps 1 --metric_for_best_model rewards/margins"),
    (
        "reward",
        "--center_rewards_coefficient 0.01 --train_sampling_strategy sequential --eval_accumulation_steps 1",
    ),
    (
        "grpo",
        "--load_best_model_at_end --save_strategy steps --save_steps 1 --eval_temperature 1 --num_generations_eval 3",
    ),
    ("grpo", '--temperature 1e-30 --top_p 1e-9 --delta 0.1 --epsilon 0 --generation_kwargs {"max_new_tokens":4}'),
    ("grpo", "--steps_per_generation 2 --generation_batch_size 16"),
    ("spo", "--rho_min 1e-30 --rho_max 0.999999 --sampling_floor 1e-30 --init_rollouts 1"),
    ("ppo", "--cliprange 1e-30 --cliprange_value 1e30 --gamma 0 --lam 0 --vf_coef 0"),
]


@pytest.mark.slow
def test_what_is_accepted_runs_or_is_refused_later(tmp_path):
    """Real runs of two steps: done, bad input or broken off with a message, never a traceback."""
    rewarded = ["--reward_funcs", "tests.recipes.own_rewards:vowels", "--max_completion_length", "8"]
    shape = "--per_device_train_batch_size 8 --per_device_eval_batch_size 4 --max_steps 2 --eval_interval 1"
    cases = []
    for number, (recipe, options) in enumerate(STARTED):
        is_online = recipe in ("grpo", "ppo", "spo")
        data = "rlaif" if is_online else "dpo" if recipe in ("dpo", "reward") else "sft"
        words = ["--preset", "nano", "--data_config", f"data_configs/tiny/{data}.yaml", *shape.split()]
        words += ["--eval_batches", "1", "--save_strategy", "no", "--report_to", "none", "--bf16", "false"]
        words += ["--use_prepared", "--prepared_dir", str(tmp_path / "prepared"), *(rewarded if is_online else [])]
        cases.append(
            {"recipe": recipe, "options": [*words, "--output_dir", str(tmp_path / str(number)), *options.split()]}
        )
    (tmp_path / "cases.json").write_text(json.dumps(cases))
    done = run_forked("tests/recipes/run_many.py", [tmp_path / "cases.json"])
    assert done.returncode == 0, done.stderr[-4000:]
    for (recipe, options), result in zip(STARTED, json.loads(done.stdout.splitlines()[-1]), strict=True):
        assert result["code"] in (0, 1, 2) and "Traceback" not in result["err"], (recipe, options, result["err"])
        assert result["code"] == 0 or "\nerror: " in f"\n{result['err']}", (recipe, options, result["err"])


def test_every_number_has_a_range():
    """A field that is added to a config is added to the table."""
    for kind in KINDS.values():
        ranges = RANGES | getattr(kind, "option_ranges", {})
        hints = get_type_hints(kind)
        for name, _ in fields_of(kind):
            if {int, float} & {*(get_args(hints[name]) or [hints[name]])}:
                assert name in ranges or name in REFUSED, f"{kind.__name__}.{name}: give it a range in option_ranges.py"


def test_the_first_line_of_an_error_that_says_nothing_is_its_type():
    assert first_line(KeyError()) == "KeyError" and first_line(ValueError("\n \n a\nb")) == "a"


def test_secrets_leave_the_command_line():
    words = ["sft.py", "--hub_token", "a", "--hub-token=b", "--hub_token"]
    assert take_out_secrets(words) is words
    assert words == ["sft.py", "--hub_token", "...", "--hub-token=...", "--hub_token"]


@pytest.mark.parametrize("name", ["gradient_checkpointing_kwargs", "activation_checkpointing_kwargs"])
def test_reentrant_checkpointing_would_leave_experts_unbalanced(tmp_path, name):
    for kind, reentrant, problems in (("moe3", True, 1), ("moe3", False, 0), ("dense3", True, 0)):
        options = {"gradient_checkpointing": True, name: {"use_reentrant": reentrant}, "bf16": False}
        config = SFTRecipeConfig(str(tmp_path), **options)
        trainer = SimpleNamespace(args=config, model=SimpleNamespace(config=small_config(kind)))
        assert len(checkpointing_problems(trainer)) == problems, (kind, reentrant)
