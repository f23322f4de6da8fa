"""Tiny trainers on a few rows, for all tests of this folder."""

from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from trl import DPOConfig, DPOTrainer, RewardConfig, RewardTrainer, SFTConfig, SFTTrainer
from trl.experimental.gkd import GKDConfig, GKDTrainer

from minimind_trl.models import MiniMindConfig, MiniMindForCausalLM, MiniMindForSequenceClassification
from minimind_trl.tokenization import tiny_tokenizer
from minimind_trl.trainers import TrainerMixin


class TinySFT(TrainerMixin, SFTTrainer):
    pass


class TinyDPO(TrainerMixin, DPOTrainer):
    pass


class TinyReward(TrainerMixin, RewardTrainer):
    pass


class TinyGKD(TrainerMixin, GKDTrainer):
    pass


QUICK = {
    "max_steps": 4,
    "per_device_train_batch_size": 2,
    "logging_steps": 2,
    "learning_rate": 1e-3,
    "report_to": "none",
    "use_cpu": True,
    "bf16": False,
    "gradient_checkpointing": False,
    "save_strategy": "no",
    "disable_tqdm": True,
    "dataloader_pin_memory": False,
}


def text_rows(count: int = 16) -> Dataset:
    """Rows of different lengths, so that batches have padding."""
    return Dataset.from_list([{"text": f"row {n}: " + " ".join(map(str, range(n % 7 + 1)))} for n in range(count)])


def chat_rows(count: int = 16) -> Dataset:
    def messages(n):
        return [{"role": "user", "content": f"count to {n}"}, {"role": "assistant", "content": "1 2 3"[: n % 5 + 1]}]

    return Dataset.from_list([{"messages": messages(n)} for n in range(count)])


def preference_rows(count: int = 16) -> Dataset:
    def row(n):
        return {"prompt": f"say {n}", "chosen": f" {n} and more" * (n % 3 + 1), "rejected": " no"}

    return Dataset.from_list([row(n) for n in range(count)])


def tiny_model() -> MiniMindForCausalLM:
    torch.manual_seed(0)
    return MiniMindForCausalLM(MiniMindConfig.from_preset("tiny"))


def sft(output_dir: Path, trainer: type = TinySFT, rows: Dataset | None = None, **options: Any) -> TinySFT:
    return trainer(
        model=tiny_model(),
        args=SFTConfig(output_dir=str(output_dir), **{"max_length": 64, **QUICK, **options}),
        processing_class=tiny_tokenizer(),
        train_dataset=text_rows() if rows is None else rows,
        eval_dataset=text_rows(4),
    )


def dpo(output_dir: Path, **options: Any) -> TinyDPO:
    return TinyDPO(
        model=tiny_model(),
        ref_model=tiny_model(),
        args=DPOConfig(output_dir=str(output_dir), **{**QUICK, **options}),
        processing_class=tiny_tokenizer(),
        train_dataset=preference_rows(),
        eval_dataset=preference_rows(4),
    )


def reward(output_dir: Path, **options: Any) -> TinyReward:
    model = MiniMindForSequenceClassification(MiniMindConfig.from_preset("tiny", num_labels=1))
    return TinyReward(
        model=model,
        args=RewardConfig(output_dir=str(output_dir), **{**QUICK, **options}),
        processing_class=tiny_tokenizer(),
        train_dataset=preference_rows(),
        eval_dataset=preference_rows(4),
    )


def gkd(output_dir: Path, **options: Any) -> TinyGKD:
    return TinyGKD(
        model=tiny_model(),
        teacher_model=tiny_model(),
        args=GKDConfig(output_dir=str(output_dir), **{"lmbda": 0.0, "max_length": 64, **QUICK, **options}),
        processing_class=tiny_tokenizer(),
        train_dataset=chat_rows(),
        eval_dataset=chat_rows(4),
    )


TRAINERS = {"sft": sft, "dpo": dpo, "reward": reward, "gkd": gkd}
