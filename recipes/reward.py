"""Train a reward model: one number per conversation, higher for the better answer.

    accelerate launch recipes/reward.py --config recipes/configs/reward/tiny.yaml \
        --from_weight runs/demo/sft

The backbone is that of the checkpoint, the head is new. Supports: every option of TRL's RewardConfig; LoRA; held-out
accuracy and margin before, during and after training; resuming.
Assumes: a checkpoint (`--from_weight`: directory, Hub id or upstream's `.pth`) and a mixture of phase reward or dpo.
Exit codes: 0 done, 2 bad input (one line says what), 1 crash.
"""

from minimind_trl.run import RewardRecipeConfig, parse_arguments, run_recipe


def main() -> None:
    args, config, lora = parse_arguments(RewardRecipeConfig)

    # Imported here, as in TRL's scripts, because `--help` does not need them and they take a second.
    from minimind_trl.run import Run
    from minimind_trl.trainers import MiniMindRewardTrainer

    run = Run(args, config, lora, reward_model=True)
    data = run.load_data("reward", "dpo")
    trainer = MiniMindRewardTrainer(
        model=run.model,
        args=config,
        processing_class=run.tokenizer,
        train_dataset=data.train,
        eval_dataset=data.validation,
        eval_batches=args.eval_batches,
        peft_config=run.peft_config,
    )
    run.finish(trainer)


if __name__ == "__main__":
    run_recipe(main)
