"""Fine-tune a MiniMind on conversations; the loss is on the assistant's turns, end-of-turn token included.

    accelerate launch recipes/sft.py --config recipes/configs/sft/tiny.yaml --from_weight runs/demo/pretrain
    accelerate launch recipes/sft.py --from_weight full_sft_512.pth --tokenizer DIR --data_config my_mixture.yaml \
        --output_dir runs/sft

Supports: a checkpoint (`--from_weight`: directory, Hub id or upstream's `.pth`) or a model from scratch (`--preset`);
tool calls and reasoning content; every option of TRL's SFTConfig; LoRA; held-out loss before, during and after
training; resuming.
Assumes: a mixture of phase sft or distill, and a tokenizer with a chat template of either MiniMind generation.
Exit codes: 0 done, 2 bad input (one line says what), 1 crash.
"""

from minimind_trl.run import SFTRecipeConfig, parse_arguments, run_recipe


def main() -> None:
    args, config, lora = parse_arguments(SFTRecipeConfig)

    # Imported here, as in TRL's scripts, because `--help` does not need them and they take a second.
    from minimind_trl.run import Run
    from minimind_trl.trainers import MiniMindSFTTrainer

    run = Run(args, config, lora)
    data = run.load_data("sft", "distill")
    trainer = MiniMindSFTTrainer(
        model=run.model,
        args=config,
        processing_class=run.training_tokenizer,
        train_dataset=data.train,
        eval_dataset=data.validation,
        eval_batches=args.eval_batches,
        peft_config=run.peft_config,
        on_long=run.mixer.on_long,
    )
    run.finish(trainer)


if __name__ == "__main__":
    run_recipe(main)
