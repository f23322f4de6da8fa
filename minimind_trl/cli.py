"""`minimind-trl <verb>`: exit code 0 when done, 2 on bad input (one line on stderr), 130 after Ctrl-C, 1 on a crash."""

import argparse
import signal
import sys

from .commands import convert, data, eval, plan, push, tokenizer
from .errors import CertificateError, InputError
from .files import full_disk_message


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="minimind-trl", description="MiniMind on the Hugging Face stack")
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="VERB")
    for command in (convert, push, tokenizer, data, eval, plan):
        command.add_cli(verbs)
    args, others = parser.parse_known_args(argv)
    if args.verb == "plan":
        args.recipe_options = others
    elif others:
        verbs.choices[args.verb].error(f"unrecognized arguments: {' '.join(others)}")
    try:
        _run(args)
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except CertificateError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(f"stopped by {signal.SIGINT.name}", file=sys.stderr)
        return 128 + signal.SIGINT
    except OSError as error:
        if not (message := full_disk_message(error)):
            raise
        print(f"error: {message}", file=sys.stderr)
        return 1
    return 0


def _run(args: argparse.Namespace) -> None:
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()  # loading takes a moment, and the bars would hide the one line that matters
    args.run(args)


if __name__ == "__main__":
    sys.exit(main())
