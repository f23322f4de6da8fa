"""`minimind-trl push RUN USER/NAME`."""

import argparse


def add_cli(verbs: argparse._SubParsersAction) -> None:
    """Add the `push` verb."""
    what = "upload a finished run or a checkpoint to the Hub"
    parser = verbs.add_parser("push", help=what, description=what)
    parser.add_argument("run_folder", metavar="RUN", help="folder of a run, a checkpoint, an adapter or an export")
    add_hub_options(parser)
    parser.add_argument("--twin", action="store_true", help="upload the stock twin, which needs no remote code")
    parser.set_defaults(run=_run)


def add_hub_options(parser: argparse.ArgumentParser) -> None:
    """Add the name of the repository, and what its card says."""
    parser.add_argument("repo_id", metavar="USER/NAME", help="of the repository; made if it does not exist")
    parser.add_argument("--private", action="store_true", help="make a new repository private")
    parser.add_argument("--license", help="for the card, such as apache-2.0 (default: what the card says)")
    parser.add_argument("--language", nargs="+", metavar="CODE", help="for the card, such as zh en")


def hub_options(args: argparse.Namespace) -> dict:
    """The values of `add_hub_options` beside the name."""
    return {"private": args.private, "license": args.license, "language": args.language}


def _run(args: argparse.Namespace) -> None:
    from .upload import push_model

    print(push_model(args.run_folder, args.repo_id, twin=args.twin, **hub_options(args)))
