"""`minimind-trl demo`: run every stage on the embedded data, and measure it before and after."""

import argparse
import contextlib
from pathlib import Path

from ..errors import InputError, check_seed
from ..shipped_files import shipped_root


def add_cli(verbs: argparse._SubParsersAction) -> None:
    """Add the `demo` verb."""
    what = "run every stage on the embedded data, and measure it before and after"
    parser = verbs.add_parser("demo", help=what, description=what)
    parser.add_argument("--output_dir", type=Path, default=Path("runs/demo"), help="default: %(default)s")
    parser.add_argument("--rl_steps", type=int, help="steps of GRPO, PPO and SPO (default: as in their configs)")
    parser.add_argument("--seed", type=int, default=42, help="of every recipe (default: %(default)s)")
    parser.set_defaults(run=_run)


def _run(args: argparse.Namespace) -> None:
    if args.rl_steps is not None and args.rl_steps < 1:
        raise InputError(f"--rl_steps {args.rl_steps}: must be at least 1")
    check_seed(args.seed)

    from .demonstration import run_demo

    output_dir = args.output_dir.absolute()
    with contextlib.chdir(shipped_root()):  # it runs the recipes that lie there
        run_demo(output_dir, args.rl_steps, args.seed)
