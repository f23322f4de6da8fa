"""TRL's trainers as the recipes run them: a plan, evaluation before, during and after, and what stays in the folder."""

import copy
from contextlib import suppress
from pathlib import Path

from datasets import Dataset, DatasetDict, IterableDataset
from transformers import PreTrainedTokenizerBase, TrainerCallback
from trl import DPOTrainer, RewardTrainer, SFTTrainer, get_peft_config

from ..data import LOCK, DatasetMixer
from ..errors import InputError
from ..evaluation import held_out_figures
from ..files import write_json
from ..tokenization import with_training_template
from ..trainers import MeteredTrainer, last_good_checkpoint, write_curves
from .arguments import RecipeArguments, report_to_wandb
from .flight_check import flight_check

_SHOWN = ("loss", "perplexity", "token_accuracy", "rewards/accuracies", "rewards/margins", "accuracy", "margin")


class MixtureLockCallback(TrainerCallback):
    """Puts `mixture.lock.json` into every checkpoint."""

    def __init__(self, mixer: DatasetMixer):
        self.mixer = mixer

    def on_save(self, args, state, control, **kwargs):
        if state.is_world_process_zero:
            write_json(Path(args.output_dir) / f"checkpoint-{state.global_step}" / LOCK, self.mixer.lock())


class RecipeSFTTrainer(MeteredTrainer, SFTTrainer):
    """SFTTrainer whose evaluation weighs tokens equally, tells sources apart, and is the one that `eval` repeats."""

    held_out: Dataset | None = None
    eval_batches: int | None = None

    def evaluate(self, eval_dataset=None, ignore_keys=None, metric_key_prefix="eval"):
        figures = held_out_figures(
            self.model,
            self.processing_class,
            self.held_out,
            max_length=self.args.max_length,
            batch_size=self.args.per_device_eval_batch_size,
            max_batches=self.eval_batches * self.args.world_size,
            assistant_only=self.args.assistant_only_loss,
            bf16=self.args.bf16,
            accelerator=self.accelerator,
        )
        self.log(figures)
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, figures)
        return figures


class RecipeDPOTrainer(MeteredTrainer, DPOTrainer):
    """DPOTrainer with the recipes' metrics."""

    def evaluate(self, *args, **kwargs):
        figures = super().evaluate(*args, **kwargs)
        if figures.get("eval_rewards/chosen") == figures.get("eval_rewards/rejected") == 0.0:
            # The policy still is its reference, so that every pair is a tie; TRL counts ties as wrong.
            figures["eval_rewards/accuracies"] = 0.5
        return figures


class RecipeRewardTrainer(MeteredTrainer, RewardTrainer):
    """RewardTrainer with the recipes' metrics."""


def train_sft(args, config, lora, model, tokenizer, data: DatasetDict, mixer: DatasetMixer) -> dict:
    """Train with TRL's SFTTrainer; of `run`'s arguments and results.

    Raises:
        InputError: no training row has a token to learn from.
    """
    settle(args, config, "Pretrain" if not config.assistant_only_loss else "SFT")
    trainer = RecipeSFTTrainer(
        model=model,
        args=config,
        processing_class=with_training_template(tokenizer) if config.assistant_only_loss else tokenizer,
        train_dataset=data["train"],
        eval_dataset=_capped(args, config, data["validation"]),
        peft_config=get_peft_config(lora),
    )
    trainer.held_out, trainer.eval_batches = data["validation"], args.eval_batches
    if not isinstance(trainer.train_dataset, IterableDataset):
        if len(trainer.train_dataset) == 0:
            raise InputError(f"no training row has a token to learn from within max_length={config.max_length}")
        if not config.packing and (dropped := len(data["train"]) - len(trainer.train_dataset)):
            trainer.accelerator.print(
                f"data: {dropped} train rows dropped: no token to learn from within max_length={config.max_length}"
            )
    return run(trainer, args, tokenizer, data, mixer)


def train_dpo(args, config, lora, model, tokenizer, data: DatasetDict, mixer: DatasetMixer) -> dict:
    """Train with TRL's DPOTrainer against the model as it is now; of `run`'s arguments and results."""
    settle(args, config, "DPO")
    trainer = RecipeDPOTrainer(
        model=model,
        # With LoRA the reference is the model without its adapter.
        ref_model=None if lora.use_peft or config.precompute_ref_log_probs else copy.deepcopy(model),
        args=config,
        processing_class=tokenizer,
        train_dataset=data["train"],
        eval_dataset=_capped(args, config, data["validation"]),
        peft_config=get_peft_config(lora),
    )
    return run(trainer, args, tokenizer, data, mixer)


def train_reward(args, config, lora, model, tokenizer, data: DatasetDict, mixer: DatasetMixer) -> dict:
    """Train with TRL's RewardTrainer; of `run`'s arguments and results."""
    settle(args, config, "Reward")
    trainer = RecipeRewardTrainer(
        model=model,
        args=config,
        processing_class=tokenizer,
        train_dataset=data["train"],
        eval_dataset=_capped(args, config, data["validation"]),
        peft_config=get_peft_config(lora),
    )
    return run(trainer, args, tokenizer, data, mixer)


def settle(args: RecipeArguments, config, name: str) -> None:
    """Turn our options into transformers' settings.

    Raises:
        InputError: the output folder is used, or the checkpoint to resume from is not there.
    """
    config.resume_from_checkpoint = _checkpoint_to_resume(args, config.output_dir)
    report_to_wandb(args, config, name)
    if args.eval_interval:
        config.eval_strategy, config.eval_steps = "steps", args.eval_interval


def run(
    trainer, args: RecipeArguments, tokenizer: PreTrainedTokenizerBase, data: DatasetDict, mixer: DatasetMixer
) -> dict:
    """Check and print the plan, evaluate, train, evaluate, and leave model, tokenizer, metrics, lock and model card.

    Returns:
        `{"before": ..., "after": ...}`, held-out figures; empty with `--eval_interval 0` and with `--dry_run`.
    """
    flight_check(trainer, args, tokenizer, data, mixer)
    if args.dry_run:
        with suppress(OSError):  # which transformers has made; one that holds something stays
            Path(trainer.args.output_dir).rmdir()
        return {}
    trainer.add_callback(MixtureLockCallback(mixer))
    metrics = {"before": trainer.evaluate()} if args.eval_interval else {}
    trainer.train(resume_from_checkpoint=trainer.args.resume_from_checkpoint)
    if args.eval_interval:
        metrics["after"] = trainer.evaluate()
    trainer.save_model()
    if trainer.is_world_process_zero():
        _leave_results(trainer, args, tokenizer, mixer, metrics)
    trainer.end()
    return metrics


def _leave_results(trainer, args, tokenizer: PreTrainedTokenizerBase, mixer: DatasetMixer, metrics: dict) -> None:
    config = trainer.args
    folder = Path(config.output_dir)
    tokenizer.save_pretrained(folder)  # the inference template, in place of the training twin
    # What `minimind-trl eval` needs to give the same figures later.
    options = {
        "phase": mixer.mixture.metadata.phase,
        "max_length": config.max_length,
        "batch_size": config.per_device_eval_batch_size,
        "eval_batches": args.eval_batches * config.world_size,
        "bf16": config.bf16,
        "assistant_only_loss": getattr(config, "assistant_only_loss", None),
        "beta": getattr(config, "beta", None),
    }
    write_json(folder / "metrics.json", metrics | {"options": options})
    write_json(folder / LOCK, mixer.lock())
    write_curves(trainer.state.log_history, folder / "curves.png")
    trainer.create_model_card()
    card = folder / "README.md"
    card.write_text(f"{card.read_text(encoding='utf-8').rstrip()}\n\n## Training data\n\n{mixer.markdown()}", "utf-8")
    for when, figures in metrics.items():
        shown = {name: figures[f"eval_{name}"] for name in _SHOWN if f"eval_{name}" in figures}
        print(f"held-out {when} training: " + ", ".join(f"{name} {value:.4f}" for name, value in shown.items()))
    print(f"saved to {folder}")


def _capped(args: RecipeArguments, config, rows: Dataset | IterableDataset) -> Dataset | IterableDataset | None:
    if not args.eval_interval:
        return None
    count = args.eval_batches * config.per_device_eval_batch_size * config.world_size
    return rows.take(count) if isinstance(rows, IterableDataset) else rows.select(range(min(count, len(rows))))


def _checkpoint_to_resume(args: RecipeArguments, output_dir: str) -> str | None:
    folder = Path(output_dir)
    if folder.exists() and not folder.is_dir():
        raise InputError(f"--output_dir {output_dir} is a file; give a folder")
    if args.resume == "auto":
        found = last_good_checkpoint(folder)
        return str(found) if found else None
    if args.resume is not None and not Path(args.resume).is_dir():
        raise InputError(f"--resume {args.resume}: no such folder; give auto, or {output_dir}/checkpoint-N")
    if args.resume is None and folder.is_dir() and any(folder.iterdir()):
        raise InputError(f"--output_dir {output_dir} is not empty; give a new one, or --resume auto")
    return args.resume
