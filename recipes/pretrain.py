"""Pretrain a MiniMind on plain text.

    accelerate launch recipes/pretrain.py --config recipes/configs/pretrain/tiny.yaml
    accelerate launch recipes/pretrain.py --preset minimind3 --tokenizer DIR --data_config my_mixture.yaml \
        --output_dir runs/pretrain

Supports: from scratch (`--preset`) or on from a checkpoint (`--from_weight`: directory, Hub id or upstream's `.pth`);
every option of TRL's SFTConfig; held-out loss before, during and after training.
Assumes: a mixture of phase pretrain or midtrain. Exit codes: 0 done, 2 bad input (one line says what), 1 crash.
"""

from minimind_trl.run import (
    PretrainConfig,
    load_data,
    load_or_create_model,
    load_tokenizer,
    parse_arguments,
    run_recipe,
    train_sft,
)


def main() -> None:
    args, config, lora = parse_arguments(PretrainConfig)
    tokenizer = load_tokenizer(args)
    model = load_or_create_model(args, tokenizer, config.seed)
    data, mixer = load_data(args, config, tokenizer, phases=("pretrain", "midtrain"))
    train_sft(args, config, lora, model, tokenizer, data, mixer)


if __name__ == "__main__":
    run_recipe(main)
