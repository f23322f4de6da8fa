"""The learning rate that a recipe takes when it is told none."""

from types import SimpleNamespace

import pytest

from minimind_trl.run import DPORecipeConfig, LoraArguments, PretrainRecipeConfig, RewardRecipeConfig, SFTRecipeConfig
from minimind_trl.run.distill_config import DistillRecipeConfig
from minimind_trl.run.learning_rates import RATES, set_learning_rate, usual_rate
from minimind_trl.run.memory_plan import make_plan
from minimind_trl.run.online_configs import GRPORecipeConfig, PPORecipeConfig, SPORecipeConfig
from tests.conftest import REPOSITORY

SCRATCH, TRAINED = SimpleNamespace(preset="minimind3"), SimpleNamespace(preset=None)
TINY, MINIMIND, LARGE = 1_000_000, 63_912_192, 600_000_000


def settled(capsys, config, args=SCRATCH, parameters=MINIMIND, **lora):
    model = SimpleNamespace(num_parameters=lambda: parameters)
    set_learning_rate(args, config, LoraArguments(**lora), model)
    captured = capsys.readouterr()
    return config, captured.out, captured.err


@pytest.mark.parametrize(
    ("stage", "parameters", "options", "rate"),
    [
        ("pretrain", MINIMIND, {"scratch": True}, 5e-4),
        ("pretrain", MINIMIND, {}, 5e-4),
        ("pretrain", TINY, {"scratch": True}, 3e-3),
        ("pretrain", LARGE, {"scratch": True}, 3e-4),
        ("sft", MINIMIND, {}, 1e-5),
        ("sft", MINIMIND, {"scratch": True}, 5e-4),
        ("sft", MINIMIND, {"lora": True}, 1e-4),
        ("sft", TINY, {"lora": True}, 3e-3),  # never above pretraining's
        ("distill", MINIMIND, {}, 5e-6),
        ("dpo", MINIMIND, {}, 1e-6),
        ("dpo", MINIMIND, {"scratch": True}, 1e-6),
        ("reward", TINY, {}, 1e-3),
        ("grpo", MINIMIND, {}, 1e-6),
    ],
)
def test_the_table(stage, parameters, options, rate):
    assert usual_rate(stage, parameters, **options)[0] == pytest.approx(rate)


def test_every_stage_has_rates_that_fall_with_size_and_name_their_source():
    configs = (SFTRecipeConfig, PretrainRecipeConfig, DPORecipeConfig, RewardRecipeConfig, DistillRecipeConfig)
    configs += (GRPORecipeConfig, PPORecipeConfig, SPORecipeConfig)
    assert {config.stage for config in configs} | {"midtrain"} == set(RATES)
    for rates in RATES.values():
        assert rates[0][0] > rates[1][0] > 0 and all(source for _, source in rates)
        for _, source in rates:
            if source.startswith("recipes/"):
                assert (REPOSITORY / source).is_file()


def test_it_is_set_and_printed_with_its_source(tmp_path, capsys):
    config, out, err = settled(capsys, PretrainRecipeConfig(output_dir=str(tmp_path)))
    assert config.learning_rate == 5e-4 and err == ""
    assert out == (
        "learning rate: 0.0005 (pretrain from scratch, 63.9M parameters: MiniMind's train_pretrain.py), "
        "warm-up over 5% of the steps\n"
    )


def test_what_is_given_wins(tmp_path, capsys):
    given = {"learning_rate": 1e-4, "warmup_steps": 7}
    config, out, err = settled(capsys, PretrainRecipeConfig(output_dir=str(tmp_path), **given))
    assert (config.learning_rate, config.warmup_steps) == (1e-4, 7) and err == ""
    assert out == "learning rate: 0.0001 (as given), warm-up over 7 steps\n"


@pytest.mark.parametrize(
    ("kind", "args", "rate", "warned"),
    [
        (PretrainRecipeConfig, SCRATCH, 2e-5, True),
        (SFTRecipeConfig, SCRATCH, 2e-5, True),
        (PretrainRecipeConfig, SCRATCH, 1e-4, False),
        (SFTRecipeConfig, TRAINED, 2e-5, False),
        (PretrainRecipeConfig, TRAINED, 2e-5, False),
        (DPORecipeConfig, SCRATCH, 1e-6, False),
    ],
)
def test_a_rate_for_fine_tuning_in_a_run_from_scratch_is_warned_of(tmp_path, capsys, kind, args, rate, warned):
    _, _, err = settled(capsys, kind(output_dir=str(tmp_path), learning_rate=rate), args)
    told = "warning: --learning_rate 2e-05 is for fine-tuning; from scratch, with 63.9M parameters, 0.0005 is usual"
    assert err.startswith(told) if warned else err == ""


@pytest.mark.parametrize(("max_steps", "warmup"), [(2, 0), (19, 0), (20, 0.05), (-1, 0.05)])
def test_a_run_too_short_for_a_warm_up_has_none(tmp_path, capsys, max_steps, warmup):
    """transformers would round it up to one step at a rate of 0: of a single step, nothing would be learned."""
    config, *_ = settled(capsys, PretrainRecipeConfig(output_dir=str(tmp_path), max_steps=max_steps))
    assert config.warmup_steps == warmup


def test_a_plan_needs_none():
    plan = make_plan("sft", ["--preset", "nano", "--max_length", "64"])
    assert plan.moments["training"]["optimizer states"] > 0
