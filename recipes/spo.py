"""Single-stream policy optimisation (arXiv 2509.13232): one answer to each prompt, against what the prompt used to get.

    accelerate launch recipes/spo.py --config recipes/configs/spo/tiny.yaml \
        --from_weight runs/demo/sft

Supports: MiniMind's own variant (`--tracker global`), self-play (`--opponent snapshot`), what of TRL's GRPOConfig is
not about groups; rewards by name, of a model or your own (`--reward_funcs`), weighed; LoRA; held-out rewards before,
during and after training; resuming at any step.
`--thinking_ratio` opens a think block in a share of the prompts. For MiniMind-3: recipes/configs/spo/minimind3.yaml.
Assumes: a checkpoint that is sometimes right, a mixture of phase rlaif, and the columns that the rewards ask for.
Exit codes: 0 done, 2 bad input (one line says what), 1 crash.
"""

from minimind_trl.run import load_data, load_or_create_model, load_tokenizer, parse_arguments, run_recipe
from minimind_trl.run.online import SPORecipeConfig, load_reward_funcs, train_online


def main() -> None:
    args, config, lora = parse_arguments(SPORecipeConfig)
    rewards = load_reward_funcs(config)
    tokenizer = load_tokenizer(args)
    model = load_or_create_model(args, tokenizer, config.seed)
    data, mixer = load_data(args, config, tokenizer, phases=("rlaif",))
    train_online(args, config, lora, model, rewards, tokenizer, data, mixer)


if __name__ == "__main__":
    run_recipe(main)
