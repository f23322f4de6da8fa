"""Build mixtures and train on each for two steps with TRL's trainer of its stage; run by test_shipped_mixtures.py.

Arguments: mixture files. Prints one JSON object: for each file what came of it, or the error.
"""

import json
import sys
import tempfile
import traceback

import datasets
from datasets import IterableDataset
from trl import DPOConfig, DPOTrainer, GRPOConfig, GRPOTrainer, RewardConfig, RewardTrainer, SFTConfig, SFTTrainer

from minimind_trl.data import DatasetMixer
from minimind_trl.models import MiniMindConfig, MiniMindForCausalLM, MiniMindForSequenceClassification
from minimind_trl.tokenization import tiny_tokenizer, with_training_template

COMMON = {
    "max_steps": 2,
    "per_device_train_batch_size": 2,
    "use_cpu": True,
    "bf16": False,
    "gradient_checkpointing": False,
    "save_strategy": "no",
    "report_to": "none",
    "disable_tqdm": True,
}
TRAINERS = {
    "pretrain": (SFTTrainer, SFTConfig, {"max_length": 64}),
    "sft": (SFTTrainer, SFTConfig, {"max_length": 512, "assistant_only_loss": True}),
    "dpo": (DPOTrainer, DPOConfig, {"max_length": 128}),
    "reward": (RewardTrainer, RewardConfig, {"max_length": 1024}),
    "rlaif": (GRPOTrainer, GRPOConfig, {"num_generations": 2, "max_completion_length": 4}),
}
SAME_AS = {"midtrain": "pretrain", "distill": "sft"}


def length_reward(completions, **columns):
    return [float(len(completion[0]["content"])) for completion in completions]


def small_model(phase: str):
    size = {"hidden_size": 32, "num_hidden_layers": 1, "intermediate_size": 64}
    config = MiniMindConfig.from_preset("tiny", num_attention_heads=2, num_key_value_heads=1, head_dim=16, **size)
    if phase == "reward":
        return MiniMindForSequenceClassification(MiniMindConfig(**config.to_dict() | {"num_labels": 1}))
    return MiniMindForCausalLM(config)


def train(path: str, folder: str) -> dict:
    tokenizer = tiny_tokenizer()
    mixer = DatasetMixer.from_yaml(path)
    checked = mixer.validate_mixture(tokenizer)
    data = mixer.build(tokenizer)
    rows = list(data["train"].take(8))
    phase = mixer.mixture.metadata.phase
    trainer_class, config_class, options = TRAINERS[SAME_AS.get(phase, phase)]
    # The reference model would be loaded from the model's folder, which a model made here has not.
    more = {"rlaif": {"reward_funcs": length_reward}, "dpo": {"ref_model": small_model(phase)}}.get(phase, {})
    trainer = trainer_class(
        model=small_model(phase),
        args=config_class(output_dir=folder, **COMMON, **options),
        train_dataset=data["train"],
        processing_class=with_training_template(tokenizer),
        **more,
    )
    trainer.train()
    known = not isinstance(data["train"], IterableDataset)
    return {
        "phase": phase,
        "columns": sorted(rows[0]),
        "first": rows[:2],
        "checked": checked,
        "steps": trainer.state.global_step,
        "train": len(data["train"]) if known else None,
        "validation": len(data["validation"]) if known else len(list(data["validation"].take(5))),
        "lock": mixer.lock(),
    }


def main(paths: list[str]) -> None:
    datasets.disable_progress_bars()
    datasets.config.SLEEP_TIME_ON_THREADS_SHUTDOWN = 0.2  # of 5 s, after every look into a stream
    results = {}
    for path in paths:
        try:
            with tempfile.TemporaryDirectory() as folder:
                results[path] = train(path, folder)
        except Exception:
            results[path] = {"error": traceback.format_exc()}
    print(json.dumps(results))


if __name__ == "__main__":
    main(sys.argv[1:])
