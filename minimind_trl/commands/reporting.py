"""`minimind-trl report RUN [RUN ...]`: one HTML file about a run or a chain of runs."""

import argparse
from pathlib import Path


def add_cli(verbs: argparse._SubParsersAction) -> None:
    """Add the `report` verb."""
    parser = verbs.add_parser(
        "report",
        help="write one HTML file about a run or several",
        description="Writes figures, curves, samples, data and settings of runs into one HTML file, which needs no "
        "network. Every recipe writes the same about its own run.",
    )
    parser.add_argument("runs", nargs="+", metavar="RUN", help="the --output_dir of a run; several in their order")
    parser.add_argument(
        "--output", type=Path, metavar="FILE.html", help="default: report.html in the folder of the run, or above all"
    )
    parser.add_argument(
        "--no_answers",
        action="store_true",
        help="with several runs: don't load their models to answer the prompts that the others recorded",
    )
    parser.set_defaults(run=_run)


def _run(args: argparse.Namespace) -> None:
    from ..reports.page import REPORT, write_report

    folders = [Path(run) for run in args.runs]
    path = args.output or (folders[0] if len(folders) == 1 else _above(folders)) / REPORT
    write_report(folders, path, ask=not args.no_answers)
    print(f"written to {path} ({path.stat().st_size / 2**20:.1f} MiB)")


def _above(folders: list[Path]) -> Path:
    """The folder that all are in; the current one if there is none but the root."""
    parents = [folder.resolve().parent for folder in folders]
    common = parents[0]
    while not all(parent.is_relative_to(common) for parent in parents):
        common = common.parent
    return Path(".") if common == Path(common.anchor) else common
