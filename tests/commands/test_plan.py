"""`minimind-trl plan`: counts by hand, what makes a plan grow or shrink, what is refused, and real runs."""

import copy
import json
import os
import subprocess
import sys
from dataclasses import fields
from functools import cache

import pytest
import torch
import yaml
from torch import nn
from transformers import Trainer

from minimind_trl import cli
from minimind_trl.errors import InputError
from minimind_trl.internals import modules_of_fake_tensors
from minimind_trl.models import MiniMindConfig, MiniMindForCausalLM, load_model
from minimind_trl.run import PretrainRecipeConfig, RecipeArguments, fake_trainers
from minimind_trl.run.flight_check import _memory_line
from minimind_trl.run.memory import Memory, MemoryCounter
from minimind_trl.run.memory_plan import RECIPES, PlanArguments, make_plan
from minimind_trl.run.sharding import Sharding, shard_memory
from minimind_trl.tokenization import tiny_tokenizer
from tests.conftest import REPOSITORY, small_config
from tests.recipes.launching import as_options

MIB = 2**20
SMALL = ["--preset", "nano", "--max_length", "32", "--per_device_train_batch_size", "2", "--bf16", "false"]
ANSWERS = ["--preset", "nano", "--longest_row", "24", "--bf16", "false", "--max_completion_length", "8"]
ANSWERS += ["--gradient_accumulation_steps", "1"]
OPTIONS = {
    **{recipe: SMALL for recipe in RECIPES},
    "grpo": [*ANSWERS, "--num_generations", "4"],
    "ppo": ANSWERS,
    "spo": ANSWERS,
}
PRESETS = {
    "minimind2-small": 25_829_888,
    "minimind2": 104_030_976,
    "minimind2-moe": 145_029_760,
    "minimind3": 63_912_192,
    "minimind3-moe": 198_416_640,
}


@cache
def plan(recipe: str, *options: str):
    return make_plan(recipe, [*OPTIONS[recipe], *options])


QUICK_PRESETS = ("nano", "tiny", "minimind3")  # a step of the others takes many seconds to count


@pytest.mark.parametrize(
    "preset", [name if name in QUICK_PRESETS else pytest.param(name, marks=pytest.mark.exhaustive) for name in PRESETS]
)
def test_parameters_are_counted_exactly_and_adam_keeps_two_numbers_for_each(preset):
    step = make_plan("sft", ["--preset", preset, *SMALL[2:]]).moments["optimizer step"]
    assert step["parameters"] == step["gradients"] == 4 * PRESETS[preset]
    steps = 4 * 400  # a counter of steps for each tensor, of which there are a few hundred at most
    assert 0 <= step["optimizer states"] - 8 * PRESETS[preset] < steps


@pytest.mark.parametrize("recipe", [recipe for recipe in RECIPES if recipe != "distill"])
def test_every_recipe_has_a_plan(recipe):
    moments = plan(recipe).moments
    assert moments["training"]["activations"] > 0
    assert ("generation" in moments) == (recipe in ("grpo", "ppo", "spo"))
    assert ("reference model" in moments["training"]) == (recipe in ("dpo", "ppo"))


def test_a_plan_of_distillation_has_the_teacher(checkpoints):
    teacher = ["--teacher_model_name_or_path", str(checkpoints["dense3"])]
    student = ["--from_weight", str(checkpoints["dense2"]), "--tokenizer", str(checkpoints["dense3"])]
    moments = make_plan("distill", [*SMALL[2:], *student, *teacher]).moments
    assert moments["training"]["teacher model"] == 4 * load_model(checkpoints["dense3"]).num_parameters()
    assert "generation" not in moments
    on_policy = make_plan("distill", [*SMALL[2:], *student, *teacher, "--lmbda", "1"]).moments
    assert on_policy["generation"]["KV cache"] > 0


def test_the_cache_holds_keys_and_values_of_every_token_but_the_last():
    moments = plan("spo", "--per_device_train_batch_size", "16", "--gradient_accumulation_steps", "1").moments
    rows, tokens = 16, 24 + 8 - 1
    config = make_plan("spo", ANSWERS).setup.model_config
    layers, kv_heads, head_dim = config.num_hidden_layers, config.num_key_value_heads, config.head_dim
    assert moments["generation"]["KV cache"] == 2 * layers * kv_heads * head_dim * rows * tokens * 4


def test_counter_counts_storages_once_and_until_they_go():
    with MemoryCounter() as memory:
        kept = [torch.ones(1000)]
        kept.append(kept[0].view(10, 100).t())
        assert memory.now == 4000
        assert memory.most(lambda: (kept[0] * 2).sum()) == 4004
        assert memory.now == 4000
        kept.clear()
        assert memory.now == 0


WHOLE = Memory(
    parameters=4000,
    trained=1000,
    gradients=4000,
    optimizer=8000,
    optimizer_step=0,
    models={"reference model": 4000, "reward models": 300},
    activations=700,
    head=50,
    gradients_then=400,
    largest_layer=100,
    outside_layers=200,
)
OTHERS = 4000 + 300 + 700 + 50  # whole models, activations, head


@pytest.mark.parametrize(
    ("sharding", "training", "step", "host"),
    [
        (Sharding(), 4000 + 8000 + 400 + OTHERS, 4000 + 8000 + 4000 + 4300, 0),
        (Sharding("ddp", 4), 4000 + 8000 + 400 + 4000 + OTHERS, 4000 + 8000 + 4000 + 4300, 0),
        # a float32 copy of the weights beside the two moments, both divided by 4
        (Sharding("zero1", 4), 4000 + 3000 + 400 + 2_000_000_000 + OTHERS, 4000 + 3000 + 4000 + 4300, 0),
        (Sharding("zero2", 4), 4000 + 3000 + 1000 + 2_000_000_000 + OTHERS, 4000 + 3000 + 1000 + 4300, 0),
        (Sharding("zero1", 4, offload_optimizer=True), 4000 + 400 + 2_000_000_000 + OTHERS, 4000 + 4000 + 4300, 3000),
        # whole weights of both models are gathered
        (
            Sharding("zero3", 4),
            1000 + 3000 + 1000 + 8000 + 2_000_000_000 + 1000 + 300 + 750,
            1000 + 3000 + 1000 + 1000 + 300,
            0,
        ),
        (
            Sharding("zero3", 4, offload_optimizer=True, offload_parameters=True),
            8000 + 2_000_000_000 + 1000 + 300 + 750,
            1000 + 300,
            3000 + 1000 + 1000,
        ),
        # what is outside of layers twice, of both models, and three layers
        (
            Sharding("fsdp2", 4),
            1000 + 2000 + 1000 + (2 * 200 + 3 * 100) * 4 + 1000 + 300 + 750,
            1000 + 2000 + 1000 + 1000 + 300,
            0,
        ),
    ],
    ids=lambda value: value.kind if isinstance(value, Sharding) else "",
)
def test_sharding_by_hand(sharding, training, step, host):
    moments, kept_by_host = shard_memory(WHOLE, sharding)
    assert sum(moments["training"].values()) == training
    assert sum(moments["optimizer step"].values()) == step
    assert kept_by_host == host


@pytest.mark.parametrize(
    ("recipe", "options"),
    [
        ("sft", ["--per_device_train_batch_size", "4"]),
        ("sft", ["--max_length", "64"]),
        ("pretrain", ["--gradient_accumulation_steps", "2"]),
        ("dpo", ["--per_device_train_batch_size", "4"]),
        ("reward", ["--max_length", "64"]),
        ("grpo", ["--beta", "0.1"]),
        ("grpo", ["--entropy_coef", "0.1"]),
        ("grpo", ["--per_device_train_batch_size", "16"]),
        ("spo", ["--max_completion_length", "16"]),
        ("spo", ["--longest_row", "32"]),
    ],
)
def test_what_makes_a_plan_larger(recipe, options):
    assert plan(recipe, *options).peak > plan(recipe).peak


@pytest.mark.parametrize(
    ("recipe", "options", "part"),
    [
        ("sft", ["--gradient_checkpointing", "true"], "activations"),
        ("sft", ["--bf16", "true"], "activations"),
        ("sft", ["--use_peft", "true", "--lora_target_modules", "q_proj"], "optimizer states"),
        ("reward", ["--use_peft", "true", "--lora_target_modules", "all-linear"], "optimizer states"),
        ("sft", ["--optim", "adafactor"], "optimizer states"),
        ("dpo", ["--precompute_ref_log_probs", "true"], "reference model"),
        ("dpo", ["--use_peft", "true", "--lora_target_modules", "q_proj"], "reference model"),
        ("ppo", ["--kl_coef", "0"], "reference model"),
        ("sft", ["--zero_stage", "3", "--num_processes", "4"], "parameters"),
    ],
)
def test_what_makes_a_part_smaller(recipe, options, part):
    assert plan(recipe, *options).moments["training"].get(part, 0) < plan(recipe).moments["training"][part]


class CounterWithData(MemoryCounter):
    """Counts the bytes of tensors that are computed for real."""

    def _run(self, func, args, kwargs):
        return func(*args, **kwargs)


@pytest.mark.parametrize("recipe", [recipe for recipe in RECIPES if recipe != "midtrain"])
def test_tensors_without_data_take_what_those_with_data_take(recipe, checkpoints, monkeypatch):
    options = OPTIONS[recipe]
    if recipe == "distill":
        model = str(checkpoints["dense3"])
        options = [*SMALL[2:], "--from_weight", model, "--teacher_model_name_or_path", model]
    planned = make_plan(recipe, options)
    monkeypatch.setattr(fake_trainers, "MemoryCounter", CounterWithData)
    real = make_plan(recipe, options)
    for moment, parts in planned.moments.items():
        assert sum(parts.values()) == pytest.approx(sum(real.moments[moment].values()), rel=0.03), moment


def test_counter_keeps_the_values_of_ids_and_masks():
    with MemoryCounter():
        states, mask = torch.ones(4, 8), torch.arange(4) > 1
        assert states[mask].shape == (2, 8)
        assert states[states > 0].shape == (32,)  # depends on numbers that are not there: all of them
        assert states.sum().item() == 1 and not (states > 0).any()


def test_modules_of_fake_tensors_can_be_moved_and_copied():
    apply = nn.Module._apply
    with modules_of_fake_tensors(), MemoryCounter() as memory:
        model = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8))
        model[1].weight = model[0].weight
        before = memory.now
        assert model.to("cpu")[0].weight is model[1].weight and memory.now == before
        copied = copy.deepcopy(model).to(torch.bfloat16)
        assert copied[0].weight is copied[1].weight and copied[0].weight.dtype == torch.bfloat16
        assert model[0].weight.dtype == torch.float32 and copied[0].weight.requires_grad
    assert nn.Module._apply is apply


FSDP1 = {"distributed_type": "FSDP", "num_processes": 2, "fsdp_config": {"fsdp_version": 1}}
REFUSED = [
    (["--recipe", "dop"], "--recipe 'dop' is unknown; did you mean 'dpo'?"),
    (["--recipe", "sft", "--zero_stag", "2"], "unknown option --zero_stag; did you mean '--zero_stage'?"),
    (["--recipe", "sft", "--per_device_train_batchsize", "2"], "did you mean '--per_device_train_batch_size'?"),
    (["--recipe", "sft", "--zero_stage", "4", "--num_processes", "2"], "--zero_stage 4: 1, 2 or 3"),
    (["--recipe", "sft", "--zero_stage", "2"], "give --num_processes N"),
    (["--recipe", "sft", "--num_processes", "0"], "--num_processes 0: must be at least 1"),
    (["--recipe", "sft", "--longest_row", "9"], "packed rows all have --max_length tokens"),
    (["--recipe", "sft", "--accelerate_config", "no.yaml"], "--accelerate_config no.yaml: no such file"),
    (["--recipe", "sft", "--accelerate_config", "{folder}/fsdp1.yaml"], "FSDP is not known here"),
    (["--recipe", "sft", "--accelerate_config", "{folder}/typo.yaml"], "num_proceses"),
    (["--recipe", "sft", "--accelerate_config", "{folder}/all.yaml"], "give --num_processes N"),
    (["--recipe", "sft", "--activation_offloading", "true"], "--activation_offloading cannot be counted"),
    (["--recipe", "sft", "--preset", "minimind4"], "did you mean 'minimind3'?"),
    (["--recipe", "grpo", "--reward_funcs", "exactmatch"], "no such reward; did you mean 'exact_match'?"),
]


@pytest.mark.parametrize(("options", "message"), REFUSED, ids=[message for _, message in REFUSED])
def test_wrong_input_is_refused_in_one_line(options, message, tmp_path, capsys):
    files = {
        "fsdp1": FSDP1,
        "typo": {"distributed_type": "MULTI_GPU", "num_proceses": 2},
        "all": {"distributed_type": "DEEPSPEED", "deepspeed_config": {"zero_stage": 2}, "num_processes": None},
    }
    for name, content in files.items():
        (tmp_path / f"{name}.yaml").write_text(yaml.safe_dump(content))
    options = [option.format(folder=tmp_path) for option in options]
    assert cli.main(["plan", *([] if "--preset" in options else ["--preset", "nano"]), *options]) == 2
    error = capsys.readouterr().err
    assert message in error and error.startswith("error: ") and error.count("\n") == 1


def test_unknown_options_of_other_verbs_are_still_refused(capsys):
    with pytest.raises(SystemExit) as stopped:
        cli.main(["convert", "a", "b", "--to", "hf", "--tokeniser", "c"])
    assert stopped.value.code == 2 and "unrecognized arguments: --tokeniser c" in capsys.readouterr().err


def test_a_preset_stands_in_for_the_checkpoint_that_a_config_names(capsys):
    options = ["--recipe", "dpo", "--preset", "nano", "--bf16", "false"]
    options += ["--config", str(REPOSITORY / "recipes/configs/dpo/tiny.yaml")]
    assert cli.main(["plan", *options, "--data_config", str(REPOSITORY / "data_configs/tiny/dpo.yaml")]) == 0
    out = capsys.readouterr().out
    assert "dpo: 16 rows of 128 tokens in fp32, one process" in out and "fits: " in out


@pytest.mark.slow
def test_it_says_what_would_fit(capsys):
    options = [
        "--recipe",
        "pretrain",
        "--preset",
        "tiny",
        "--max_length",
        "512",
        "--per_device_train_batch_size",
        "256",
    ]
    assert cli.main(["plan", *options, "--device_memory", "2"]) == 0
    out = capsys.readouterr().out
    rows = int(out.split("--per_device_train_batch_size ")[1].split()[0])
    assert "does not fit" in out and 8 <= rows <= 64


def test_accelerate_files_and_options_give_the_same_plan(tmp_path):
    file = tmp_path / "zero2.yaml"
    settings = {"distributed_type": "DEEPSPEED", "num_processes": 4, "deepspeed_config": {"zero_stage": 2}}
    file.write_text(yaml.safe_dump(settings))
    options = ["--zero_stage", "2", "--num_processes", "4"]
    assert plan("sft", "--accelerate_config", str(file)).moments == plan("sft", *options).moments


def test_an_optimizer_that_cannot_be_counted_is_refused():
    with pytest.raises(InputError, match="--optim lomo"):
        plan("sft", "--optim", "lomo")


# --- against real runs ---

QUICK = {"max_steps": 2, "eval_interval": 0, "bf16": "false", "preset": "tiny"}
REWARD = "tests.recipes.own_rewards:vowels"
# recipe, data, options
REAL = [
    ("pretrain", "pretrain", {"max_length": 128, "per_device_train_batch_size": 96}),
    ("sft", "distill", {"max_length": 128, "per_device_train_batch_size": 256, "gradient_checkpointing": "true"}),
    ("reward", "reward", {"max_length": 128, "per_device_train_batch_size": 256}),
    (
        *("grpo", "rlaif"),
        {"per_device_train_batch_size": 96, "max_completion_length": 96, "reward_funcs": REWARD}
        | {"gradient_accumulation_steps": 1},
    ),
]
# Of a child, because a process started by this one would inherit this one's peak.
PEAK = """
import resource, subprocess, sys
done = subprocess.run(sys.argv[1:], capture_output=True, text=True)
sys.stderr.write(done.stderr)
print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)
sys.exit(done.returncode)
"""


def peak_of(*command: str) -> int:
    """Bytes that a command needed at its highest moment (Linux counts in KiB)."""
    environment = {
        **os.environ,
        **{"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "PYTHONPATH": str(REPOSITORY)},
        # What is freed goes back to the system at once, instead of into a heap that would be counted too.
        **{"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_ARENA_MAX": "1"},
    }
    command = [sys.executable, "-c", PEAK, sys.executable, *command]
    done = subprocess.run(command, cwd=REPOSITORY, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return 1024 * int(done.stdout)


@pytest.fixture(scope="module")
def imports() -> int:
    return peak_of("-c", "import minimind_trl.run.memory_plan")


def longest_row(data: str) -> int:
    """Tokens of the longest row, or prompt, of the embedded data."""
    rows = map(json.loads, (REPOSITORY / f"data_configs/tiny/data/{data}_train.jsonl").read_text().splitlines())
    turns = [
        [{"role": "user", "content": row["prompt"]}, {"role": "assistant", "content": row.get("chosen", "")}]
        for row in rows
    ]
    turns = turns if data == "dpo" else [turn[:1] for turn in turns]
    rendered = tiny_tokenizer().apply_chat_template(turns, add_generation_prompt=data == "rlaif", return_dict=True)
    return max(map(len, rendered["input_ids"]))


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="peaks are counted as Linux counts them")
@pytest.mark.parametrize(
    ("recipe", "data", "options"),
    # One supervised and one online; the others are like the first.
    [pytest.param(*case, marks=[pytest.mark.exhaustive] * (case[0] in ("pretrain", "reward"))) for case in REAL],
    ids=[case[0] for case in REAL],
)
def test_the_peak_of_a_real_run_is_within_a_fifth_of_its_plan(recipe, data, options, imports, tmp_path):
    options = as_options(**QUICK, **options)
    lengths = {"reward": "dpo", "grpo": "rlaif"}
    extra = as_options(longest_row=longest_row(lengths[recipe])) if recipe in lengths else []
    planned = make_plan(recipe, [*options, *extra]).peak
    where = as_options(data_config=f"data_configs/tiny/{data}.yaml", output_dir=tmp_path / "run")
    peak = peak_of(f"recipes/{recipe}.py", *options, *where, "--save_strategy", "no", "--report_to", "none")
    assert planned == pytest.approx(peak - imports, rel=0.2), (
        f"{planned / MIB:.0f} planned, {(peak - imports) / MIB:.0f}"
    )


def test_an_optimizer_that_cannot_be_counted_does_not_stop_a_training(monkeypatch, tmp_path):
    """Kernels for a GPU alone run there and not on tensors without data; a missing package stops it either way."""
    model = MiniMindForCausalLM(small_config("dense3"))
    config = PretrainRecipeConfig(output_dir=str(tmp_path), use_cpu=True, bf16=False)

    def fails(error):
        def make(*args):
            raise error

        monkeypatch.setattr(Trainer, "get_optimizer_cls_and_kwargs", staticmethod(make))

    fails(RuntimeError("a CUDA tensor is needed"))
    assert _memory_line(model, config).startswith("memory: not known: --optim adamw")
    fails(ImportError("install bitsandbytes"))
    with pytest.raises(InputError, match="install bitsandbytes"):
        _memory_line(model, config)


@pytest.mark.slow
def test_zero_3_holds_the_logits_of_a_large_vocabulary(tmp_path):
    """TRL's head, which takes them in tiles, cannot run there; see `add_learned_positions_head`."""
    config = MiniMindConfig.from_preset("nano", vocab_size=33_000)
    MiniMindForCausalLM(config).save_pretrained(tmp_path)
    tiny_tokenizer().save_pretrained(tmp_path)
    options = ["--config", "recipes/configs/dpo/tiny.yaml", "--from_weight", str(tmp_path), "--num_processes", "2"]
    options += ["--bf16", "false"]
    tiles, whole = (make_plan("dpo", [*options, "--zero_stage", stage]) for stage in "23")
    assert whole.moments["evaluation"]["activations"] > 1.5 * tiles.moments["evaluation"]["activations"]


def test_the_help_lists_every_recipe_and_every_option_of_the_plan(capsys):
    with pytest.raises(SystemExit):
        cli.main(["plan", "--help"])
    printed = " ".join(capsys.readouterr().out.split())
    own = {field.name for field in fields(PlanArguments)} - {field.name for field in fields(RecipeArguments)}
    assert ", ".join(RECIPES) in printed and all(f"--{name} " in printed for name in own)
