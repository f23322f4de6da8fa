"""`minimind-trl doctor RUN`: what went wrong in a run, and what to do about it."""

import argparse
import json


def add_cli(verbs: argparse._SubParsersAction) -> None:
    """Add the `doctor` verb."""
    parser = verbs.add_parser(
        "doctor",
        help="name what went wrong in a run",
        description="Names causes of trouble from what a run left in its folder, finished or not; the most important "
        "first.",
    )
    parser.add_argument("folder", metavar="RUN", help="--output_dir of a run of a recipe")
    parser.add_argument("--json", action="store_true", help="print a list of {name, severity, sentence}")
    parser.set_defaults(run=_run)


def _run(args: argparse.Namespace) -> None:
    from ..reports import RunFolder, examine

    run = RunFolder.read(args.folder)
    findings = examine(run)
    if args.json:
        print(json.dumps([vars(finding) for finding in findings], indent=2, ensure_ascii=False))
        return
    for finding in findings:
        print(f"{finding.severity}: {finding.name}: {finding.sentence}")
    if not any(finding.severity == "fault" for finding in findings):
        print(f"no fault found in {len(run.history)} logs of {run.method}")
