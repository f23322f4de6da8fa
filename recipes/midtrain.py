"""Continue pretraining a MiniMind on better or narrower text, before fine-tuning.

    accelerate launch recipes/midtrain.py --config recipes/configs/midtrain/tiny.yaml \
        --from_weight runs/demo/pretrain

The learning rate warms up again, then decays by a cosine to a tenth. Supports: every option of TRL's SFTConfig; LoRA;
held-out loss per source before, during and after training; resuming.
Assumes: a checkpoint (`--from_weight`: directory, Hub id or upstream's `.pth`) and a mixture of phase midtrain or
pretrain. Exit codes: 0 done, 2 bad input (one line says what), 1 crash.
"""

from dataclasses import dataclass, field
from typing import ClassVar

from minimind_trl.errors import InputError
from minimind_trl.run import PretrainRecipeConfig, parse_arguments, run_recipe


@dataclass
class MidtrainRecipeConfig(PretrainRecipeConfig):
    stage: ClassVar[str] = "midtrain"
    project_name: ClassVar[str] = "Midtrain"

    lr_scheduler_type: str = field(
        default="cosine_with_min_lr", metadata={"help": "Default: a cosine to a tenth of the learning rate."}
    )
    lr_scheduler_kwargs: dict | str | None = field(
        default_factory=lambda: {"min_lr_rate": 0.1}, metadata={"help": "As JSON, for the scheduler."}
    )
    warmup_steps: float = field(default=0.05, metadata={"help": "Steps, or below 1 the share of all steps."})


def main() -> None:
    args, config, lora = parse_arguments(MidtrainRecipeConfig)

    # Imported here, as in TRL's scripts, because `--help` does not need them and they take a second.
    from minimind_trl.run import Run
    from minimind_trl.trainers import MiniMindSFTTrainer

    if args.preset:
        raise InputError("midtraining needs a checkpoint: give --from_weight; recipes/pretrain.py trains from scratch")
    run = Run(args, config, lora)
    data = run.load_data("midtrain", "pretrain")
    trainer = MiniMindSFTTrainer(
        model=run.model,
        args=config,
        processing_class=run.tokenizer,
        train_dataset=data.train,
        eval_dataset=data.validation,
        eval_batches=args.eval_batches,
        peft_config=run.peft_config,
        on_long=run.mixer.on_long,
    )
    run.finish(trainer)


if __name__ == "__main__":
    run_recipe(main)
