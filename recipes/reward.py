"""Train a reward model: one number per conversation, higher for the better answer.

    accelerate launch recipes/reward.py --config recipes/configs/reward/tiny.yaml \
        --from_weight runs/demo/sft

The body is the checkpoint's, the head is new. Supports: every option of TRL's RewardConfig; LoRA; held-out accuracy and
margin before, during and after training; resuming.
Assumes: a checkpoint (`--from_weight`: directory, Hub id or upstream's `.pth`) and a mixture of phase reward or dpo.
Exit codes: 0 done, 2 bad input (one line says what), 1 crash.
"""

from minimind_trl.run import (
    RewardModelConfig,
    as_reward_model,
    load_data,
    load_or_create_model,
    load_tokenizer,
    parse_arguments,
    run_recipe,
    train_reward,
)


def main() -> None:
    args, config, lora = parse_arguments(RewardModelConfig)
    tokenizer = load_tokenizer(args)
    model = as_reward_model(load_or_create_model(args, tokenizer, config.seed), config.seed)
    data, mixer = load_data(args, config, tokenizer, phases=("reward", "dpo"))
    train_reward(args, config, lora, model, tokenizer, data, mixer)


if __name__ == "__main__":
    run_recipe(main)
