"""`minimind-trl <verb>`: exit code 0 when done, 2 on bad input (one line on stderr), 1 on a crash."""

import argparse
import sys

from transformers.utils.logging import disable_progress_bar

from .commands import convert, tokenizer
from .commands import data as commands
from .commands import eval as evaluation
from .errors import InputError
from .files import full_disk


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="minimind-trl", description="MiniMind on the Hugging Face stack")
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="VERB")
    convert.add_cli(verbs)
    tokenizer.add_cli(verbs)
    commands.add_cli(verbs)
    evaluation.add_cli(verbs)
    plan = verbs.add_parser("plan", help="what a recipe will need of memory, before it starts", add_help=False)
    plan.set_defaults(run=_plan)
    args, args.others = parser.parse_known_args(argv)
    if args.others and args.verb != "plan":  # which parses its options itself
        verbs.choices[args.verb].error(f"unrecognized arguments: {' '.join(args.others)}")
    disable_progress_bar()  # loading takes a moment, and the bars would stand between the user and the one line
    try:
        args.run(args)
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except OSError as error:
        if not (told := full_disk(error)):
            raise
        print(f"error: {told}", file=sys.stderr)
        return 1
    return 0


def _plan(args: argparse.Namespace) -> None:
    from .commands import plan as planning

    planning.run(args.others)


if __name__ == "__main__":
    sys.exit(main())
