"""TRL's own trainers accept our models, given as a path or as an object."""

import pytest
import torch
from datasets import Dataset
from transformers import AutoTokenizer
from trl import (
    DPOConfig,
    DPOTrainer,
    GRPOConfig,
    GRPOTrainer,
    RewardConfig,
    RewardTrainer,
    SFTConfig,
    SFTTrainer,
)

from minimind_trl.models import MiniMindForCausalLM, MiniMindForSequenceClassification
from minimind_trl.tokenization import with_training_template


def user(text):
    return [{"role": "user", "content": text}]


def assistant(text):
    return [{"role": "assistant", "content": text}]


def length_reward(completions, **kwargs):
    return [float(len(completion[0]["content"])) for completion in completions]


PREFERENCES = [
    {"prompt": user(f"copy: cat {i}"), "chosen": assistant(f"cat {i}"), "rejected": assistant(f"dog {i}")}
    for i in range(8)
]
CONVERSATIONS = [{"messages": user(f"copy: cat {i}") + assistant(f"cat {i}")} for i in range(8)]
PROMPTS = [{"prompt": user(f"copy: cat {i}")} for i in range(8)]

COMMON = {
    "max_steps": 2,
    "per_device_train_batch_size": 2,
    "learning_rate": 1e-3,
    "use_cpu": True,
    "bf16": False,
    "gradient_checkpointing": False,
    "save_strategy": "no",
    "report_to": "none",
    "disable_tqdm": True,
}
TRAINERS = {
    "sft": (SFTTrainer, SFTConfig, CONVERSATIONS, {"assistant_only_loss": True, "packing": True, "max_length": 64}),
    "dpo": (DPOTrainer, DPOConfig, PREFERENCES, {}),
    "reward": (RewardTrainer, RewardConfig, PREFERENCES, {}),
    "grpo": (GRPOTrainer, GRPOConfig, PROMPTS, {"num_generations": 2, "max_completion_length": 8, "beta": 0.1}),
}


@pytest.mark.parametrize("given_as", ["path", "object"])
@pytest.mark.parametrize("name", TRAINERS)
@pytest.mark.parametrize(
    "kind", ["dense3", *(pytest.param(k, marks=pytest.mark.slow) for k in ("dense2", "moe2", "moe3"))], indirect=True
)
def test_two_steps(checkpoints, kind, name, given_as, tmp_path):
    trainer_class, config_class, rows, options = TRAINERS[name]
    path = str(checkpoints[kind])
    model = path
    if given_as == "object" and name == "reward":
        model = MiniMindForSequenceClassification.from_pretrained(path, num_labels=1)
    elif given_as == "object":
        model = MiniMindForCausalLM.from_pretrained(path)
    extra = {"reward_funcs": length_reward} if name == "grpo" else {}
    trainer = trainer_class(
        model=model,
        args=config_class(output_dir=str(tmp_path), **COMMON, **options),
        train_dataset=Dataset.from_list(rows),
        processing_class=with_training_template(AutoTokenizer.from_pretrained(path)),
        **extra,
    )
    before = {name: value.clone() for name, value in trainer.model.state_dict().items()}
    trainer.train()
    assert trainer.state.global_step == 2
    if name != "grpo":  # advantages are zero if both completions have the same length
        assert any(not torch.equal(value, before[key]) for key, value in trainer.model.state_dict().items())


@pytest.mark.parametrize("kind", ["moe2", "moe3"], indirect=True)
def test_trl_trains_with_the_router_loss(checkpoints, kind, tmp_path):
    trainer = SFTTrainer(
        model=str(checkpoints[kind]),
        args=SFTConfig(output_dir=str(tmp_path), **COMMON | {"logging_steps": 1}),
        train_dataset=Dataset.from_list(CONVERSATIONS),
    )
    trainer.train()
    assert all(log["aux_loss"] > 0 for log in trainer.state.log_history if "loss" in log)
