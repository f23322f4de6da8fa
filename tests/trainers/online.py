"""Online trainers on a bandit: one short answer, and a reward whose best policy is known."""

from pathlib import Path
from typing import Any

import torch
from datasets import Dataset

from minimind_trl.models import MiniMindConfig, MiniMindForCausalLM
from minimind_trl.rewards import Reward
from minimind_trl.tokenization import tiny_tokenizer
from minimind_trl.trainers import (
    MiniMindGRPOTrainer,
    PPOConfig,
    PPOTrainer,
    Rollout,
    RolloutConfig,
    SPOConfig,
    SPOTrainer,
)

QUICK = {
    "report_to": "none",
    "use_cpu": True,
    "bf16": False,
    "gradient_checkpointing": False,
    "disable_tqdm": True,
    "save_strategy": "no",
    "lr_scheduler_type": "constant",
    "learning_rate": 3e-3,
    "per_device_train_batch_size": 16,
    "per_device_eval_batch_size": 4,
    "max_completion_length": 3,
    "max_steps": 4,
    "logging_steps": 1,
    "dataloader_pin_memory": False,
}
METHODS = {
    "grpo": (MiniMindGRPOTrainer, RolloutConfig, {"num_generations": 4}),
    "ppo": (PPOTrainer, PPOConfig, {"num_ppo_epochs": 2, "critic_learning_rate": 1e-2, "kl_coef": 0.0}),
    "spo": (SPOTrainer, SPOConfig, {}),
}


def prompts(count: int = 24) -> Dataset:
    return Dataset.from_list([{"prompt": [{"role": "user", "content": f"say {n}"}]} for n in range(count)])


def low_ids(prompts, completions, completion_ids, **_) -> list[float]:
    """The share of tokens in the lower half of the vocabulary: 1 at best."""
    return [sum(token < 278 for token in ids) / len(ids) for ids in completion_ids]


low_ids.low, low_ids.high = 0.0, 1.0


def bandit_model(seed: int = 0, **more: Any) -> MiniMindForCausalLM:
    torch.manual_seed(seed)
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2}
    return MiniMindForCausalLM(MiniMindConfig.from_preset("nano", **sizes, num_key_value_heads=1, head_dim=16, **more))


def online(method: str, folder: Path, model=None, reward=low_ids, rows=None, held_out=None, **options: Any):
    trainer, config, own = METHODS[method]
    own_arguments = ("peft_config", "ref_model", "rollout_func", "watch_funcs", "tools", "environment_factory")
    of_trainer = {name: options.pop(name) for name in own_arguments if name in options}
    return trainer(
        model or bandit_model(),
        reward,
        config(output_dir=str(folder), **{**QUICK, **own, **options}),
        train_dataset=prompts() if rows is None else rows,
        eval_dataset=prompts(6) if held_out is None else held_out,
        processing_class=tiny_tokenizer(),
        **of_trainer,
    )


def weights(trainer) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in trainer.model.state_dict().items()}


def equal(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def bounded(function=low_ids) -> Reward:
    return Reward(function, function.__name__, 0.0, 1.0)


def first_rollout(trainer) -> tuple[Rollout, dict]:
    """The first rollout, and its first minibatch for the loss."""
    rollouts, generate = [], trainer.generate_rollout
    trainer.generate_rollout = lambda rows: rollouts.append(generate(rows)) or rollouts[-1]
    trainer.create_optimizer()
    trainer.current_gradient_accumulation_steps = 1
    trainer.model.train()
    inputs = trainer.prepare_inputs(next(iter(trainer.get_train_dataloader())))
    return rollouts[0], inputs


def moved(trainer) -> None:
    """Move what is trained away from where it is; of LoRA so that the adapter no longer does nothing."""
    torch.manual_seed(2)
    for name, parameter in trainer.model.named_parameters():
        if "lora_B" in name or (parameter.requires_grad and "lora" not in name):
            parameter.data += 0.3 * torch.randn_like(parameter) * (parameter.std(correction=0) + 0.1)
