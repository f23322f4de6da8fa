"""Recipes in two processes, under each engine that runs without a GPU.

The recipes of one engine share a launch, because starting takes longer than four steps. `make test-slow` runs a
covering set, `make test-all` every recipe under every engine.
"""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoModelForTokenClassification

from minimind_trl.trainers import last_good_checkpoint
from tests.forking import run as run_forked
from tests.recipes.launching import PLAIN_DPO, as_options, environment_of, launch_in_turn
from tests.recipes.test_online_recipes import ONLINE

SUPERVISED = ["pretrain", "midtrain", "sft", "reward", "dpo", "distill"]
RECIPES = [*SUPERVISED, *ONLINE]
# Every recipe under DDP and one stage of ZeRO, and under each stage one that compares with a reference or a teacher.
COVERING = {
    "ddp": RECIPES,
    "zero1": ["pretrain", "dpo", "grpo"],
    "zero2": ["midtrain", "reward", "spo"],
    "zero3": ["sft", "dpo", "distill", "ppo"],
}
# Under DDP those with a state of their own are resumed: a critic, a tracker, a reference.
RESUMED = COVERING | {"ddp": ["sft", "dpo", "ppo", "spo"]}
EVERYTHING = {engine: RECIPES for engine in COVERING}
STEPS = {"max_steps": 4, "logging_steps": 1, "warmup_steps": 0, "lr_scheduler_type": "constant", "save_steps": 2}
STEPS |= {"save_strategy": "steps", "eval_interval": 2, "per_device_eval_batch_size": 16}
STEPS |= {"bf16": False}  # in which sums in another order differ by more


def case(recipe: str, start: Path, folder: Path, processes: int, **more) -> list[str]:
    origin = {"pretrain": None, "distill": "teacher_model_name_or_path"}.get(recipe, "from_weight")
    options = STEPS | ONLINE.get(recipe, {}) | ({origin: start} if origin else {"preset": "nano"})
    options |= PLAIN_DPO if recipe == "dpo" else {}
    options["per_device_train_batch_size"] = (16 if recipe in ONLINE else 4) // processes
    options |= {"eval_batches": 2 // processes, "output_dir": folder / recipe, **more}
    return [recipe, "--config", f"recipes/configs/{recipe}/tiny.yaml", *as_options(**options)]


def losses(folder: Path) -> list[float]:
    history = json.loads((folder / "checkpoint-4" / "trainer_state.json").read_text())["log_history"]
    return [entry["loss"] for entry in history if "loss" in entry]


@pytest.fixture(scope="module")
def alone(tmp_path_factory) -> Path:
    """What one process makes of the supervised recipes; all but the first start from what that one leaves."""
    folder = tmp_path_factory.mktemp("alone")
    launch_in_turn("cpu", [case(recipe, folder / "pretrain", folder, 1) for recipe in SUPERVISED], folder)
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("engine", COVERING)
def test_recipes_train_save_and_resume_in_two_processes(engine, alone, tmp_path):
    check_engine(engine, COVERING[engine], RESUMED[engine], alone, tmp_path)


@pytest.mark.exhaustive
@pytest.mark.parametrize("engine", EVERYTHING)
def test_every_recipe_trains_saves_and_resumes_in_two_processes(engine, alone, tmp_path):
    check_engine(engine, EVERYTHING[engine], EVERYTHING[engine], alone, tmp_path)


def check_engine(engine: str, recipes: list[str], to_resume: list[str], alone: Path, tmp_path: Path) -> None:
    if engine != "ddp" and shutil.which("g++") is None:
        pytest.skip("DeepSpeed builds a library with g++, which is not here")
    whole, resumed = tmp_path / "whole", tmp_path / "resumed"
    cases = [case(recipe, alone / "pretrain", whole, 2) for recipe in recipes]
    cases += [case(name, alone / "pretrain", resumed, 2, resume=whole / name / "checkpoint-2") for name in to_resume]
    launch_in_turn(f"cpu/{engine}", cases, tmp_path, processes=2)
    for recipe in recipes:
        assert json.loads((whole / recipe / "recipe.json").read_text())["processes"] == 2
        assert (whole / recipe / "checkpoint-2" / "global_step2").is_dir() == (engine != "ddp")  # DeepSpeed's
        assert last_good_checkpoint(whole / recipe) == whole / recipe / "checkpoint-4"
        assert (whole / recipe / "samples.jsonl").is_file() and (whole / recipe / "report.html").is_file()
        loads_without_an_engine(recipe, whole / recipe)
        loads_without_an_engine(recipe, whole / recipe / "checkpoint-2")
        if recipe in SUPERVISED:
            assert len(losses(whole / recipe)) == 4
            assert losses(whole / recipe) == pytest.approx(losses(alone / recipe), abs=1e-3), recipe
            figures = [json.loads((base / recipe / "metrics.json").read_text()) for base in (whole, alone)]
            for when in ("before", "after"):
                assert figures[0][when]["eval_loss"] == pytest.approx(figures[1][when]["eval_loss"], abs=1e-3)
    for recipe in to_resume:
        assert losses(resumed / recipe) == pytest.approx(losses(whole / recipe), abs=1e-6), recipe
        for part in ("", *(["critic"] if recipe == "ppo" else [])):
            same_weights(resumed / recipe / part, whole / recipe / part)


def loads_without_an_engine(recipe: str, folder: Path) -> None:
    kind = AutoModelForSequenceClassification if recipe == "reward" else AutoModelForCausalLM
    parts = {folder: kind} | ({folder / "critic": AutoModelForTokenClassification} if recipe == "ppo" else {})
    for part, loader in parts.items():
        model, told = loader.from_pretrained(part, output_loading_info=True)
        assert not told["missing_keys"] and not told["unexpected_keys"] and not told["mismatched_keys"], part
        assert all(parameter.numel() for parameter in model.parameters())


def same_weights(mine: Path, theirs: Path) -> None:
    mine, theirs = (load_file(folder / "model.safetensors") for folder in (mine, theirs))
    assert mine.keys() == theirs.keys()
    for name in mine:
        torch.testing.assert_close(mine[name], theirs[name], atol=1e-6, rtol=1e-5)


@pytest.mark.slow
def test_the_others_wait_for_what_one_prepares_beyond_the_time_limit(tmp_path):
    """Rank 0 takes twice `--ddp_timeout` for its part: before training that is waited for, in it no more."""
    script = tmp_path / "waiting.py"
    script.write_text(
        "import time\n"
        "from transformers import TrainingArguments\n"
        "from minimind_trl.run.processes import limit_waiting\n"
        f"args = TrainingArguments(output_dir={str(tmp_path)!r}, use_cpu=True, ddp_timeout=4)\n"
        "for limit in (None, args.ddp_timeout):\n"
        "    limit_waiting(limit)\n"
        "    with args.main_process_first():\n"
        "        if args.process_index == 0:\n"
        "            time.sleep(8)\n"
        "    print(f'process {args.process_index} met the others', flush=True)\n"
    )
    result = run_forked(script, processes=2, environment=environment_of("cpu/ddp"))
    assert result.returncode == 1
    assert result.stdout.count("met the others") == 2 and "Timed out waiting 4000ms" in result.stderr
