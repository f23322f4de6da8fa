"""Proximal policy optimisation (arXiv 1707.06347): one answer to each prompt, against what a critic expected.

    accelerate launch recipes/ppo.py --config recipes/configs/ppo/tiny.yaml \
        --from_weight runs/demo/sft

Supports: the names of TRL's last PPOConfig; of its GRPOConfig what has none there and is not about groups; a critic
from the policy or from a reward model; rewards by name, of a model or your own (`--reward_funcs`), weighed; LoRA;
held-out rewards before, during and after training; resuming at any step.
`--thinking_ratio` opens a think block in a share of the prompts. For MiniMind-3: recipes/configs/ppo/minimind3.yaml.
Assumes: a checkpoint that is sometimes right, a mixture of phase rlaif, and the columns that the rewards ask for.
Exit codes: 0 done, 2 bad input (one line says what), 1 crash.
"""

from minimind_trl.run import load_data, load_or_create_model, load_tokenizer, parse_arguments, run_recipe
from minimind_trl.run.online import PPORecipeConfig, load_reward_funcs, train_online


def main() -> None:
    args, config, lora = parse_arguments(PPORecipeConfig)
    rewards = load_reward_funcs(config)
    tokenizer = load_tokenizer(args)
    model = load_or_create_model(args, tokenizer, config.seed)
    data, mixer = load_data(args, config, tokenizer, phases=("rlaif",))
    train_online(args, config, lora, model, rewards, tokenizer, data, mixer)


if __name__ == "__main__":
    run_recipe(main)
