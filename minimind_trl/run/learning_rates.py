"""Default learning rates by stage and model size."""

import sys
from typing import Any

from transformers import PreTrainedModel

# Up to so many parameters a stage's first and second rate apply; the third is for larger models.
SIZES = (10_000_000, 300_000_000)

_EMBEDDED = "recipes/configs/{}/tiny.yaml"  # measured by `make demo`

# For each stage three rates with their sources. "MiniMind" means the defaults in upstream's trainer/train_*.py.
RATES: dict[str, tuple[tuple[float, str], tuple[float, str], tuple[float, str]]] = {
    "pretrain": (
        (3e-3, _EMBEDDED.format("pretrain")),
        (5e-4, "MiniMind's train_pretrain.py"),
        (3e-4, "GPT-3 of 350M parameters, arXiv 2005.14165, table 2.1"),
    ),
    "midtrain": (
        (2e-4, _EMBEDDED.format("midtrain")),
        (1e-4, "a fifth of pretraining's, not tuned"),
        (6e-5, "a fifth of pretraining's, not tuned"),
    ),
    "sft": (
        (2e-3, _EMBEDDED.format("sft")),
        (1e-5, "MiniMind's train_full_sft.py"),
        (2e-5, "TRL's SFTConfig"),
    ),
    "distill": (
        (2e-3, _EMBEDDED.format("sft")),
        (5e-6, "MiniMind's train_distillation.py"),
        (2e-5, "TRL's GKDConfig"),
    ),
    "dpo": (
        (1e-4, _EMBEDDED.format("dpo")),
        (1e-6, "TRL's DPOConfig; MiniMind's train_dpo.py takes 4e-8"),
        (1e-6, "TRL's DPOConfig"),
    ),
    "reward": (
        (1e-3, _EMBEDDED.format("reward")),
        (1e-4, "TRL's RewardConfig"),
        (1e-4, "TRL's RewardConfig"),
    ),
    **{
        stage: (
            (3e-4, _EMBEDDED.format(stage)),
            (1e-6, "TRL's GRPOConfig; MiniMind's train_grpo.py and train_ppo.py take 3e-7"),
            (1e-6, "TRL's GRPOConfig"),
        )
        for stage in ("grpo", "ppo", "spo")
    },
}
_LEARNED_ANEW = ("pretrain", "sft", "distill", "reward")  # with --preset these start from random weights
_LORA = 10  # times the rate of all weights: MiniMind's train_lora.py has 1e-4 where train_full_sft.py has 1e-5
_FINE_TUNING = 10  # warn if a rate from scratch is this many times lower than the default
WARMUP = 0.05
"""Share of the steps in which the rate rises to its full height, unless `--warmup_steps` says otherwise."""


def usual_rate(stage: str, parameters: int, *, scratch: bool = False, lora: bool = False) -> tuple[float, str]:
    """The default learning rate of a stage for a model of this size, and its source.

    Args:
        stage: a key of `RATES`.
        scratch: start from random weights; supervised stages then use pretraining's rate.
        lora: train an adapter: ten times the rate, at most pretraining's.
    """
    column = sum(parameters > size for size in SIZES)
    rate, source = RATES["pretrain" if scratch and stage in _LEARNED_ANEW else stage][column]
    if lora:
        rate, source = min(_LORA * rate, RATES["pretrain"][column][0]), f"LoRA, {_LORA} times {rate:g}: {source}"
    return rate, source


def usual_rate_of(run) -> tuple[float, str]:
    """The default learning rate of a run (a `RunContext`), whatever rate it was given, and its source."""
    scratch = _is_scratch(run.args, run.config)
    return usual_rate(run.config.stage, run.model.num_parameters(), scratch=scratch, lora=run.lora.use_peft)


def _is_scratch(args, config) -> bool:
    return args.preset is not None and config.stage in _LEARNED_ANEW


def set_learning_rate(args, config, lora: Any, model: PreTrainedModel) -> None:
    """Set the learning rate if none is given, and print it; warn about a fine-tuning rate in a run from scratch.

    Args:
        config: its `stage` is a key of `RATES`.
    """
    scratch = _is_scratch(args, config)
    parameters = model.num_parameters()
    usual, source = usual_rate(config.stage, parameters, scratch=scratch, lora=lora.use_peft)
    given = config.learning_rate is not None
    if not given:
        config.learning_rate = usual
    if config.warmup_steps == WARMUP and 0 < config.max_steps * WARMUP < 1:
        config.warmup_steps = 0  # transformers would round up to one step, at a rate of 0
    if config.process_index:
        return
    size = f"{parameters / 1e6:.3g}M parameters"
    why = "as given" if given else f"{config.stage}{' from scratch' if scratch else ''}, {size}: {source}"
    print(f"learning rate: {config.learning_rate:g} ({why}), {_warmup(config)}")
    if given and scratch and config.learning_rate * _FINE_TUNING < usual:
        print(
            f"warning: --learning_rate {config.learning_rate:g} is for fine-tuning; from scratch, with {size}, "
            f"{usual:g} is usual ({source}) and this will hardly learn",
            file=sys.stderr,
        )


def _warmup(config) -> str:
    if not config.warmup_steps:
        return "without warm-up"
    steps = config.warmup_steps
    return f"warm-up over {f'{steps:.0%} of the steps' if steps < 1 else f'{steps:g} steps'}"
