"""The recipes, run as a user runs them."""

import json
import math
import re
import sys
from pathlib import Path

import pytest
import yaml
from datasets import Dataset
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl import SFTConfig, SFTTrainer

from minimind_trl.models import load_model, save_native
from minimind_trl.run import (
    DPORecipeConfig,
    PretrainRecipeConfig,
    RewardRecipeConfig,
    SFTRecipeConfig,
    parse_arguments,
)
from minimind_trl.run.distill_config import DistillRecipeConfig
from minimind_trl.run.online_configs import GRPORecipeConfig, PPORecipeConfig, SPORecipeConfig
from minimind_trl.tokenization import tiny_tokenizer, training_template
from tests.conftest import REPOSITORY
from tests.forking import run as run_forked
from tests.recipes.launching import (
    PLAIN_DPO,
    QUICK,
    TRAINING_FIGURES,
    as_options,
    launch,
    offline_wandb,
    run,
    wandb_history,
    weights,
)


def test_pretraining_from_scratch_lowers_the_held_out_loss(pretrained):
    metrics = json.loads((pretrained / "metrics.json").read_text())
    assert metrics["after"]["eval_loss"] < metrics["before"]["eval_loss"] - 0.5
    assert load_model(pretrained).num_parameters() < 1.1e6


def test_the_checkpoint_says_what_it_was_trained_on(pretrained):
    lock = json.loads((pretrained / "mixture.lock.json").read_text())
    assert lock["phase"] == "pretrain"
    [source] = lock["sources"]
    assert source["rows_in"] == source["train"]["rows"] + source["validation"]["rows"] + sum(source["dropped"].values())
    assert "## Training data" in (pretrained / "README.md").read_text()


def test_plain_trl_goes_on_from_our_checkpoints(pretrained, tmp_path):
    """The tokenizer brings what TRL's own SFTTrainer needs for `assistant_only_loss`, and GRPOTrainer for tools."""
    tokenizer = AutoTokenizer.from_pretrained(pretrained)
    assert tokenizer.chat_template == training_template("minimind3") and tokenizer.response_template
    model = AutoModelForCausalLM.from_pretrained(pretrained, trust_remote_code=True)
    chat = [{"role": "user", "content": "Who?"}, {"role": "assistant", "content": "Me."}]
    options = {"assistant_only_loss": True, "max_steps": 1, "bf16": False, "use_cpu": True, "report_to": "none"}
    trainer = SFTTrainer(
        model,
        SFTConfig(str(tmp_path), **options),
        train_dataset=Dataset.from_list([{"messages": chat}] * 8),
        processing_class=tokenizer,
    )
    labels = next(iter(trainer.get_train_dataloader()))["labels"][0]
    assert tokenizer.decode(labels[labels != -100]) == "<think>\n\n</think>\n\nMe.<|im_end|>"
    assert trainer.train().training_loss > 0


def test_prepared_data_is_reused_and_every_checkpoint_has_its_lock(pretrained, tmp_path):
    options = {**QUICK, "max_steps": 2, "eval_interval": 0, "save_steps": 1, "from_weight": pretrained}
    options |= {"use_prepared": True, "prepared_dir": tmp_path / "prepared"}
    config, files = ["--config", "recipes/configs/sft/tiny.yaml"], tmp_path / "prepared" / "sft_sft"
    times = []
    for name, more in (("a", {}), ("b", {"dry_run": True})):
        options |= {"output_dir": tmp_path / name, **more}
        result = launch("sft", *config, *as_options(save_strategy="steps", **options))
        assert result.returncode == 0, result.stderr
        times.append({file.name: file.stat().st_mtime_ns for file in files.iterdir()})
    assert times[0] == times[1]
    for folder in ("checkpoint-1", "checkpoint-2", "."):
        assert (tmp_path / "a" / folder / "mixture.lock.json").is_file()


@pytest.mark.slow
def test_a_native_file_is_a_checkpoint_like_any_other(pretrained, tmp_path):
    save_native(load_model(pretrained), tmp_path / "pretrain_128.pth")
    tiny_tokenizer().save_pretrained(tmp_path / "tokenizer")
    options = {"from_weight": tmp_path / "pretrain_128.pth", "tokenizer": tmp_path / "tokenizer", **QUICK}
    from_native = run("sft", "tiny", output_dir=tmp_path / "a", **options | {"max_steps": 2})
    from_folder = run("sft", "tiny", output_dir=tmp_path / "b", **QUICK | {"from_weight": pretrained, "max_steps": 2})
    # float16 rounding apart
    assert from_native["before"]["eval_loss"] == pytest.approx(from_folder["before"]["eval_loss"], abs=1e-2)


def test_evaluation_can_be_switched_off_and_lost_rows_are_counted(pretrained, tmp_path):
    prompts = [f"words: {'cat dog ' * (20 if i % 10 == 0 else 1)}{i}. again?" for i in range(200)]
    chats = [[{"role": "user", "content": prompt}, {"role": "assistant", "content": "cat"}] for prompt in prompts]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps({"messages": chat}) + "\n" for chat in chats))
    mixture = {"metadata": {"phase": "sft"}, "datasets": [{"name": "a", "source": "rows.jsonl"}]}
    (tmp_path / "mixture.yaml").write_text(yaml.safe_dump(mixture))
    options = {**QUICK, "eval_interval": 0, "max_steps": 2, "max_length": 30, "from_weight": pretrained}
    options |= {"data_config": tmp_path / "mixture.yaml", "output_dir": tmp_path / "sft"}
    result = launch("sft", "--config", "recipes/configs/sft/tiny.yaml", *as_options(**options))
    assert result.returncode == 0, result.stderr
    assert list(json.loads((tmp_path / "sft" / "metrics.json").read_text())) == ["options"]
    assert re.search(r"data: \d\d train rows dropped: no token to learn from within max_length=30", result.stdout)


@pytest.mark.parametrize(
    ("recipe", "figures"),
    [
        ("midtrain", ["perplexity", "bits_per_byte", "token_accuracy", "loss_tiny_midtrain"]),
        ("sft", ["perplexity", "bits_per_byte", "token_accuracy", "loss_tiny_sft"]),
        ("distill", ["perplexity", "bits_per_byte", "token_accuracy", "loss_tiny_distill", "divergence"]),
        ("dpo", ["rewards/accuracies", "rewards/margins", "rewards/chosen", "rewards/rejected"]),
        ("reward", ["accuracy", "margin"]),
    ],
)
def test_every_stage_trains_measures_and_reports(pretrained, tmp_path, recipe, figures):
    """Held-out loss falls, the folder has all it should, and WandB got every figure under one name."""
    start = {"teacher_model_name_or_path" if recipe == "distill" else "from_weight": pretrained}
    options = QUICK | start | {"output_dir": tmp_path / recipe, "logging_steps": 5, "use_wandb": True}
    metrics = run(recipe, "tiny", environment=offline_wandb(tmp_path), **options)
    falls = "eval_divergence" if recipe == "distill" else "eval_loss"
    assert metrics["after"][falls] < metrics["before"][falls]
    for file in ("model.safetensors", "mixture.lock.json", "recipe.json", "curves.png", "README.md", "tokenizer.json"):
        assert (tmp_path / recipe / file).stat().st_size > 0
    seen = wandb_history(tmp_path)
    for name in (*TRAINING_FIGURES, "eval/loss", *(f"eval/{figure}" for figure in figures)):
        assert len(seen.get(name, [])) >= 2, (name, sorted(seen))
        assert all(math.isfinite(value) for value in seen[name]), name
    for name in ("train/global_step", "train/num_input_tokens_seen", "train/epoch"):
        assert seen[name] == sorted(seen[name])


def test_evaluating_more_often_does_not_change_training(pretrained, tmp_path):
    options = QUICK | {"from_weight": pretrained, "max_steps": 6}
    run("sft", "tiny", output_dir=tmp_path / "often", **options | {"eval_interval": 2})
    run("sft", "tiny", output_dir=tmp_path / "never", **options | {"eval_interval": 0})
    assert weights(tmp_path / "often") == weights(tmp_path / "never")


def test_every_config_that_comes_with_the_recipes_is_understood(monkeypatch):
    kinds = {
        "pretrain": PretrainRecipeConfig,
        "midtrain": PretrainRecipeConfig,
        "dpo": DPORecipeConfig,
        "reward": RewardRecipeConfig,
    }
    kinds |= {"distill": DistillRecipeConfig, "grpo": GRPORecipeConfig, "ppo": PPORecipeConfig, "spo": SPORecipeConfig}
    files = sorted((REPOSITORY / "recipes/configs").glob("*/*.yaml"))
    assert len(files) >= 10
    for file in files:
        monkeypatch.setattr(sys, "argv", [f"{file.parent.name}.py", "--config", str(file)])
        args, *_ = parse_arguments(kinds.get(file.parent.name, SFTRecipeConfig))
        assert (REPOSITORY / args.data_config).is_file(), file


def test_help_has_our_options_first():
    lines = launch("sft", "--help").stdout.splitlines()
    assert lines[0] == "usage: sft.py [--config FILE.yaml] [--option VALUE ...]"
    groups = [line for line in lines if line.endswith(":") and not line.startswith(" ")]
    assert groups[:4] == ["options:", "minimind-trl:", "TRL and transformers:", "LoRA (of TRL's ModelConfig):"]


def test_dry_run_prints_the_plan_and_leaves_nothing(pretrained, tmp_path):
    config = ["--config", "recipes/configs/sft/tiny.yaml", "--dry_run"]
    result = launch("sft", *config, *as_options(from_weight=pretrained, output_dir=tmp_path / "sft", **QUICK))
    assert result.returncode == 0, result.stderr
    for told in (
        "sft mixture",
        "plan: 20 steps of 4 packed rows",
        "of the tokens are learned",
        "⟦<think>",
        "s a step here",
    ):
        assert told in result.stdout
    assert not (tmp_path / "sft").exists()


def losses(folder: Path) -> list[float]:
    """Of every step."""
    [state] = folder.glob("checkpoint-*/trainer_state.json")
    return [entry["loss"] for entry in json.loads(state.read_text())["log_history"] if "loss" in entry]


@pytest.mark.slow
@pytest.mark.parametrize("recipe", ["sft", "dpo", "reward"])
def test_however_a_step_is_made_up_the_losses_are_the_same(pretrained, tmp_path, recipe):
    """Eight rows at once, one by one, and in two processes."""
    options = {"from_weight": pretrained, "max_steps": 8, "eval_interval": 0, "logging_steps": 1, "warmup_steps": 0}
    options |= {"save_strategy": "steps", "save_steps": 8, "bf16": False} | (PLAIN_DPO if recipe == "dpo" else {})
    for name, rows, accumulated, processes in (
        ("at once", 8, 1, 1),
        ("one by one", 1, 8, 1),
        ("two processes", 4, 1, 2),
    ):
        batch = {"per_device_train_batch_size": rows, "gradient_accumulation_steps": accumulated}
        run(recipe, "tiny", processes=processes, output_dir=tmp_path / name, **options, **batch)
    together = losses(tmp_path / "at once")
    assert len(together) == 8 and together[-1] != together[0]
    assert losses(tmp_path / "one by one") == pytest.approx(together, abs=1e-4)
    assert losses(tmp_path / "two processes") == pytest.approx(together, abs=1e-4)


@pytest.mark.slow
def test_both_recipes_on_real_text(shared, tmp_path):
    """TinyStories, then Alpaca, 50 steps each of the tiny preset: the held-out loss falls."""
    tiny = {"max_steps": 50, "eval_interval": 25, "learning_rate": 3e-3, "warmup_steps": 5}
    for stage, phase, rows in (("pretrain", "pretrain", "tinystories"), ("sft", "sft", "alpaca")):
        mixture = {
            "metadata": {"phase": phase, "max_seq_length": 256},
            "datasets": [{"name": rows, "source": str(shared / "data" / "real" / f"{rows}.jsonl")}],
        }
        (tmp_path / f"{stage}.yaml").write_text(yaml.safe_dump(mixture))
        values = {**tiny, "data_config": tmp_path / f"{stage}.yaml", "output_dir": tmp_path / stage}
        if stage == "sft":
            values["from_weight"] = tmp_path / "pretrain"
        metrics = run(stage, "tiny", **values)
        assert metrics["after"]["eval_loss"] < metrics["before"]["eval_loss"] - 0.3, stage


@pytest.mark.slow
@pytest.mark.parametrize(
    ("recipe", "figure"),
    [("dpo", "rewards/accuracies"), pytest.param("reward", "accuracy", marks=pytest.mark.exhaustive)],
)
def test_real_preferences_are_reported_with_an_interval(pretrained, shared, tmp_path, recipe, figure):
    """A tiny model learns little from 300 of them; the interval says so."""
    source = {"name": "hh", "source": str(shared / "data" / "real" / "hh_rlhf.jsonl")}
    mixture = {"metadata": {"phase": recipe, "max_seq_length": 256}, "datasets": [source], "validation": {"ratio": 0.2}}
    (tmp_path / "hh.yaml").write_text(yaml.safe_dump(mixture))
    options = QUICK | {"from_weight": pretrained, "data_config": tmp_path / "hh.yaml", "eval_batches": 100}
    trained = run(recipe, "tiny", output_dir=tmp_path / "run", **options)["after"]
    reference = {"baseline": pretrained} if recipe == "dpo" else {}
    options = as_options(data_config=tmp_path / "hh.yaml", output=tmp_path / "e", **reference)
    done = run_forked("minimind_trl.cli", ["eval", tmp_path / "run", *options])
    assert done.returncode == 0, done.stderr
    found = json.loads((tmp_path / "e").read_text())["figures"]["model"][f"eval_{figure}"]
    assert found["low"] < found["value"] < found["high"] and found["count"] >= 30
    assert found["value"] == pytest.approx(trained[f"eval_{figure}"], abs=0.05)  # TRL takes the mean over batches
