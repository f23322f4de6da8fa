"""Single-stream policy optimisation (arXiv 2509.13232): compare each answer's reward with its prompt's past rewards.

    accelerate launch recipes/spo.py --config recipes/configs/spo/tiny.yaml \
        --from_weight runs/demo/sft

Supports: MiniMind's own variant (`--tracker global`); self-play (`--opponent snapshot`); options of TRL's GRPOConfig
that are not about groups; weighted rewards (`--reward_funcs`): by name, from a reward model, or your own; LoRA;
held-out rewards before, during and after training; resuming at any step.
`--tools` and `--environment` let the policy call functions while it answers (docs/agents.md).
`--thinking_ratio` opens a think block in a share of the prompts. For MiniMind-3: recipes/configs/spo/minimind3.yaml.
Assumes: a checkpoint that is sometimes right, a mixture of phase rlaif, and the columns that the rewards need.
Exit codes: 0 done, 2 bad input (one line says what), 1 crash.
"""

from minimind_trl.run import parse_arguments, run_recipe
from minimind_trl.run.online_configs import SPORecipeConfig


def main() -> None:
    args, config, lora = parse_arguments(SPORecipeConfig)

    # Imported here, as in TRL's scripts, because `--help` does not need them and they take a second.
    from minimind_trl.run.rl_run import RLRun
    from minimind_trl.trainers import SPOTrainer

    run = RLRun(args, config, lora)
    data = run.load_data("rlaif")
    trainer = SPOTrainer(
        model=run.model,
        reward_funcs=run.reward_funcs,
        watch_funcs=run.watch_funcs,
        tools=run.tools,
        environment_factory=run.environment_factory,
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
