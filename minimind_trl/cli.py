"""`minimind-trl <verb>`: exit code 0 when done, 2 on bad input (one line on stderr), 130 after Ctrl-C, 1 on a crash."""

import argparse
import signal
import sys

from . import __version__
from .commands import chat, convert, data, demo, doctor, eval, init, launch, plan, push, reporting, serve, tokenizer
from .errors import CertificateError, InputError, nearest
from .files import full_disk_message


def main(argv: list[str] | None = None) -> int:
    words = sys.argv[1:] if argv is None else argv
    parser = argparse.ArgumentParser(prog="minimind-trl", description="MiniMind on the Hugging Face stack")
    parser.add_argument("--version", action="version", version=f"%(prog)s {__version__}")
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="VERB")
    for command in (launch, init, data, tokenizer, plan, eval, doctor, reporting, chat, serve, convert, push, demo):
        command.add_cli(verbs)
    if words and not words[0].startswith("-") and words[0] not in verbs.choices:
        parser.error(f"unknown verb {words[0]!r}{nearest(words[0], verbs.choices, listed=True)}")
    args, others = parser.parse_known_args(words)
    if args.verb == "plan":
        args.recipe_options = others
    elif args.verb in launch.RECIPES:
        args.options = words[1:]
    elif others:
        verbs.choices[args.verb].error(f"unrecognized arguments: {' '.join(others)}")
    try:
        return _run(args)
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


def _run(args: argparse.Namespace) -> int:
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()  # loading takes a moment, and the bars would hide the one line that matters
    return args.run(args) or 0


if __name__ == "__main__":
    sys.exit(main())
