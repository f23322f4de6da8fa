"""Pretrain a MiniMind on plain text.

    accelerate launch recipes/pretrain.py --config recipes/configs/pretrain/tiny.yaml
    accelerate launch recipes/pretrain.py --preset minimind3 --tokenizer DIR --data_config my_mixture.yaml \
        --output_dir runs/pretrain

Supports: a model from scratch (`--preset`) or from a checkpoint (`--from_weight`: directory, Hub id or upstream's
`.pth`); every option of TRL's SFTConfig; held-out loss before, during and after training; resuming.
Assumes: a mixture of phase pretrain or midtrain. Exit codes: 0 done, 2 bad input (one line says what), 1 crash.
"""

from minimind_trl.run import PretrainRecipeConfig, parse_arguments, run_recipe


def main() -> None:
    args, config, lora = parse_arguments(PretrainRecipeConfig)

    # Imported here, as in TRL's scripts, because `--help` does not need them and they take a second.
    from minimind_trl.run import Run
    from minimind_trl.trainers import MiniMindSFTTrainer

    run = Run(args, config, lora)
    data = run.load_data("pretrain", "midtrain")
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
