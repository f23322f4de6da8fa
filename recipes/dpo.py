"""Direct preference optimisation (arXiv 2305.18290): prefer the better answer, but stay close to the initial model.

    accelerate launch recipes/dpo.py --config recipes/configs/dpo/tiny.yaml \
        --from_weight runs/demo/sft

Supports: every option of TRL's DPOConfig; LoRA, with the model without its adapter as the reference; held-out
preference loss, accuracy, margin and rewards before, during and after training; resuming.
Assumes: a checkpoint (`--from_weight`: directory, Hub id or upstream's `.pth`), preferably a fine-tuned one, and a
mixture of phase dpo or reward. Exit codes: 0 done, 2 bad input (one line says what), 1 crash.
"""

import copy

from minimind_trl.run import DPORecipeConfig, parse_arguments, run_recipe


def main() -> None:
    args, config, lora = parse_arguments(DPORecipeConfig)

    # Imported here, as in TRL's scripts, because `--help` does not need them and they take a second.
    from minimind_trl.run import Run
    from minimind_trl.trainers import MiniMindDPOTrainer

    run = Run(args, config, lora)
    data = run.load_data("dpo", "reward")
    # With LoRA the reference is the model without its adapter.
    needs_copy = not lora.use_peft and not config.precompute_ref_log_probs
    trainer = MiniMindDPOTrainer(
        model=run.model,
        ref_model=copy.deepcopy(run.model) if needs_copy else None,
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
