"""Direct preference optimisation: lift the better answer over the worse one, near the model that it starts from.

    accelerate launch recipes/dpo.py --config recipes/configs/dpo/tiny.yaml \
        --from_weight runs/demo/sft

Supports: every option of TRL's DPOConfig; LoRA, where the reference is the model without its adapter; held-out
preference loss, accuracy, margin and rewards before, during and after training; resuming.
Assumes: a checkpoint (`--from_weight`: directory, Hub id or upstream's `.pth`), best one that was fine-tuned, and a
mixture of phase dpo or reward. Exit codes: 0 done, 2 bad input (one line says what), 1 crash.
"""

from minimind_trl.run import (
    PreferenceConfig,
    load_data,
    load_or_create_model,
    load_tokenizer,
    parse_arguments,
    run_recipe,
    train_dpo,
)


def main() -> None:
    args, config, lora = parse_arguments(PreferenceConfig)
    tokenizer = load_tokenizer(args)
    model = load_or_create_model(args, tokenizer, config.seed)
    data, mixer = load_data(args, config, tokenizer, phases=("dpo", "reward"))
    train_dpo(args, config, lora, model, tokenizer, data, mixer)


if __name__ == "__main__":
    run_recipe(main)
