"""`minimind-trl plan --recipe NAME`: the memory that a recipe needs per device, before anything is started."""

import argparse

from .launch import RECIPES

# The plan's own options. Their values are checked with those of the recipe.
_OPTIONS = {
    "longest_row": "tokens of the longest row, or prompt (default: --max_length, else the mixture's, else 1024)",
    "accelerate_config": "the file for accelerate launch, or the name of a shipped one: sets processes and sharding",
    "num_processes": "processes (devices) that train together",
    "zero_stage": "DeepSpeed's ZeRO stage: 1, 2 or 3",
    "device_memory": "GiB of the device to plan for, where it is not this machine's",
}


def add_cli(verbs: argparse._SubParsersAction) -> None:
    """Add the `plan` verb."""
    parser = verbs.add_parser(
        "plan",
        help="estimate a recipe's memory before it starts",
        description="Counts the memory of a recipe per device and reports whether it fits. Starts no training.",
        epilog="All options of the recipe apply too: minimind-trl NAME --help",
        allow_abbrev=False,
    )
    parser.add_argument("--recipe", required=True, help=", ".join(RECIPES))
    for name, what in _OPTIONS.items():
        parser.add_argument(f"--{name}", help=what)
    parser.set_defaults(run=_run)


def _run(args: argparse.Namespace) -> None:
    import psutil

    from ..run.memory_plan import CUDA_CONTEXT, make_plan, print_plan

    given = {name: value for name in _OPTIONS if (value := getattr(args, name)) is not None}
    options = [*args.recipe_options, *(part for name, value in given.items() for part in (f"--{name}", value))]
    used = psutil.Process().memory_info().rss  # by the same imports as a recipe's
    plan = make_plan(args.recipe, options)
    print_plan(plan, base=used if plan.setup.config.device.type == "cpu" else CUDA_CONTEXT)
